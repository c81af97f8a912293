"""Checkpoints written by several ranks: one folder that knows nothing of them."""

from pathlib import Path

import pytest
import torch
from ranks import Ranks

from fiag_dist.dist.checkpoint import load, newest
from fiag_dist.dist.process import Process
from fiag_dist.dist.saving import save
from fiag_dist.errors import CheckpointError, DataError
from fiag_dist.storage import LocalStorage, open_storage

SHARED = {"weight": torch.arange(4.0)}
NAMES = {0: ("anna", "carl"), 1: ("bob",)}


class NoRoom(LocalStorage):
    """A rank's disk that takes no identity."""

    def write(self, path: str, data: bytes) -> None:
        if "identities" in path:
            raise DataError(f"{path}: the disk is full")
        super().write(path, data)


def save_own(me: Process, url: str, step: int, full: bool = False) -> str:
    storage = NoRoom(url) if full and me.rank == 1 else open_storage(url)
    own = {"rank": torch.tensor([me.rank])}
    people = {name: {"owner": torch.tensor([me.rank]), "embedding": torch.ones(2)} for name in NAMES[me.rank]}
    try:
        return save(storage, "checkpoints", step, SHARED, own, people, {"note": "x"}, me, keep=1)
    except CheckpointError as error:
        return str(error)


def test_every_rank_writes_its_own_and_anyone_reads_all(two: Ranks, tmp_path: Path) -> None:
    assert two.run(save_own, str(tmp_path), 3) == ["checkpoints/step-00000003"] * 2
    found = load(open_storage(tmp_path), "checkpoints/step-00000003")
    assert (found.world, found.info) == (2, {"note": "x"})
    assert torch.equal(found.shared["weight"], SHARED["weight"])
    assert found.optim["rank"] == 0
    assert {name: int(found.identities[name]["owner"]) for name in found.identities} == {"anna": 0, "carl": 0, "bob": 1}
    assert [*found.embeddings] == ["anna", "bob", "carl"]


def test_one_rank_without_room_is_an_error_on_all_and_costs_nothing(two: Ranks, tmp_path: Path) -> None:
    two.run(save_own, str(tmp_path), 1)
    first, second = two.run(save_own, str(tmp_path), 2, True)
    assert first == second
    assert first.startswith("checkpoint of step 2: rank 1 could not write: ")
    assert newest(open_storage(tmp_path), "checkpoints") == "checkpoints/step-00000001"
    assert two.run(save_own, str(tmp_path), 2) == ["checkpoints/step-00000002"] * 2


@pytest.mark.parametrize("step", [7])
def test_a_commit_comes_after_all_parts(two: Ranks, tmp_path: Path, step: int) -> None:
    two.run(save_own, str(tmp_path), step)
    folder = tmp_path / f"checkpoints/step-{step:08d}"
    commit = (folder / "COMMIT.json").stat().st_mtime_ns
    assert all(file.stat().st_mtime_ns <= commit for file in folder.rglob("*.safetensors"))
