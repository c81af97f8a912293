"""Files in and out: rates, time stamps, sound offsets, and what is refused."""

from fractions import Fraction
from pathlib import Path

import av
import clipmaker
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from stamped import SIDE, grey, write_at

from fiag_dist.errors import DataError
from fiag_dist.media import video
from fiag_dist.media.sound import read_audio


def levels(path: Path, fps: float, max_seconds: float = 0.0) -> list[int]:
    return [round(float(image.mean()) / 10) for image in video.read_frames(path, fps, max_seconds)]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    tone = np.sin(np.arange(16_000) / 16_000 * 2 * np.pi * 440).astype(np.float32) * 0.5
    path = tmp_path / "sub" / "clip.mp4"
    with video.VideoWriter(path, SIDE, SIDE, 25, tone) as writer:
        for k in range(25):
            writer.write(grey(10 * k))
    info = video.probe(path)
    assert (info.width, info.height, info.fps) == (SIDE, SIDE, 25)
    assert levels(path, 25) == list(range(25))
    wav = read_audio(path)
    assert abs(len(wav) - 16_000) < 1100, "one AAC frame of padding at most"
    spectrum = np.abs(np.fft.rfft(wav[2000:10_000]))
    assert abs(spectrum.argmax() * 2 - 440) <= 2
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]


SKIN = np.broadcast_to(np.array([200, 150, 130], np.uint8), (SIDE, SIDE, 3))


