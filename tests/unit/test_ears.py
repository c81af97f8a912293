"""The linear reading of speech: exact where lips follow it, nothing where they do not, and better for somebody's own seconds."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_identity
from made_shards import make, manifest_of

from fiag_dist.errors import DataError
from fiag_dist.shards.manifest import write_manifest
from fiag_dist.shards.writer import write_identity
from fiag_dist.storage import open_storage

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import ears


def people(lips_of: dict[str, np.ndarray], follow: float) -> dict[str, ears.Person]:
    rng = np.random.default_rng(0)
    out = {}
    for who, weights in lips_of.items():
        heard = rng.normal(size=(400, 12))
        out[who] = ears.Person(heard, follow * heard @ weights + (1 - follow) * rng.normal(size=400), 125, 175)
    return out


def scores(found: dict[str, ears.Person]) -> tuple[float, float]:
    components = ears.whitened(found, 12)
    return ears.correlations(found, {who: p.heard @ components for who, p in found.items()}, 12.0)


def test_lips_that_follow_speech_alike_are_foretold_for_who_was_left_out() -> None:
    weights = np.random.default_rng(1).normal(size=12)
    without, with_own = scores(people(dict.fromkeys("abcd", weights), follow=1.0))
    assert min(without, with_own) > 0.98
    assert abs(scores(people(dict.fromkeys("abcd", weights), follow=0.0))[0]) < 0.2


def test_who_speaks_otherwise_needs_own_seconds() -> None:
    weights = np.random.default_rng(1).normal(size=(4, 12))
    without, with_own = scores(people(dict(zip("abcd", weights, strict=True)), follow=1.0))
    assert with_own > without + 0.2


def test_the_command_reads_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_storage(tmp_path)
    entries = [write_identity(store, *make(name, seed), 10) for seed, name in enumerate(["anna", "bert", "carl"])]
    write_manifest(store, manifest_of(*entries))
    assert ears.main(["--data", str(tmp_path), "--extractors", "mel", "--components", "4", "8"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["extractor"], row["components"]) for row in rows] == [("mel", 4), ("mel", 8)]
    assert all(-1 <= row["left_out"] <= 1 for row in rows)


def test_still_lips_tell_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 people whose lips move"):
        ears.main(["--data", tiny_identity.pack(tmp_path, "anna", "bert", "carl"), "--extractors", "mel"])
