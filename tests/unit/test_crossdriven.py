"""Another person's voice: which one is chosen, what the judge makes of a mouth that follows it, and what silence is."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_identity as tiny

from fiag_dist.acting.synthesize import Identity
from fiag_dist.errors import DataError
from fiag_dist.evaluation import crossdriven
from fiag_dist.evaluation.crossdriven import SpeechTest
from fiag_dist.ingest import lips
from fiag_dist.metrics.faces import Seen
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.shards.reader import FrameReader
from fiag_dist.storage import open_storage

ROOT = Path(__file__).parents[2]
FPS, SECONDS, LATE = 25, 4.4, 2


@pytest.fixture(autouse=True)
def ears(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge hears what the shards hold: log-mel energies say enough of a made-up voice, and need no weights."""
    monkeypatch.setattr(lips, "EARS", "mel")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three small demo heads, whose mouths follow a voice."""
    out = tmp_path_factory.mktemp("crossdriven") / "shards"
    words = ["--out", str(out), "--identities", "3", "--seconds", str(SECONDS), "--size", "32", "--jobs", "1"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(ROOT / "shards" / "make_demo.py"), *words], check=True, env=env)
    return str(out)


@pytest.fixture(scope="module")
def speech_test(shards: str) -> SpeechTest:
    """One for all tests: its judge is trained once."""
    return SpeechTest(shards)


@pytest.fixture(scope="module")
def identity(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A head that has learnt nothing, called as one of the people in the shards."""
    home = tmp_path_factory.mktemp("identity")
    identity = Identity.load(tiny.make_identity(home / "ball", tiny.pack(home / "data")))
    identity.info = replace(identity.info, name="demo_00")
    return identity


def puppet(openings: np.ndarray) -> Callable[[np.ndarray], Seen | None]:
    """A face finder that sees, in picture after picture, a mouth that is open so far; no face where that is NaN."""
    series = iter(openings)

    def find(image: np.ndarray) -> Seen | None:
        opening = next(series)
        points = np.zeros((478, 2))
        points[263, 0], points[14, 1] = 1.0, opening
        return None if np.isnan(opening) else Seen(points, {})

    return find


def openings_of(shards: str, name: str) -> np.ndarray:
    storage = open_storage(shards)
    return FrameReader(storage, read_manifest(storage).entry(name)).mouth_open.astype(float)


def test_a_mouth_that_follows_late_is_told_from_chance_and_from_silence(
    shards: str, speech_test: SpeechTest, identity: Identity
) -> None:
    voice = openings_of(shards, "demo_01")  # of equally long clips the first that is not its own
    speaking = np.roll(voice, LATE)
    speaking[10:14] = np.nan  # frames without a face
    silence = np.full(round(crossdriven.SILENCE_S * FPS), 0.01)
    silence[: round(crossdriven.SETTLING_S * FPS)] = 1.0  # may still be closing
    numbers = speech_test.numbers(identity, puppet(np.concatenate([speaking, silence])))
    assert numbers["speech_voice"] == "demo_01"
    assert numbers["speech_lag_ms"] == pytest.approx(1000 * LATE / FPS)
    assert numbers["speech_score"] == pytest.approx(numbers["speech_score_true_video"], abs=0.1)
    assert numbers["speech_score"] > numbers["speech_score_rolled"] + 0.3
    assert numbers["speech_rolls_beaten_share"] == 1.0
    assert numbers["speech_opening_in_silence_eye_distances"] == pytest.approx(0.01)
    closed = numbers["speech_opening_closed_eye_distances"]
    assert closed == pytest.approx(np.percentile(openings_of(shards, "demo_00"), 5))
    assert numbers["speech_opening_eye_distances"] == pytest.approx(np.nanmean(speaking), rel=0.1)


def test_a_given_sound_is_the_voice_and_another_mouth_does_not_follow_it(
    shards: str, identity: Identity, tmp_path: Path
) -> None:
    import wave

    samples = (np.tile(tiny.voice(2.0), 2) * 32767).astype("<i2")
    with wave.open(str(tmp_path / "voice.wav"), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(16000)
        stream.writeframes(samples.tobytes())
    num = round(4 * FPS) + round(crossdriven.SILENCE_S * FPS)
    mouth = np.random.default_rng(0).random(num)
    numbers = SpeechTest(shards, tmp_path / "voice.wav").numbers(identity, puppet(mouth))
    assert numbers["speech_voice"] == "voice.wav"
    assert numbers["speech_score_true_video"] is None  # there is no video of it
    assert numbers["speech_score"] < 0.6
    assert numbers["speech_rolls_beaten_share"] < 1.0


def test_what_cannot_be_tested_is_said(speech_test: SpeechTest, identity: Identity, tmp_path: Path) -> None:
    nobody = np.full(1000, np.nan)
    with pytest.raises(DataError, match="a face found in 0 of 160 frames"):
        speech_test.numbers(identity, puppet(nobody))
    alone = tiny.pack(tmp_path / "alone", "demo_00")
    with pytest.raises(DataError, match=r"the only one in .*; give one: --audio WAV"):
        SpeechTest(alone).numbers(identity, puppet(nobody))
    short = tiny.pack(tmp_path / "short", "other")
    with pytest.raises(DataError, match=r"voice other: 1\.8 s; speech metrics need 3 s"):
        SpeechTest(short).numbers(identity, puppet(nobody))
