"""Speech features: what a frame hears, and that position and chunking don't show."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fiag_dist import weights
from fiag_dist.errors import ConfigError, DataError, WeightsError
from fiag_dist.ingest import huggingface, logmel, speech, sync

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


def test_silence_is_what_is_heard_when_the_used_sound_has_ended() -> None:
    wav = chirps(3)
    track, silence = speech.with_silence(wav, 50, 25, "mel")
    np.testing.assert_array_equal(track[:48], speech.features(wav, 50, 25, "mel")[:48])
    assert silence.shape == (25, *track.shape[1:])
    assert silence.astype(np.float32).std() < 0.01 * track.astype(np.float32).std()
    assert silence.mean() < track.mean()


def test_windows_pad_with_zeros() -> None:
    track = np.arange(1, 11, dtype=np.float16)[:, None, None] * np.ones((1, 2, 3), np.float16)
    assert speech.windows(track, 0)[:, 0, 0].tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    assert speech.windows(track, 5)[:, 1, 2].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert speech.windows(track, 9)[:, 0, 0].tolist() == [6, 7, 8, 9, 10, 0, 0, 0]


def test_unknown_extractor() -> None:
    with pytest.raises(ConfigError, match="whisper"):
        speech.dims("deepspeech")
    with pytest.raises(ConfigError, match="can't be had of other sound"):
        speech.features(chirps(1), 25, 25, "file:{stem}.npy")


def test_a_wav_is_heard_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    wav = chirps(7)
    whole = speech.features(wav, 175, 25, "mel")
    lengths = []
    original = logmel.log_mel

    def watched(wav: np.ndarray, start: int, stop: int) -> torch.Tensor:
        lengths.append(stop - start)
        return original(wav, start, stop)

    monkeypatch.setattr(logmel, "log_mel", watched)
    monkeypatch.setattr(logmel, "_PIECE", 110)
    np.testing.assert_array_equal(speech.features(wav, 175, 25, "mel"), whole)
    assert max(lengths) == 110


def test_mel_agrees_with_a_transform_of_the_whole() -> None:
    wav = torch.from_numpy(chirps(2))
    window = torch.hann_window(400)
    spectrum = torch.stft(wav, 400, 160, window=window, pad_mode="constant", return_complex=True)[:, :-1].abs().square()
    whole = (logmel._mel_filters() @ spectrum).clamp(min=1e-10).log10()
    torch.testing.assert_close(logmel.log_mel(wav.numpy(), 40, 90), whole[:, 40:90], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("swapped", [False, True])
def test_precomputed_features_are_taken_as_they_are(tmp_path: Path, swapped: bool) -> None:
    array = (
        np.random.default_rng(0).normal(size=(60, 16, 29)).astype(np.float32)
    )  # DeepSpeech, as the relatives store it
    np.save(tmp_path / "anna_ds.npy", array.transpose(0, 2, 1) if swapped else array)
    clip = tmp_path / "anna.mp4"
    pattern = "file:{folder}/{stem}_ds.npy"
    assert speech.dims(pattern, clip) == (29, 16)
    found = speech.stored(pattern, clip, 10, 40)
    np.testing.assert_array_equal(found, array[10:50].transpose(0, 2, 1).astype(np.float16))
    assert speech.stored(pattern, clip, 10, 52).shape == (52, 29, 16), "two missing frames are forgiven"
    assert speech.in_manifest(pattern) == "file:{stem}_ds.npy"
    taken, silence = speech.of_clip(pattern, np.zeros(0, np.float32), 40, 25, clip, 10)
    np.testing.assert_array_equal(taken, found)
    assert silence.shape == (0, 29, 16), "files do not say what silence sounds like"


def test_precomputed_features_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    clip, array = tmp_path / "anna.mp4", tmp_path / "anna.npy"
    pattern = "file:{folder}/{stem}.npy"
    with pytest.raises(
        DataError, match=r"anna\.mp4: its speech features can't be read from .*anna\.npy \(No such file"
    ):
        speech.dims(pattern, clip)
    array.write_bytes(b"no array")
    with pytest.raises(DataError, match=r"no \.npy array"):
        speech.dims(pattern, clip)
    np.save(array, np.zeros((40, 29), np.float32))
    with pytest.raises(DataError, match=r"an array \[40, 29\] of float32"):
        speech.dims(pattern, clip)
    np.save(array, np.full((40, 16, 29), np.nan, np.float32))
    with pytest.raises(DataError, match="holds NaN"):
        speech.stored(pattern, clip, 0, 40)
    with pytest.raises(DataError, match="features of 40 frames, 50 needed"):
        speech.stored(pattern, clip, 10, 40)
    with pytest.raises(ConfigError, match="one file for all clips"):
        speech.dims("file:/tmp/ds.npy", clip)


def test_without_its_library_an_extractor_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install transformers"):
        speech.dims("hf:facebook/hubert-large-ls960-ft")


def test_a_wav2vec2_from_a_folder_hears_alike_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        conv_dim=[16] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path)
    name = f"hf:{tmp_path}"
    assert speech.dims(name) == (32, 2)
    wav = chirps(9)
    whole = speech.features(wav, 225, 25, name).astype(np.float32)
    assert np.isfinite(whole).all()
    monkeypatch.setattr(huggingface, "_CHUNK_S", 5)
    monkeypatch.setattr(huggingface, "_OVERLAP_S", 2)
    pieces = speech.features(wav, 225, 25, name).astype(np.float32)
    assert np.square(pieces - whole).sum() < 0.1 * np.square(whole - whole.mean(0)).sum()
    with pytest.raises(ConfigError, match="can't be loaded"):
        speech.dims(f"hf:{tmp_path}/missing")


def mouth(late_frames: int, seed: int = 1, num: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """How far a mouth opens at 25 Hz while a mood opens it as well, and what is foretold of it by a sound that is so many frames late."""
    rng = np.random.default_rng(seed)
    syllables = np.convolve(rng.normal(size=num + 40), np.hanning(7), "valid")
    lips = syllables[20 : num + 20]
    return lips + 4 * np.sin(np.arange(num) / 60), syllables[20 - late_frames :][:num] + rng.normal(size=num)


@pytest.mark.parametrize("late", [-6, -2, 0, 3, 11])
def test_the_offset_of_sound_and_lips_is_found(late: int) -> None:
    found = sync.compare(*mouth(late))
    assert found.sure
    assert found.late_s == pytest.approx(late / 25, abs=0.02)
    assert found.correlation > 0.6


def test_offsets_between_two_frames_are_found() -> None:
    opening, _ = mouth(0)
    half = np.interp(np.arange(300) - 2.5, np.arange(300), opening)
    assert sync.compare(opening, half).late_s == pytest.approx(0.1, abs=0.01)


def test_lips_that_do_not_follow_the_sound_give_no_sure_offset() -> None:
    opening, _ = mouth(0)
    _, other = mouth(0, seed=2)
    assert not sync.compare(opening, other).sure
    assert not sync.compare(np.full(300, 0.1), other).sure, "a still mouth"
    assert sync.estimate(opening[:70], chirps(4), 25) is None, "too short to tell"


def test_offsets_beyond_those_that_are_searched_are_not_sure() -> None:
    assert not sync.compare(*mouth(18)).sure


def test_early_sound_is_moved_back() -> None:
    np.testing.assert_array_equal(sync.corrected(np.ones(10, np.float32), -0.2, 10), [0, 0, *[1] * 10])


def test_missing_weights_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
