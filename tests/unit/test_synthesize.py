"""Speech to video: any length, in bounded memory, over a backdrop without jumps; and what is said when something is missing."""

import dataclasses
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_identity as tiny

from fiag_dist import render
from fiag_dist.acting import listening, synthesize
from fiag_dist.acting.actor import load_info
from fiag_dist.acting.backdrop import Loop, read_backdrop, write_backdrop
from fiag_dist.acting.listening import listen
from fiag_dist.acting.synthesize import Identity
from fiag_dist.errors import ConfigError, DataError
from fiag_dist.ingest import speech
from fiag_dist.media import video
from fiag_dist.media.sound import read_audio


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in data/, an identity in ball/, a second of sound in speech.wav."""
    home = tmp_path_factory.mktemp("synthesize")
    tiny.make_identity(home / "ball", tiny.pack(home / "data"))
    write_wav(home / "speech.wav", tiny.voice(1.0))
    return home


def write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes((samples * 32767).astype("<i2").tobytes())


def loop_of(num: int) -> Loop:
    images = [np.full((2, 2, 3), i, np.uint8) for i in range(num)]
    tracks = [np.zeros((num, *shape), np.float32) for shape in ((4, 4), (9,), (3, 4))]
    return Loop(images, tracks[0], np.eye(3, dtype=np.float32), *tracks[1:])


def test_the_loop_never_jumps_and_shows_every_frame() -> None:
    for num in (1, 2, 3, 7):
        order = [loop_of(num).at(t) for t in range(5 * num)]
        assert set(order) == set(range(num))
        assert np.abs(np.diff(order)).max(initial=0) <= 1
    assert [loop_of(3).at(t) for t in range(7)] == [0, 1, 2, 1, 0, 1, 2]


def pieces_of(wav: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """A sound as a decoder hands it out."""
    for start in range(0, len(wav), length):
        yield wav[None, start : start + length]


@pytest.mark.parametrize("seconds", [0.01, 1.5, 1.51, 2.0])
def test_listening_gives_what_packed_samples_hold(seconds: float) -> None:
    wav = tiny.voice(seconds)
    num = max(1, round(seconds * 25))
    track = speech.features(wav, num, 25, "mel")
    heard = list(listen(pieces_of(wav, 1152), 25, "mel"))
    assert len(heard) == num
    for t in {0, 1, num // 2, num - 1} & set(range(num)):
        np.testing.assert_array_equal(heard[t], speech.windows(track, t))


def test_where_a_sound_is_silent_for_long_a_listener_gets_its_silence_to_hear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an extractor makes of zeros that go on and on, and of hiss; speech, and the pauses in it, are heard as they are."""
    monkeypatch.setattr(listening, "PIECE_S", 4)
    monkeypatch.setattr(listening, "BLEND_S", 1)
    rng, voice, hush = np.random.default_rng(0), tiny.voice(2.0), np.linspace(-1, 1, 80, dtype=np.float32)
    quiet, pause = np.zeros(6 * 16000, np.float32), np.zeros(16000 // 4, np.float32)
    wav = np.concatenate([quiet, voice, pause, voice, 10 ** (-70 / 20) * rng.normal(size=48000).astype(np.float32)])
    plain, given = (
        np.stack([window[4] for window in listen(pieces_of(wav, 1000), 25, "mel", silence)]) for silence in (None, hush)
    )
    expected = np.broadcast_to(hush.astype(np.float16)[:, None], plain.shape[1:])
    for second in (0.5, 3.0, 5.0, 11.0, 12.5):
        np.testing.assert_array_equal(given[int(25 * second)], expected, err_msg=f"{second} s")
    speaks = slice(25 * 6 + 1, 25 * 10 + 6)
    np.testing.assert_array_equal(given[speaks], plain[speaks])


def test_long_sound_is_heard_in_pieces_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    wav = tiny.voice(9.3)
    whole = np.stack([window[4] for window in listen(pieces_of(wav, 1000), 25, "mel")])
    asked: list[int] = []
    held: list[int] = []
    features = speech.features

    def counted(wav, num_frames, fps, extractor):
        asked.append(num_frames)
        held.append(len(wav))
        return features(wav, num_frames, fps, extractor)

    monkeypatch.setattr(listening, "PIECE_S", 4)
    monkeypatch.setattr(listening, "BLEND_S", 1)
    monkeypatch.setattr(speech, "features", counted)
    pieces = np.stack([window[4] for window in listen(pieces_of(wav, 1000), 25, "mel")])
    assert asked == [100, 100, 83]
    assert max(held) < 5.1 * 16000, "a piece, a second and one decoded part are in memory, not the sound"
    assert pieces.shape == whole.shape
    # The pieces' own loudness references differ by a little.
    assert np.abs(pieces.astype(np.float32) - whole).mean() < 0.15
    assert np.corrcoef(pieces.ravel().astype(np.float64), whole.ravel().astype(np.float64))[0, 1] > 0.99


def test_frames_stream_over_the_backdrop(home: Path) -> None:
    identity = Identity.load(home / "ball")
    assert len(identity.loop) == tiny.TRAIN
    frames = identity.frames(np.tile(tiny.voice(60.0), 60))  # an hour: only what is asked for is rendered
    first = [next(frames) for _ in range(3)]
    assert first[0].shape == (tiny.SIZE, tiny.SIZE, 3)
    assert first[0].dtype == np.uint8
    corner = (slice(0, 8), slice(0, 8))  # far from the head the clip shows, encoded twice by H.264
    assert np.abs(first[0][corner].astype(int) - tiny.wall()[corner]).mean() < 6
    head = tiny.picture(0)[1] > 250
    assert np.abs(first[0][head].astype(int) - tiny.wall()[head]).mean() > 30
    assert len(list(identity.frames(tiny.voice(0.4)))) == 10
    assert len(list(identity.frames(np.zeros(1, np.float32)))) == 1


def test_command_writes_video_with_sound(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "talk.mp4"
    assert render.main([str(home / "ball"), "--audio", str(home / "speech.wav"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert str(out) in said
    assert "25 frames" in said
    assert "frames/s" in said
    info = video.probe(out)
    assert (info.width, info.height) == (tiny.SIZE, tiny.SIZE)
    assert len(list(video.read_frames(out, tiny.FPS))) == 25
    assert abs(len(read_audio(out)) - 16000) <= 2048
    # A video is a sound file, too.
    again = tmp_path / "again.mp4"
    assert render.main([str(home / "ball"), "--audio", str(out), "--out", str(again)]) == 0


def test_preview_is_driven_by_the_end_of_the_clip(home: Path) -> None:
    out = synthesize.write_preview(home / "ball", seconds=0.4)
    assert out == home / "ball" / "preview.mp4"
    assert len(list(video.read_frames(out, tiny.FPS))) == 10
    sound = read_audio(out)[1000:6000]
    clip = tiny.clip("ball")[0].wav
    expected = clip[-6400:][1000:6000]
    assert np.corrcoef(sound, expected)[0, 1] > 0.8


def test_mistakes_are_named(home: Path, tmp_path: Path) -> None:
    ball, wav, out = str(home / "ball"), str(home / "speech.wav"), str(tmp_path / "x.mp4")
    text = tmp_path / "notes.wav"
    text.write_text("not a sound")
    cases = [
        ([ball, "--audio", str(text), "--out", out], DataError, "can't be read as video or audio"),
        ([ball, "--audio", str(tmp_path / "no.wav"), "--out", out], DataError, "No such file"),
        ([ball, "--audio", wav, "--out", str(tmp_path / "x.avi")], ConfigError, r"ends in \.mp4"),
        ([str(tmp_path), "--audio", wav, "--out", out], DataError, r"no identity\.json in it"),
    ]
    for argv, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            render.main(argv)
        assert "\n" not in str(caught.value)
    assert not Path(out).exists()


def test_damaged_identities_are_refused(home: Path, tmp_path: Path) -> None:
    data = str(home / "data")
    folder = tiny.make_identity(tmp_path / "ball", data)
    whole = {name: (folder / name).read_bytes() for name in ("backdrop.mp4", "poses.npz", "identity.safetensors")}
    for name, content in whole.items():
        for damaged in (None, b"", content[: len(content) // 2]):
            (folder / name).unlink()
            if damaged is not None:
                (folder / name).write_bytes(damaged)
            with pytest.raises(DataError, match=name) as caught:
                Identity.load(folder)
            assert "\n" not in str(caught.value)
            (folder / name).write_bytes(content)
    poses = dict(np.load(folder / "poses.npz"))
    nan = np.full_like(poses["viewmats"], np.nan)
    for change, message in (
        ({"index": np.int32(5)}, r"poses\.npz has shapes {'index': \(\),"),
        ({"index": poses["index"].astype(str)}, r"poses\.npz is damaged \("),
        ({"viewmats": nan}, r"poses\.npz is damaged \(viewmats: not all numbers are finite\); adapt the clip again"),
    ):
        np.savez(folder / "poses.npz", **poses | change)
        with pytest.raises(DataError, match=message) as caught:
            Identity.load(folder)
        assert "\n" not in str(caught.value)
    (folder / "poses.npz").write_bytes(whole["poses.npz"])
    info = load_info(folder)
    with pytest.raises(DataError, match=r"backdrop\.mp4 has 40 frames"):
        read_backdrop(folder, 2 * info.size, info.fps)
    Identity.load(folder)


def test_a_splice_is_not_looped_over(tmp_path: Path) -> None:
    meta, frames = tiny.clip("ball")
    cut_out = [
        *frames[:12],
        *frames[24:40],
    ]  # one take, half a second of it taken out: the ball jumps by 3 pixels, 10 mm
    numbered = [dataclasses.replace(frame, index=i) for i, frame in enumerate(cut_out)]
    write_backdrop(tmp_path, numbered, meta, tiny.FPS)
    loop = read_backdrop(tmp_path, tiny.SIZE, tiny.FPS)
    np.testing.assert_array_equal(loop.viewmats, meta.viewmats[24:40])
    assert len(loop) == len(loop.images) == len(loop.expressions) == 16


def test_a_gap_in_time_is_not_looped_over(tmp_path: Path) -> None:
    meta, frames = tiny.clip("ball")
    write_backdrop(tmp_path, [*frames[:8], *frames[10:22]], meta, tiny.FPS)
    loop = read_backdrop(tmp_path, tiny.SIZE, tiny.FPS)
    np.testing.assert_array_equal(loop.viewmats, meta.viewmats[10:22])
    seen = loop.images[0].astype(int)
    assert np.abs(seen - tiny.wall()).mean() < 8
    with pytest.raises(DataError, match="no training frames"):
        write_backdrop(tmp_path / "none", [], meta, tiny.FPS)
