"""Speech features: what a frame hears, and that position and chunking don't show."""

import numpy as np
import pytest

from fiag_dist import weights
from fiag_dist.errors import ConfigError, WeightsError
from fiag_dist.ingest import speech

RATE = speech.SAMPLE_RATE


def chirps(seconds: float, seed: int = 0) -> np.ndarray:
    """Something like syllables: tones of changing pitch with pauses."""
    rng = np.random.default_rng(seed)
    pieces = []
    while sum(map(len, pieces)) < seconds * RATE:
        length = int(rng.uniform(0.08, 0.25) * RATE)
        phase = 2 * np.pi * np.cumsum(np.linspace(*rng.uniform(120, 2500, 2), length)) / RATE
        pieces += [
            np.hanning(length) * np.sin(phase) * rng.uniform(0.2, 0.8),
            np.zeros(int(rng.uniform(0.02, 0.2) * RATE)),
        ]
    return np.concatenate(pieces)[: int(seconds * RATE)].astype(np.float32)


def test_mel_has_the_agreed_shape_and_scale() -> None:
    track = speech.features(chirps(4), 100, 25, "mel")
    assert track.shape == (100, *speech.dims("mel")) == (100, 80, 4)
    assert track.dtype == np.float16
    assert abs(float(track.mean(dtype=np.float64))) < 1.5
    assert 0.3 < float(track.std(dtype=np.float64)) < 2.0


def test_a_click_is_heard_by_its_own_frame() -> None:
    wav = np.zeros(2 * RATE, np.float32)
    wav[int(1.0 * RATE) : int(1.01 * RATE)] = 0.5
    for fps in (25, 30):
        loudness = speech.features(wav, 2 * fps, fps, "mel").astype(np.float32).mean((1, 2))
        assert int(loudness.argmax()) == fps


def test_frames_after_the_sound_hear_silence_and_loudness_does_not_matter() -> None:
    wav = chirps(1)
    track = speech.features(wav, 50, 25, "mel").astype(np.float32)
    assert track[30:].std() < 0.01 * track[:25].std()
    assert np.abs(speech.features(wav * 0.25, 25, 25, "mel").astype(np.float32) - track[:25]).mean() < 0.05


def test_windows_pad_with_zeros() -> None:
    track = np.arange(1, 11, dtype=np.float16)[:, None, None] * np.ones((1, 2, 3), np.float16)
    assert speech.windows(track, 0)[:, 0, 0].tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    assert speech.windows(track, 5)[:, 1, 2].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert speech.windows(track, 9)[:, 0, 0].tolist() == [6, 7, 8, 9, 10, 0, 0, 0]


def test_unknown_extractor() -> None:
    with pytest.raises(ConfigError, match="whisper"):
        speech.dims("deepspeech")


def test_missing_weights_name_the_command(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIAG_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="fiag-dist weights fetch"):
        speech.features(chirps(1), 25, 25, "whisper")


@pytest.mark.weights
@pytest.mark.skipif(not weights.present("whisper-tiny-en"), reason="needs: fiag-dist weights fetch")
def test_whisper_features_do_not_depend_on_where_in_the_file_a_sound_is() -> None:
    wav = chirps(34)
    track = speech.features(wav, 850, 25, "whisper").astype(np.float32)
    assert track.shape == (850, *speech.dims("whisper"))
    later = speech.features(wav[10 * RATE :], 600, 25, "whisper").astype(np.float32)
    same, other = track[275:825] - track[275:825].mean(0), later[25:575] - track[275:825].mean(0)
    # 0.43 without the position bias taken out; the joint of two chunks (26 to 30 s) lies inside.
    assert np.square(same - other).sum() / np.square(same).sum() < 0.2