def first_frame(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def test_colours_are_bt709_and_the_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "skin.mp4"
    with video.VideoWriter(path, SIDE, SIDE, 25, crf=1) as writer:
        writer.write(SKIN)
    frame = first_frame(path)
    assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (1, 1, 1, 1)
    planes = frame.to_ndarray()
    y, u, v = (float(part.mean()) for part in (planes[:SIDE], planes[SIDE : SIDE * 5 // 4], planes[SIDE * 5 // 4 :]))
    red, green, blue = SKIN[0, 0] / 255.0
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # BT.709, limited range
    expected = [16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748]
    np.testing.assert_allclose([y, u, v], expected, atol=1)  # by BT.601 y would be 3 more
    back = next(video.read_frames(path, 25))
    assert np.abs(back.astype(int) - SKIN).max() <= 2


def test_colours_come_back_to_the_level(tmp_path: Path) -> None:
    """On average to a quarter of a level, and the planes are the nearest whole numbers to what BT.709 asks for."""
    blocks = np.random.default_rng(0).integers(24, 232, (8, 8, 3))
    image = np.kron(blocks, np.ones((16, 16, 1))).astype(np.uint8)
    with video.VideoWriter(tmp_path / "blocks.mp4", 128, 128, 25, crf=0) as writer:
        writer.write(image)
    middles = (slice(8, None, 16), slice(8, None, 16))
    error = next(video.read_frames(tmp_path / "blocks.mp4", 25))[middles] - image[middles].astype(float)
    assert np.abs(error.mean((0, 1))).max() < 0.25  # 1.5 with swscale's defaults
    assert np.abs(error).max() <= 2  # steps of YUV are coarser than those of RGB


@pytest.mark.parametrize(("trc", "white"), [(1, 192), (18, 255), (16, 253)])
def test_diffuse_white_of_hdr_is_white(tmp_path: Path, trc: int, white: int) -> None:
    """75 % of the signal in HLG, 58 % in PQ (BT.2408); without their curves phones' pictures were grey."""
    path, share = tmp_path / "hdr.mkv", 0.58 if trc == 16 else 0.75
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p10le"
        stream.codec_context.colorspace, stream.codec_context.color_range = 9, 1
        stream.codec_context.color_primaries, stream.codec_context.color_trc = 9 if trc > 1 else 1, trc
        frame = av.VideoFrame(SIDE, SIDE, "yuv420p10le")
        for plane, level in zip(frame.planes, (64 + share * 876, 512, 512), strict=True):
            plane.update(np.full(plane.buffer_size // 2, round(level), "<u2").tobytes())
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert first_frame(path).color_trc == trc
    assert np.abs(next(video.read_frames(path, 25)).astype(int) - white).max() <= 2


def test_files_without_tags_are_read_as_bt601_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "old.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "1"}
        container.mux(stream.encode(av.VideoFrame.from_ndarray(SKIN, format="rgb24")))
        container.mux(stream.encode(None))
    assert first_frame(path).colorspace == 2  # unspecified
    assert np.abs(next(video.read_frames(path, 25)).astype(int) - SKIN).max() <= 2


def test_a_writer_left_by_an_error_leaves_no_file(tmp_path: Path) -> None:
    def write_two() -> None:
        with video.VideoWriter(tmp_path / "clip.mp4", SIDE, SIDE, 25) as writer:
            writer.write(grey(0))
            writer.write(np.zeros((10, 10, 3), np.uint8))

    with pytest.raises(DataError, match="frame 1 is"):
        write_two()
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="even width and height"):
        video.VideoWriter(tmp_path / "clip.mp4", 63, 64, 25)


def test_a_place_that_takes_no_files_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "taken.mp4").mkdir()
    (tmp_path / "taken.mp4" / "other").touch()
    for path, reason in (
        ("file/clip.mp4", "its folder is a file"),
        ("file/below/clip.mp4", "Not a directory"),
        ("taken.mp4", "Is a directory"),
        (f"{'n' * 252}.mp4", "File name too long"),
    ):
        with (
            pytest.raises(DataError, match=rf"^{tmp_path}/{path}: can't be written \({reason}\); ") as caught,
            video.VideoWriter(tmp_path / path, SIDE, SIDE, 25) as writer,
        ):
            writer.write(grey(0))
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken.mp4"]


def test_the_longest_name_that_a_disk_takes_is_taken(tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 251}.mp4"
    with video.VideoWriter(path, SIDE, SIDE, 25) as writer:
        writer.write(grey(0))
    assert list(tmp_path.iterdir()) == [path]


def test_avi_says_nothing_of_when_frames_are_shown(tmp_path: Path) -> None:
    """With B-frames half of them were lost, and others shown twice."""
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "1", "bf": "3"}
        for k in range(25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(10 * k), format="rgb24")))
        container.mux(stream.encode(None))
    assert levels(path, 25) == list(range(25))


def test_pictures_that_jump_hours_are_one_line(tmp_path: Path) -> None:
    write_at(tmp_path / "jump.mkv", [0.0, 0.04, 0.08, 93_600.0, 93_600.04])
    with pytest.raises(DataError, match=r"its pictures jump from 0 s to 93600 s, more than an hour; .* are damaged"):
        levels(tmp_path / "jump.mkv", 25)


def test_each_so_many_th_frame_is_that_of_all(tmp_path: Path) -> None:
    write_at(tmp_path / "fifty.mkv", [k / 50 for k in range(20)])
    sparse = [round(float(image.mean()) / 10) for image in video.read_frames(tmp_path / "fifty.mkv", 25, every=4)]
    assert sparse == levels(tmp_path / "fifty.mkv", 25)[::4] == [0, 8, 16]


def test_other_rates_are_resampled_by_time(tmp_path: Path) -> None:
    path = tmp_path / "fifty.mkv"
    write_at(path, [k / 50 for k in range(20)])
    assert levels(path, 25) == list(range(0, 20, 2))
    assert levels(path, 25, max_seconds=0.2) == [0, 2, 4, 6, 8]


def test_stamps_that_never_move_are_one_line(tmp_path: Path) -> None:
    write_at(tmp_path / "still.mkv", [0.0, 0.0004, -0.0004])  # all in the same millisecond, which the file counts by
    with pytest.raises(DataError, match="none of its 3 frames comes later than the first, by their time stamps; give"):
        levels(tmp_path / "still.mkv", 25)


def test_variable_rates_keep_their_time(tmp_path: Path) -> None:
    path = tmp_path / "variable.mkv"
    times_s = [0.0, 0.04, 0.21, 0.25, 0.42]
    write_at(path, times_s)
    wanted = [int(np.abs(np.array(times_s) - i / 25).argmin()) for i in range(10)]
    assert levels(path, 25)[:10] == wanted


@pytest.mark.parametrize(("codec", "kind"), [(b"V_MPEG4/ISO/AVC", "video"), (b"A_PCM/INT/LIT", "audio")])
def test_a_track_that_nothing_decodes_is_one_line(tmp_path: Path, codec: bytes, kind: str) -> None:
    path = tmp_path / "unknown.mkv"
    write_at(path, [k / 25 for k in range(25)], audio_at_s=0.5)
    data = path.read_bytes()
    assert data.count(codec) == 1
    path.write_bytes(data.replace(codec, codec[:2] + b"X" * (len(codec) - 2)))
    line = f"unknown.mkv: nothing here decodes its {kind} track; convert the file to mp4"
    with pytest.raises(DataError, match=line):
        video.probe(path) if kind == "video" else read_audio(path)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_cover_picture_is_no_video(tmp_path: Path, damaged: bool) -> None:
    """It is the first track where the file's tags come before its tracks."""
    path, picture = tmp_path / "covered.mp4", tmp_path / "cover.jpg"
    cv2.imwrite(str(picture), grey(200))
    with av.open(str(path), "w") as container, av.open(str(picture)) as cover:
        first = container.add_stream_from_template(cover.streams.video[0])
        first.disposition = Disposition.attached_pic
        second = container.add_stream("libx264", rate=25)
        second.width = second.height = SIDE
        second.pix_fmt, second.options = "yuv420p", {"crf": "1", "bf": "0"}
        heard = container.add_stream("aac", rate=16_000, layout="mono")
        for packet in cover.demux(cover.streams.video[0]):
            if packet.size:
                packet = av.Packet(b"no picture") if damaged else packet
                packet.stream = first
                container.mux(packet)
        for k in range(25):
            container.mux(second.encode(av.VideoFrame.from_ndarray(grey(10 * k), format="rgb24")))
        container.mux(second.encode(None))
        clipmaker._encode_sound(container, heard, np.full(16_000, 0.5, np.float32))
    data = path.read_bytes()
    start, tags = data.index(b"moov") + 4, data.index(b"udta") - 4
    start += int.from_bytes(data[start : start + 4], "big")  # after the header of all tracks
    path.write_bytes(data[:start] + data[tags:] + data[start:tags])
    assert levels(path, 25) == list(range(25))
    assert video.probe(path).fps == 25
    assert len(read_audio(path)) > 15_000


def test_a_picture_that_changes_its_size_keeps_that_of_its_first_frame(tmp_path: Path) -> None:
    """As recordings of calls do; what changes its shape is refused."""
    parts = {}
    for width, height in ((64, 36), (128, 72), (96, 72)):
        part = tmp_path / f"{width}x{height}.ts"
        image = np.zeros((height, width, 3), np.uint8)
        image[:, : width // 2] = 200
        with av.open(str(part), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", {"bf": "0"}
            for k in range(5):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = k + 5 * len(parts), Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts[width] = part.read_bytes()
    grows, bends = tmp_path / "grows.ts", tmp_path / "bends.ts"
    grows.write_bytes(parts[64] + parts[128])
    bends.write_bytes(parts[128] + parts[96])
    images = list(video.read_frames(grows, 25))
    assert {image.shape for image in images} == {(36, 64, 3)}
    assert len(images) == 10
    assert np.abs(images[-1].astype(int) - images[0]).mean() < 5
    with pytest.raises(DataError, match=r"bends.ts: the picture changes from 128x72 to 96x72 pixels, .*; cut the clip"):
        list(video.read_frames(bends, 25))


def test_colours_that_can_not_be_converted_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ycgco.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.codec_context.colorspace = "yuv420p", 8
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(100), format="rgb24")))
        container.mux(stream.encode(None))
    for read in (video.probe, lambda path: next(video.read_frames(path, 25))):
        with pytest.raises(DataError, match=r"ycgco.mp4: its colours can't be converted to RGB \(.*; convert the file"):
            read(path)


