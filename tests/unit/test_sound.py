"""The sound of files: aligned with their pictures, over holes and changes, no more of it than is asked for."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import av
import clipmaker
import numpy as np
import pytest
from scipy.io import wavfile
from stamped import mux_sound, write_at

from fiag_dist.errors import DataError
from fiag_dist.media import sound
from fiag_dist.media.sound import read_audio


@pytest.mark.parametrize("click_s", [0.7, 0.5])
def test_sound_is_aligned_with_the_first_frame(tmp_path: Path, click_s: float) -> None:
    path = tmp_path / "late.mkv"
    write_at(path, [0.5 + k / 25 for k in range(25)], audio_at_s=click_s)
    wav = read_audio(path)
    assert np.flatnonzero(np.abs(wav) > 0.3)[0] / 16_000 == pytest.approx(click_s - 0.5, abs=0.002)


def test_speech_needs_no_pictures_that_can_be_decoded(tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    write_at(path, [0.5 + k / 25 for k in range(25)], audio_at_s=0.7)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_NOBODY/KNOWS_"))
    wav = read_audio(path)
    assert np.flatnonzero(np.abs(wav) > 0.3)[0] / 16_000 == pytest.approx(0.2, abs=0.002)


@pytest.mark.parametrize("start_s", [0.0, 0.5, 1.0])
def test_a_hole_in_the_sound_is_silent_and_moves_nothing(tmp_path: Path, start_s: float) -> None:
    path = tmp_path / "muted.mkv"
    write_at(path, [start_s + k / 25 for k in range(25)], audio_at_s=1.7, lost=set(range(20, 70)) - {40})
    wav = read_audio(path)
    assert len(wav) / 16_000 == pytest.approx(2 - start_s, abs=0.002)
    assert np.flatnonzero(wav)[0] / 16_000 == pytest.approx(1.7 - start_s, abs=0.002)


def test_uneven_time_stamps_are_no_holes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(-9000, 9000, 32_000).astype(np.int16)
    path = tmp_path / "uneven.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        mux_sound(container, stream, noise, {k: k / 50 + rng.uniform(0, 0.015) for k in range(100)})
    np.testing.assert_array_equal(np.round(read_audio(path) * 32_768), noise)


def test_sound_may_change_its_format(tmp_path: Path) -> None:
    """As two broadcasts joined: mono at 44.1 kHz, then stereo at 48 kHz with a click after 0.5 s."""
    path = tmp_path / "joined.ts"
    with path.open("wb") as joined:
        for rate, layout in ((44_100, "mono"), (48_000, "stereo")):
            part = tmp_path / f"{layout}.ts"
            with av.open(str(part), "w") as container:
                stream = container.add_stream("mp2", rate=rate, layout=layout)
                samples = np.zeros(rate, np.int16)
                samples[rate // 2 :][: rate // 10] = 20_000 * (layout == "stereo")
                mux_sound(container, stream, samples, {k: k / 50 for k in range(50)})
            joined.write(part.read_bytes())
    wav = read_audio(path)
    assert len(wav) / 16_000 == pytest.approx(2, abs=0.1)
    assert np.flatnonzero(wav > 0.3)[0] / 16_000 == pytest.approx(1.5, abs=0.05)
    stereo = np.concatenate(list(sound.Sound(path).pieces(48_000, 2)), 1)
    assert stereo.shape[1] / 48_000 == pytest.approx(len(wav) / 16_000, abs=0.001)


def test_no_more_sound_is_read_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        mux_sound(container, stream, np.arange(16_000 * 60).astype(np.int16), {k: k / 50 for k in range(3000)})
    whole, decoded = read_audio(path), []
    assert len(whole) == 16_000 * 60
    frames = sound.Sound._frames
    monkeypatch.setattr(sound.Sound, "_frames", lambda self: (decoded.append(f) or f for f in frames(self)))
    np.testing.assert_array_equal(read_audio(path, 1.234), whole[: round(1.234 * 16_000)])
    assert len(decoded) < 100, "of 3000"


def test_sound_is_held_once(tmp_path: Path) -> None:
    path, piece = tmp_path / "long.wav", np.zeros((1, 16_000), np.float32)
    clipmaker.write_sound(path, piece[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sound.Sound, "pieces", lambda self: (piece for _ in range(600)))
        tracemalloc.start()
        try:
            assert read_audio(path).nbytes == 600 * piece.nbytes
            assert tracemalloc.get_traced_memory()[1] < 1.5 * 600 * piece.nbytes
        finally:
            tracemalloc.stop()


def test_a_time_stamp_that_jumps_hours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jumps.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        mux_sound(container, stream, np.ones(32_000, np.int16), {k: k / 50 + 40_000 * (k >= 50) for k in range(100)})
    with pytest.raises(DataError, match=r"its sound jumps from 1 s to 40001 s, more than an hour; its time stamps are"):
        read_audio(path)
    assert len(read_audio(path, 0.5)) == 8000


def test_more_channels_than_can_be_mixed_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "nine.wav"
    wavfile.write(path, 16_000, np.zeros((1600, 9), np.int16))
    with pytest.raises(DataError, match=r"nine.wav: its 9 channels of sound can't be mixed .*; convert .* -ac 2"):
        read_audio(path)


def test_tags_may_be_in_any_encoding(tmp_path: Path) -> None:
    """LIST INFO of a wav has none of its own: an artist's name in Latin 1 made the file unreadable."""
    path = tmp_path / "tagged.wav"
    wavfile.write(path, 16_000, np.full(8_000, 1000, np.int16))
    artist = "Müller".encode("latin-1")
    info = b"INFO" + b"IART" + len(artist).to_bytes(4, "little") + artist
    data = path.read_bytes() + b"LIST" + len(info).to_bytes(4, "little") + info
    path.write_bytes(b"RIFF" + (len(data) - 8).to_bytes(4, "little") + data[8:])
    assert len(read_audio(path)) == 8_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("speech.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{}/secret.mp3\n#EXT-X-ENDLIST\n"),
        ("speech.wav", "ffconcat version 1.0\nfile secret.mp3\n"),
        ("speech.sdp", "v=0\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"),
    ],
    ids=["hls", "concat", "sdp"],
)
def test_no_file_is_read_because_another_names_it(tmp_path: Path, name: str, text: str) -> None:
    """A visitor's playlist of our own files would be heard in his browser."""
    with av.open(str(tmp_path / "secret.mp3"), "w") as container:
        stream = container.add_stream("mp3", rate=16_000, layout="mono")
        mux_sound(container, stream, np.ones(32_000, np.int16), {k: k / 50 for k in range(100)})
    (tmp_path / name).write_text(text.format(tmp_path))
    with pytest.raises(
        DataError, match=rf"{name}: is a playlist, which names other files; give the sound or the video"
    ):
        sound.Sound(tmp_path / name)


def test_what_can_be_read_but_once_is_refused_unread(tmp_path: Path) -> None:
    """A named pipe that nobody writes to is waited for without end."""
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", "/dev/null", "-"):
        with pytest.raises(DataError, match=f"^{path}: is a pipe or a device, .*; write it to a file first$"):
            sound.Sound(path)
    clipmaker.write_sound(tmp_path / "a.wav", np.ones(1600, np.float32))
    code = "from fiag_dist.media.sound import Sound\ntry: print(Sound('/dev/stdin').seconds)\nexcept Exception as e: print(e)"
    with (tmp_path / "a.wav").open("rb") as file:
        said = subprocess.run(
            [sys.executable, "-c", code], stdin=file, capture_output=True, text=True, timeout=60
        ).stdout
    assert said == "0.1\n", "a file by another name"
    piped = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True, timeout=60).stdout
    assert piped.startswith("/dev/stdin: is a pipe or a device")
