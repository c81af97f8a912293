"""Checkpoints written by several ranks: one folder that knows nothing of them."""

from pathlib import Path

import pytest
import torch
from ranks import Ranks

from fiag_dist.dist import saving
from fiag_dist.dist.checkpoint import load, newest
from fiag_dist.dist.process import Process
from fiag_dist.dist.saving import save
from fiag_dist.errors import CheckpointError, DataError
from fiag_dist.storage import LocalStorage, UnreachableError, open_storage

SHARED = {"weight": torch.arange(4.0)}
NAMES = {0: ("anna", "carl"), 1: ("bob",)}


class NoRoom(LocalStorage):
    """A rank's disk that takes no identity."""

    def write(self, path: str, data: bytes) -> None:
        if "identities" in path:
            raise DataError(f"{path}: the disk is full")
        super().write(path, data)


class NoAnswer(LocalStorage):
    """A place that one rank can't reach."""

    def write(self, path: str, data: bytes) -> None:
        if "identities" in path:
            raise UnreachableError(f"{path}: 503 SlowDown")
        super().write(path, data)


def save_own(me: Process, url: str, step: int, of_second: type[LocalStorage] = LocalStorage) -> str:
    storage = of_second(url) if me.rank == 1 else open_storage(url)
    own = {"rank": torch.tensor([me.rank])}
    people = {name: {"owner": torch.tensor([me.rank]), "embedding": torch.ones(2)} for name in NAMES[me.rank]}
    try:
        return save(storage, "checkpoints", step, SHARED, own, people, {"note": "x"}, me, keep=1)
    except (CheckpointError, UnreachableError) as error:
        return f"{type(error).__name__}: {error}"


def save_apart(me: Process, url: str) -> str:
    saving.SEEN_WITHIN_S = 1.0
    return save_own(me, f"{url}/{me.rank}", 1)


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
    first, second = two.run(save_own, str(tmp_path), 2, NoRoom)
    assert first == second
    assert first.startswith("CheckpointError: checkpoint of step 2: rank 1 could not write: ")
    assert newest(open_storage(tmp_path), "checkpoints") == "checkpoints/step-00000001"
    assert two.run(save_own, str(tmp_path), 2) == ["checkpoints/step-00000002"] * 2


def test_a_place_that_does_not_answer_is_another_error_which_is_tried_again(two: Ranks, tmp_path: Path) -> None:
    first, second = two.run(save_own, str(tmp_path), 1, NoAnswer)
    assert first == second
    assert first.startswith("UnreachableError: checkpoint of step 1: rank 1 could not write: checkpoints/")


def test_nodes_that_share_no_folder_are_told_at_their_first_checkpoint(two: Ranks, tmp_path: Path) -> None:
    first, second = two.run(save_apart, str(tmp_path))
    assert first == second
    assert "rank 0 could not write" in first
    assert "was written by another node, and is not there for this one; give --runs that all nodes share" in first
    assert newest(open_storage(tmp_path / "0"), "checkpoints") is None


@pytest.mark.parametrize("step", [7])
def test_a_commit_comes_after_all_parts(two: Ranks, tmp_path: Path, step: int) -> None:
    two.run(save_own, str(tmp_path), step)
    folder = tmp_path / f"checkpoints/step-{step:08d}"
    commit = (folder / "COMMIT.json").stat().st_mtime_ns
    assert all(file.stat().st_mtime_ns <= commit for file in folder.rglob("*.safetensors"))