@pytest.mark.parametrize(
    "matrix", [(x, 0, 0, y) for x in (1, -1) for y in (1, -1)] + [(0, x, y, 0) for x in (1, -1) for y in (1, -1)]
)
def test_pictures_are_turned_and_mirrored_as_the_file_says(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    image = np.zeros((32, SIDE, 3), np.uint8)
    image[:16, :32], image[:16, 32:], image[16:, :32] = 80, 160, 240  # four quarters
    path = clipmaker.write(tmp_path / "turned.mp4", [image], None)
    clipmaker.place(path, matrix)
    a, b, c, d = matrix
    wanted = np.zeros((32, SIDE) if a else (SIDE, 32))
    for y in range(32):
        for x in range(SIDE):  # where the file says that each pixel goes
            wanted[b * x + d * y - (b < 0 or d < 0), a * x + c * y - (a < 0 or c < 0)] = image[y, x, 0]
    assert np.abs(next(video.read_frames(path, 25))[..., 0] - wanted).mean() < 5


def test_names_with_colons_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with video.VideoWriter("12:30 take.mp4", SIDE, SIDE, 25) as writer:
        writer.write(grey(0))
    assert video.probe("12:30 take.mp4").width == SIDE


def test_padded_rows_are_made_whole(tmp_path: Path) -> None:
    path = tmp_path / "narrow.mp4"
    with video.VideoWriter(path, 70, 50, 25) as writer:
        for _ in range(3):
            writer.write(np.zeros((50, 70, 3), np.uint8))
    assert all(image.flags["C_CONTIGUOUS"] for image in video.read_frames(path, 25))


@pytest.mark.parametrize(("suffix", "degrees"), [(".mp4", 0), (".mp4", 90), (".mkv", 0), (".ts", 0)])
def test_pixels_that_are_not_square_are_made_so(tmp_path: Path, suffix: str, degrees: int) -> None:
    """60x40 pixels, each 4:3, with a white band of 10 rows and one of 15 columns: 80x40 as shown, with bands of 10 and 20."""
    path = tmp_path / f"anamorphic{suffix}"
    image = np.zeros((40, 60, 3), np.uint8)
    image[:10], image[:, :15] = 255, 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 60, 40, "yuv420p", {"crf": "1"}
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for _ in range(25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    if degrees:
        clipmaker.turn(path, degrees)
    info, seen = video.probe(path), next(video.read_frames(path, 25))
    wanted = np.zeros((40, 80, 3))
    wanted[:10], wanted[:, :20] = 255, 255
    wanted = np.rot90(wanted, -degrees // 90)  # clockwise, as players turn it
    assert (info.height, info.width, 3) == seen.shape == wanted.shape
    assert np.abs(seen - wanted).mean() < 5


def test_what_can_not_be_read_is_one_line(tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("not a video")
    silent = tmp_path / "silent.mp4"
    with video.VideoWriter(silent, SIDE, SIDE, 25) as writer:
        writer.write(grey(0))
    over = tmp_path / "over.mkv"
    write_at(over, [3.0, 3.04], audio_at_s=0.5)
    for action, message in (
        (lambda: video.probe(text), "can't be read"),
        (lambda: video.probe(tmp_path / "absent.mp4"), "can't be read"),
        (lambda: list(video.read_frames(text, 25)), "can't be read"),
        (lambda: read_audio(silent), "no audio track"),
        (lambda: read_audio(over), "the audio track is empty, or ends before"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            action()
        assert "\n" not in str(caught.value)


def test_a_sound_file_has_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 8000), 16_384, np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert len(read_audio(path)) == 8000
    with pytest.raises(DataError, match="no video track"):
        video.probe(path)
