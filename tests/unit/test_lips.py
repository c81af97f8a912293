"""benchmarks/lips.py: a reading of lips from sound, learnt from people whose sound is late."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_identity

from fiag_dist.errors import DataError
from fiag_dist.ingest import lips, sync
from fiag_dist.shards.manifest import read_manifest, write_manifest
from fiag_dist.shards.reader import read_meta
from fiag_dist.storage import open_storage

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import lips as fitting


def test_what_lips_follow_is_learnt() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=80)
    people = [(heard := rng.normal(size=(400, 80)), heard @ weights + rng.normal(size=400)) for _ in range(4)]
    reading = fitting.fit(people)
    fresh = rng.normal(size=(400, 80))
    assert np.corrcoef(fresh @ reading, fresh @ weights)[0, 1] > 0.8


class Made(fitting.Person):
    """Somebody whose lips follow what is heard, which comes `shift` frames late."""

    def __init__(self, seed: int, weights: np.ndarray, shift: int) -> None:
        rng = np.random.default_rng(seed)
        self._shift = shift
        self._said = np.apply_along_axis(np.convolve, 0, rng.normal(size=(260, len(weights))), np.hanning(5), "same")
        super().__init__(wav=np.zeros(1, np.float32), opening=self._said @ weights)

    def heard(self) -> np.ndarray:
        return np.roll(self._said, self._shift - round(self.late_s * lips.FPS), 0)


def test_a_sound_that_is_late_among_others_is_moved_to_its_lips() -> None:
    weights = np.random.default_rng(7).normal(size=80)
    people = {f"person_{seed}": Made(seed, weights, shift=5 if seed == 2 else 0) for seed in range(5)}
    for _ in range(2):
        fitting.move(people)
    for name, person in people.items():
        assert person.late_s == pytest.approx(5 / lips.FPS if name == "person_2" else 0.0, abs=0.01)


def test_the_reading_that_comes_with_the_package_fits_what_is_heard() -> None:
    reading = np.load(lips.FILE)
    assert reading.shape == (len(lips.TAPS) * 384,)
    assert reading.dtype == np.float32
    assert np.isfinite(reading).all()


@pytest.mark.weights
@pytest.mark.clips
def test_what_is_expected_moves_with_the_sound_and_rests_in_silence(clips: Path) -> None:
    from fiag_dist.media.sound import read_audio

    wav = read_audio(clips / "anchor_a.mp4")[: 10 * 16_000]
    expected = lips.expected(wav, 250)
    late = lips.expected(np.pad(wav, (1600, 0)), 250)
    found = sync.compare(expected, late)
    assert found.sure
    assert found.late_s == pytest.approx(0.1, abs=0.02)
    quiet = lips.expected(np.zeros(160_000, np.float32), 250)
    assert quiet.std() < 0.3 * expected.std()


def test_fewer_than_three_people_are_refused(tmp_path: Path) -> None:
    data = tiny_identity.pack(tmp_path, "anna", "bert")
    with pytest.raises(DataError, match="2 people named; three or more"):
        fitting.main(["--data", data, "--identities", "anna", "bert"])


def test_people_of_another_frame_rate_are_refused(tmp_path: Path) -> None:
    data = tiny_identity.pack(tmp_path, "anna", "bert", "carl")
    write_manifest(open_storage(data), dataclasses.replace(read_manifest(data), fps=30))
    with pytest.raises(DataError, match="30 frames a second; pack the clips with --fps 25"):
        fitting.main(["--data", data, "--identities", "anna", "bert", "carl"])


def test_a_sound_that_was_moved_already_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    storage = open_storage(tiny_identity.pack(tmp_path, "anna"))
    entry = read_manifest(storage).entry("anna")
    meta = read_meta(storage, entry)
    moved = dataclasses.replace(meta, report={"sound": {"late_s": 0.1, "fixed": True}})
    monkeypatch.setattr(fitting, "read_meta", lambda *_: moved)
    with pytest.raises(DataError, match="anna: its sound was moved already; pack the clips with --no-fix-sync"):
        fitting.read(storage, entry)
