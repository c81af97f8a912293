"""Saving in the background: from a copy, one at a time, committed when every rank's parts are written, and failed on all ranks alike."""

import threading
import time
from pathlib import Path

import pytest
import torch
from ranks import Ranks

from fiag_dist.dist.checkpoint import COMMIT, load, newest
from fiag_dist.dist.process import Process, barrier
from fiag_dist.dist.saving import Saved, Saver
from fiag_dist.errors import CheckpointError, DataError, DistributedError
from fiag_dist.storage import LocalStorage, open_storage

FOLDER = "checkpoints"


class SlowStorage(LocalStorage):
    """A disk that takes nothing of an identity until it is told to, and then takes it or is full."""

    def __init__(self, folder: str, full: bool = False) -> None:
        super().__init__(folder)
        self.opened = threading.Event()
        self._full = full

    def write(self, path: str, data: bytes) -> None:
        if "identities" in path:
            self.opened.wait()
            if self._full:
                raise DataError(f"{path}: the disk is full")
        super().write(path, data)


def tensors(me: Process, value: float) -> tuple[dict, dict, dict]:
    return (
        {"w": torch.full((3,), value)},
        {"w:exp_avg": torch.full((3,), value)},
        {f"of{me.rank}": {"net": torch.ones(2)}},
    )


def poll_until(saver: Saver, reports: list[Saved], count: int) -> int:
    """Steps' ends until `count` saves are committed."""
    polls = 0
    while len(reports) < count:
        saver.poll()
        time.sleep(0.01)
        polls += 1
    return polls


def in_background(me: Process, url: str) -> dict[str, object]:
    storage, reports = SlowStorage(url), []
    saver = Saver(storage, FOLDER, me, report=reports.append)
    shared, optim, people = tensors(me, 1.0)
    saver.begin(10, shared, optim, people, {})
    shared["w"] += 5.0  # training goes on
    people[f"of{me.rank}"]["net"] += 5.0
    for _ in range(10):
        saver.poll()
        time.sleep(0.01)
    early = len(reports), (Path(url) / FOLDER / "step-00000010" / COMMIT).exists()
    if me.rank == 0:
        storage.opened.set()  # the other rank's parts are still missing
    for _ in range(10):
        saver.poll()
        time.sleep(0.01)
    between = len(reports), (Path(url) / FOLDER / "step-00000010" / COMMIT).exists()
    barrier()
    storage.opened.set()
    poll_until(saver, reports, 1)
    saver.begin(10, *tensors(me, 2.0), {})  # saved last: not saved again
    saver.finish()
    return {"early": early, "between": between, "reports": reports}


def test_training_goes_on_while_a_copy_is_written_and_the_commit_waits_for_all(two: Ranks, tmp_path: Path) -> None:
    first, second = two.run(in_background, str(tmp_path))
    for answer in (first, second):
        assert answer["early"] == (0, False)
        assert answer["between"] == (0, False)
        (saved,) = answer["reports"]
        assert (saved.step, saved.folder) == (10, "checkpoints/step-00000010")
        assert saved.waited_s < saved.seconds / 2
    assert first["reports"][0].fingerprint == second["reports"][0].fingerprint
    found = load(open_storage(tmp_path), "checkpoints/step-00000010")
    assert torch.equal(found.shared["w"], torch.ones(3))
    assert {name: found.identities[name]["net"].tolist() for name in found.identities} == {"of0": [1, 1], "of1": [1, 1]}


def one_after_the_other(me: Process, url: str) -> list[int]:
    storage, reports = SlowStorage(url), []
    saver = Saver(storage, FOLDER, me, keep=1, keep_every=20, report=reports.append)
    for step in (10, 20, 30, 40, 50):
        threading.Timer(0.05, storage.opened.set).start()
        saver.begin(step, *tensors(me, step), {})
        assert len(reports) == step // 10 - 1, "a save began before the one before had ended"
    saver.finish()
    return [saved.step for saved in reports]


def test_one_save_at_a_time_and_the_newest_and_every_nth_stay(two: Ranks, tmp_path: Path) -> None:
    assert two.run(one_after_the_other, str(tmp_path)) == [[10, 20, 30, 40, 50]] * 2
    assert sorted(p.name for p in (tmp_path / FOLDER).iterdir()) == [f"step-000000{step}" for step in (20, 40, 50)]


def failing(me: Process, url: str) -> tuple[str, int]:
    storage = SlowStorage(url, full=me.rank == 1)
    saver = Saver(storage, FOLDER, me)
    saver.begin(20, *tensors(me, 2.0), {})
    storage.opened.set()
    for polls in range(1000):
        try:
            saver.poll()
        except CheckpointError as error:
            saver.finish()  # nothing is under way any more
            return str(error), polls
        time.sleep(0.01)
    raise AssertionError("the failure never came up")


def test_a_failure_in_the_thread_comes_up_between_steps_on_all_ranks(two: Ranks, tmp_path: Path) -> None:
    two.run(in_background, str(tmp_path))
    (first, when), other = two.run(failing, str(tmp_path))
    assert (first, when) == other
    assert first.startswith("checkpoint of step 20: rank 1 could not write: ")
    assert "the disk is full; the checkpoints before it are untouched" in first
    assert newest(open_storage(tmp_path), FOLDER) == "checkpoints/step-00000010"


def differing(me: Process, url: str) -> str:
    saver = Saver(open_storage(url), FOLDER, me)
    saver.begin(30, *tensors(me, 1.0 + me.rank), {})
    with pytest.raises(DistributedError) as caught:
        saver.finish()
    return str(caught.value)


def test_ranks_that_have_drifted_apart_commit_nothing(two: Ranks, tmp_path: Path) -> None:
    first, second = two.run(differing, str(tmp_path))
    assert first == second
    assert first.startswith("step 30: shared parameters differ between ranks (")
    assert newest(open_storage(tmp_path), FOLDER) is None
