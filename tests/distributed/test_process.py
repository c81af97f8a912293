"""What ranks do together, with real ones; and what one process does alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import Ranks

from fiag_dist.dist import process
from fiag_dist.dist.process import Process, StopSignal
from fiag_dist.errors import DistributedError


def together(me: Process) -> dict[str, object]:
    tensor = torch.tensor([1.0, 10.0]) * (me.rank + 1)
    return {
        "process": (me.rank, me.world, str(me.device), me.is_first),
        "broadcast": process.broadcast_object({"from": me.rank}),
        "gathered": process.all_gather_object(("of", me.rank)),
        **{op: process.all_reduce(tensor.clone(), op).tolist() for op in ("sum", "mean", "max", "min")},
        "threads": torch.get_num_threads(),
        "cores": sorted(os.sched_getaffinity(0)),
    }


def test_two_ranks_share_what_they_have(two: Ranks) -> None:
    first, second = two.run(together)
    assert first["process"] == (0, 2, "cpu", True)
    assert second["process"] == (1, 2, "cpu", False)
    for answer in (first, second):
        assert answer["broadcast"] == {"from": 0}
        assert answer["gathered"] == [("of", 0), ("of", 1)]
        assert answer["sum"] == [3.0, 30.0]
        assert answer["mean"] == [1.5, 15.0]
        assert answer["max"] == [2.0, 20.0]
        assert answer["min"] == [1.0, 10.0]
        assert answer["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)
    everybody = sorted(os.sched_getaffinity(0))
    if len(everybody) > 1:
        assert first["cores"] + second["cores"] == everybody, "each stays on cores of its own"


def test_a_world_of_one_needs_no_launcher(one: Ranks) -> None:
    (answer,) = one.run(together)
    assert answer["process"] == (0, 1, "cpu", True)
    assert answer["gathered"] == [("of", 0)]
    assert answer["mean"] == [1.0, 10.0]
    assert answer["threads"] == 1, "OMP_NUM_THREADS holds where no launcher set it"


def stop_after(me: Process, number: int | None, rank: int) -> list[bool]:
    """Whether each step's end is the last one; `rank` is signalled in step 1."""
    stop, answers = StopSignal(), []
    try:
        for step in range(3):
            if step == 1 and me.rank == rank and number is not None:
                os.kill(os.getpid(), number)
            answers.append(stop.agreed())
    finally:
        stop.close()
    return answers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(two: Ranks, number: int) -> None:
    assert two.run(stop_after, number, 1) == [[False, True, True]] * 2
    assert two.run(stop_after, None, 1) == [[False] * 3] * 2


def test_a_second_interrupt_does_not_wait_for_the_step() -> None:
    before = signal.getsignal(signal.SIGINT)  # a shell ignores it for what it starts in the background
    stop = StopSignal()
    try:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.close()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_stops_what_does_not_ignore_it(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else lambda *_: None)
    stop = StopSignal()
    try:
        signal.raise_signal(signal.SIGHUP)
        assert stop.requested is not ignored
    finally:
        stop.close()
        signal.signal(signal.SIGHUP, before)


WAITING = """
import sys, threading, time
from datetime import timedelta
import torch.distributed as dist
from fiag_dist.dist import process

store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=0.3))

def wait():
    while True:
        try:
            store.get("what nobody sets")
        except RuntimeError:
            pass

class Slow:
    def __del__(self):
        time.sleep(1)  # while the interpreter shuts down, the thread comes back from torch

sys.modules["slow"] = Slow()
threading.Thread(target=wait, daemon=True).start()
time.sleep(0.1)
print("done", end="")
LEAVE
"""


@pytest.mark.parametrize(("leave", "status"), [("process.leave(3)", 3), ("sys.exit(3)", -signal.SIGABRT)])
def test_a_rank_leaves_before_threads_of_torch_can_abort_it(leave: str, status: int) -> None:
    """Beside what it is for: without it, torch ends the process."""
    words = [sys.executable, "-c", WAITING.replace("LEAVE", leave)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (status, "done"), done.stderr


def die_or_wait(me: Process, folder: Path) -> None:
    if me.rank == 1:
        os._exit(1)
    try:
        process.all_gather_object(me.rank)
    except DistributedError as error:
        (folder / "said").write_text(str(error))


def test_a_lost_peer_is_named_and_nothing_hangs(tmp_path: Path) -> None:
    ranks = Ranks(2)
    try:
        with pytest.raises(EOFError):  # rank 1 is gone
            ranks.run(die_or_wait, tmp_path)
    finally:
        ranks.close()
    assert "rank 0 of 2: all_gather_object failed" in (tmp_path / "said").read_text()


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(DistributedError, match=r"WORLD_SIZE, LOCAL_RANK, .* not set while RANK are.*torchrun"):
        process.start()
