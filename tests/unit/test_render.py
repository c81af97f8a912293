"""Rendering as it is asked for: sizes, backgrounds, borrowed poses and expressions, PNG frames, sound, and what the result says about itself."""

import dataclasses
import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import tiny_identity as tiny
from rights import as_nobody

from fiag_dist import cli, render
from fiag_dist.acting import provenance
from fiag_dist.acting.staging import Staging, nearest_to_mean, retargeted
from fiag_dist.acting.synthesize import Identity, write_behind
from fiag_dist.errors import ConfigError, DataError
from fiag_dist.media import video
from fiag_dist.media.sound import read_audio


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in data/, an identity in ball/, 0.4 s of stereo sound at 44.1 kHz in speech.wav."""
    home = tmp_path_factory.mktemp("render")
    tiny.make_identity(home / "ball", tiny.pack(home / "data"))
    write_wav(home / "speech.wav", 0.4, 44100, 2)
    return home


@pytest.fixture(scope="module")
def ball(home: Path) -> Identity:
    return Identity.load(home / "ball")


def write_wav(path: Path, seconds: float, rate: int = 16000, channels: int = 1) -> None:
    t = np.arange(round(seconds * rate)) / rate
    samples = np.stack([np.sin(2 * np.pi * 440 * (k + 1) * t) * 0.3 for k in range(channels)], 1)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples * 32767).astype("<i2").tobytes())


def images(identity: Identity, num: int = 1, **staging) -> list[np.ndarray]:
    return list(identity.frames(tiny.voice(num / tiny.FPS), Staging(**staging)))


def test_any_size_shows_the_same_picture(ball: Identity) -> None:
    small, large = images(ball)[0], images(ball, size=4 * tiny.SIZE)[0]
    assert large.shape == (4 * tiny.SIZE, 4 * tiny.SIZE, 3)
    again = cv2.resize(large, (tiny.SIZE, tiny.SIZE), interpolation=cv2.INTER_AREA)
    assert np.abs(again.astype(int) - small).mean() < 3


@pytest.mark.parametrize("times", [2, 4])
def test_what_is_thinner_than_a_pixel_is_as_thick_at_any_size(home: Path, times: float) -> None:
    """Needles learnt their place blurred by a pixel; drawn sharper they are crusts and specks, drawn wider they cover what is behind them."""
    thin = Identity.load(home / "ball")
    for scales in (thin.actor.face_log_scales, thin.actor.mouth_log_scales):
        scales -= 4.0
    usual, other = (images(thin, background="alpha", **at)[0][..., 3] for at in ({}, {"size": int(times * tiny.SIZE)}))
    assert usual.max() > 20
    assert float(other.mean()) == pytest.approx(float(usual.mean()), rel=0.1)


def test_backgrounds_stand_where_the_head_does_not(ball: Identity) -> None:
    clip, green, blue, clear = (images(ball, background=b)[0] for b in ("clip", "green", "#0000ff", "alpha"))
    corner = (slice(0, 2), slice(0, 2))
    np.testing.assert_array_equal(green[corner], np.broadcast_to([0, 255, 0], (2, 2, 3)))
    np.testing.assert_array_equal(blue[corner], np.broadcast_to([0, 0, 255], (2, 2, 3)))
    assert (clear[corner] == 0).all()
    alpha = clear[..., 3:] / 255
    assert 0.1 < alpha.mean() < 0.9
    # Transparent frames over a colour or the clip are what is rendered over it directly.
    for ground, whole in (([0, 255, 0], green), (ball.loop.images[0], clip)):
        mixed = clear[..., :3] * alpha + np.array(ground) * (1 - alpha)
        assert np.abs(mixed - whole).max() <= 2


def test_the_mark_is_in_the_corner_and_nowhere_else(ball: Identity) -> None:
    for background in ("clip", "alpha"):
        plain, marked = (images(ball, size=256, background=background, mark=mark)[0] for mark in (False, True))
        changed = np.argwhere((plain != marked).any(2))
        assert len(changed) > 100
        assert changed.min(0)[0] > 230
        assert changed.min(0)[1] > 120
        assert changed.max() < 256 - 2, "the whole text is inside"


def test_a_borrowed_expression_and_pose_move_the_head(home: Path, ball: Identity) -> None:
    own, other = images(ball, 8), images(ball, 8, pose=f"{home}/data/ball")
    assert len(other) == 8
    assert any((a != b).any() for a, b in zip(own, other, strict=True))
    wall = np.abs(np.diff([image[:8, :8].astype(int) for image in other], axis=0))
    assert wall.max() == 0, "what is behind stands still"
    same = images(ball, 8, expression=f"{home}/data/ball")
    assert all((a == b).all() for a, b in zip(own, same, strict=True)), "its own expression is what it has anyway"


def test_another_head_turns_this_one_about_its_neck() -> None:
    turn = cv2.Rodrigues(np.array([0.0, 0.3, 0.0]))[0]
    still = tiny.viewmat(0)
    turned = still.copy()
    turned[:3, :3] = still[:3, :3] @ turn
    turned[:3, 3] += 0.5  # walks away: the torso that the head is shown on doesn't
    home = np.eye(4, dtype=np.float32)
    home[:3, :3], home[:3, 3] = tiny.FRONT, (0, 0, 2)
    theirs = np.stack([still, still, still, turned])
    assert nearest_to_mean(theirs) in (0, 1, 2)
    ours = retargeted(theirs, home)
    np.testing.assert_allclose(ours[0], home, atol=1e-6)
    np.testing.assert_allclose(home[:3, :3].T @ ours[3, :3, :3], turn, atol=1e-5)
    neck = np.array([0.0, -0.11, -0.03, 1])
    np.testing.assert_allclose(ours[3] @ neck, home @ neck, atol=1e-5)


def test_frames_of_the_loop_turn_round_without_a_jump(ball: Identity) -> None:
    shown = images(ball, 2 * tiny.TRAIN)
    steps = np.array([np.abs(np.diff(pair, axis=0)).mean() for pair in zip(*_pairs(shown), strict=True)])
    turns = steps[tiny.TRAIN - 2 : tiny.TRAIN + 1]
    assert turns.max() <= 1.5 * np.median(steps) + 0.5, "the turning point moves as little as any other frame"


def _pairs(shown: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    plain = [image.astype(np.int16) for image in shown]
    return plain[:-1], plain[1:]


def test_png_frames_hold_what_a_video_shows(home: Path, ball: Identity, tmp_path: Path) -> None:
    argv = [str(home / "ball"), "--audio", str(home / "speech.wav"), "--background", "alpha"]
    out = tmp_path / "take1.5"
    with pytest.raises(ConfigError, match="a folder for PNG frames, which must be there if its name has a dot"):
        render.main([*argv, "--out", str(out)])
    out.mkdir()
    assert render.main([*argv, "--out", str(out)]) == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == [*(f"{i:06d}.png" for i in range(10)), "provenance.json"]
    stored = cv2.imread(str(out / "000003.png"), cv2.IMREAD_UNCHANGED)
    expected = list(ball.frames(home / "speech.wav", Staging(background="alpha")))[3]
    np.testing.assert_array_equal(cv2.cvtColor(stored, cv2.COLOR_BGRA2RGBA), expected)
    assert json.loads((out / "provenance.json").read_text())["synthetic"] is True
    with pytest.raises(ConfigError, match="holds something already"):
        render.main([*argv, "--out", str(out)])


def test_frames_in_a_place_that_takes_no_folder_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"file/frames: can't be written \(Not a directory\); make room, or give another"
    ):
        render.PngFolder(tmp_path / "file" / "frames")


def test_a_folder_that_may_not_be_looked_into_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "frames").mkdir(mode=0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with (
        as_nobody(),
        pytest.raises(DataError, match=r"^frames: can't be written \(Permission denied\); check the rights"),
    ):
        render.PngFolder(Path("frames"))


@pytest.mark.parametrize(("seconds", "rate", "channels"), [(0.4, 44100, 2), (1.51, 16000, 1), (0.333, 96000, 1)])
def test_sound_and_picture_are_equally_long(
    home: Path, tmp_path: Path, seconds: float, rate: int, channels: int
) -> None:
    write_wav(tmp_path / "in.wav", seconds, rate, channels)
    out = tmp_path / "out.mp4"
    assert render.main([str(home / "ball"), "--audio", str(tmp_path / "in.wav"), "--out", str(out)]) == 0
    with av.open(str(out)) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert (sound.codec_context.name, sound.channels) == ("aac", channels)
        assert sound.rate == (rate if rate <= 48000 else 48000)
        lengths = [float(stream.duration * stream.time_base) for stream in (picture, sound)]
    assert lengths[0] == pytest.approx(seconds, abs=0.5 / tiny.FPS)
    assert lengths[0] == pytest.approx(lengths[1], abs=1 / tiny.FPS)
    heard = read_audio(out)
    spectrum = np.abs(np.fft.rfft(heard[: round(0.3 * 16000)]))
    assert abs(spectrum[:300].argmax() / 0.3 - 440) < 8


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp3", "libmp3lame"), ("flac", "flac"), ("m4a", "aac"), ("ogg", "libopus")]
)
def test_any_kind_of_sound_file_is_heard_in_time(ball: Identity, tmp_path: Path, suffix: str, codec: str) -> None:
    path, voice = tmp_path / f"speech.{suffix}", tiny.voice(1.2)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=48000)
        frame = av.AudioFrame.from_ndarray(voice[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        for part in av.AudioResampler(stream.codec_context.format, "mono", 48000).resample(frame):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    heard = read_audio(path)
    assert len(heard) == pytest.approx(len(voice), abs=0.05 * 16000)
    shifts = [np.corrcoef(heard[400 + by : 16000 + by], voice[400:16000])[0, 1] for by in range(-400, 401, 4)]
    assert abs(np.argmax(shifts) * 4 - 400) <= 160, "within 10 ms"
    assert max(shifts) > 0.9
    assert len(list(ball.frames(path))) == pytest.approx(30, abs=1)


def test_blinks_go_on_in_silence_where_the_clip_has_them(home: Path) -> None:
    lively = Identity.load(tiny.make_identity(home / "lively", str(home / "data"), motion_scale=3.0))
    blinks = lively.loop.expressions.copy()
    blinks[[10, 25], -1] = 1
    blinking = Identity(lively.folder, lively.info, lively.actor, dataclasses.replace(lively.loop, expressions=blinks))
    silence = np.zeros(4 * 16000, np.float32)
    shown = zip(lively.frames(silence), blinking.frames(silence), strict=True)
    changed = [t for t, (open_eyed, other) in enumerate(shown) if (open_eyed != other).any()]
    back = 2 * (tiny.TRAIN - 1)
    assert changed == [10, 25, back - 25, back - 10, back + 10]


def test_a_video_says_what_it_is(home: Path, tmp_path: Path) -> None:
    folder = tiny.make_identity(tmp_path / "ball", str(home / "data"), consent="Ball agreed to tests, 3 May 2026 (été)")
    out = tmp_path / "talk.mp4"
    Identity.load(folder).write_video(home / "speech.wav", out)
    with av.open(str(out)) as container:
        tags = dict(container.metadata)
    assert tags["title"] == "ball (synthetic)"
    assert tags["comment"].startswith("Synthetic: ")
    assert "Ball agreed to tests, 3 May 2026 (été)" in tags["comment"]
    facts = json.loads(tags["description"])
    digest = subprocess.run(["sha256sum", folder / "identity.safetensors"], capture_output=True, text=True, check=True)
    assert facts["identity_sha256"] == digest.stdout.split()[0]
    assert facts["consent"] == "Ball agreed to tests, 3 May 2026 (été)"
    assert facts["digital_source_type"] == provenance.SOURCE_TYPE
    assert facts["software"].startswith("fiag_dist ")


def test_a_writer_that_fails_stops_the_rendering() -> None:
    made = []

    def frames():
        for i in range(1000):
            made.append(i)
            yield np.zeros(1)

    def write(image: np.ndarray) -> None:
        raise DataError("disk full")

    with pytest.raises(DataError, match="disk full"):
        write_behind(frames(), write, lambda done: None)
    assert len(made) < 10


def test_mistakes_are_named(home: Path, tmp_path: Path) -> None:
    start = [str(home / "ball"), "--audio", str(home / "speech.wav"), "--out"]
    cases = [
        ([str(tmp_path / "x.mp4"), "--size", "63"], "even number of pixels, 64 to 2048"),
        ([str(tmp_path / "x.mp4"), "--size", "4096"], "even number of pixels, 64 to 2048"),
        ([str(tmp_path / "x.mp4"), "--background", "gren"], "clip, alpha, green"),
        ([str(tmp_path / "x.mp4"), "--background", "alpha"], "H.264 has no alpha"),
        ([str(tmp_path / "x.avi")], r"ends in \.mp4"),
        ([str(tmp_path / f"{'n' * 252}.mp4")], r"can't be written \(File name too long\)"),
        (["s3://b/talk.mp4"], r"^s3://b/talk\.mp4: .* copy it then: aws s3 cp talk\.mp4 s3://b/talk\.mp4$"),
        (
            [str(tmp_path / "x.mp4"), "--audio", "s3://b/a.wav"],
            r"^s3://b/a\.wav: .* copy it here first: aws s3 cp s3://b/a\.wav a\.wav$",
        ),
        ([str(tmp_path / "x.mp4"), "--pose", "ball"], "SHARDS/IDENTITY"),
        ([str(tmp_path / "x.mp4"), "--pose", f"{home}/data/bal"], "did you mean 'ball'"),
        ([str(tmp_path / "x.mp4"), "--expression", f"{tmp_path}/none/ball"], "no such file"),
    ]
    for argv, message in cases:
        with pytest.raises((ConfigError, DataError), match=message) as caught:
            render.main([*start, *argv])
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_recording_is_not_replaced_and_a_render_is(home: Path, tmp_path: Path) -> None:
    recording = tmp_path / "anna.mp4"
    with video.VideoWriter(recording, 64, 64, 25) as writer:
        writer.write(np.zeros((64, 64, 3), np.uint8))
    before = recording.read_bytes()
    start = [str(home / "ball"), "--audio", str(home / "speech.wav"), "--out"]
    for lost in (recording, home / "ball" / "backdrop.mp4"):
        with pytest.raises(ConfigError, match="was not rendered here and would be lost"):
            render.main([*start, str(lost)])
    assert recording.read_bytes() == before
    for _ in range(2):
        assert render.main([*start, str(tmp_path / "talk [final].mp4")]) == 0


def test_the_library_is_light_until_it_is_used() -> None:
    code = (
        "import sys, fiag_dist; assert 'torch' not in sys.modules; from fiag_dist import Identity, Staging; "
        "print(Identity.__module__, Staging(size=512).size); fiag_dist.Idendity"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["fiag_dist.acting.synthesize", "512"]
    assert done.stderr.splitlines()[-1].startswith("AttributeError: module 'fiag_dist' has no attribute 'Idendity'")


def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "render.md").read_text()
    blocks = [block.split("\n", 1) for block in page.split("```")[1::2]]
    lines = [line for kind, text in blocks if kind == "" for line in text.splitlines()]
    commands = [line for line in lines if not line.startswith("fiag-dist view ")]  # which serve until they are stopped
    programs = [text for kind, text in blocks if kind == "python"]
    assert len(commands) >= 9
    assert len(programs) == 1
    tiny.pack(tmp_path / "shards" / "local", "bert")
    tiny.make_identity(tmp_path / "identities" / "anna", tiny.pack(tmp_path / "data", "anna"), "anna")
    write_wav(tmp_path / "speech.wav", 1.3)
    write_wav(tmp_path / "interview.mp4", 0.2)  # the name says nothing about what is in it
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert cli.main(command.split()[1:]) == 0, command
        shutil.rmtree("frames", ignore_errors=True)
    exec(
        compile(programs[0].replace("    ...", "    assert image.shape == (512, 512, 3)\n    break"), "page", "exec"),
        {},
    )
    assert {"talk.mp4", "green.mp4", "anna.ply", "smile.ply"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_half_an_hour_needs_no_more_memory_than_ten_seconds(home: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from fiag_dist import memory, render; render.main(sys.argv[1:]); print(memory.peak_resident_mib())"
    )
    argv = [sys.executable, "-c", code, home / "ball", "--audio", tmp_path / "in.wav", "--out", tmp_path / "out.mp4"]
    peaks_mib = []
    for seconds in (1, 10, 1800):  # the first compiles what is not compiled yet
        write_wav(tmp_path / "in.wav", seconds)
        said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        peaks_mib.append(float(said.split()[-1]))
        print(f"{seconds} s: {peaks_mib[-1]:.0f} MiB")
    assert peaks_mib[2] < peaks_mib[1] + 40, "a piece of sound that is listened to lasts 29 s, and takes that much"
