"""A rank that hangs ends the run with a line that names it, the step and the place; so does one that has gone."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from ranks import Ranks

from fiag_dist.dist import process
from fiag_dist.dist.heartbeat import Heartbeat, alive
from fiag_dist.dist.process import Process
from fiag_dist.storage.retry import judge_local, persist


@pytest.fixture
def pair() -> Iterator[Ranks]:
    """Two ranks that do not come back."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def train(me: Process, fault: str) -> int:
    """Five steps; rank 1 stops in the third."""
    process.barrier()
    with closing(Heartbeat(me, first_s=30.0, later_s=1.0, period_s=0.1, grace_s=1.5)) as heartbeat:
        for step in range(5):
            if me.rank == 1 and step == 2 and fault.startswith("reads for ever"):
                time.sleep(0.4)
                heartbeat.beat(step)  # so its time is up after that of the one who waits
                persist("s3://far/away", "reading", lambda: time.sleep(60), judge_local)
            if me.rank == 1 and step == 2 and fault == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if me.rank == 1 and step == 2 and fault == "late, but within what is allowed":
                time.sleep(0.5)
            if me.rank == 1 and step == 2 and fault.startswith("looks at many people"):
                for _ in range(10):
                    time.sleep(0.4)
                    alive()
                if fault.endswith("and hangs"):
                    time.sleep(60)
            if me.rank == 0 and step == 2 and fault == "reads for ever, and the other waits for its GPU":
                with process.talking():  # as where NCCL has returned, and the result is read
                    time.sleep(60)
            process.all_gather_object(step)
            heartbeat.beat(step + 1)
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
    return step + 1


def test_steps_that_end_in_time_are_left_alone(two: Ranks, capfd: pytest.CaptureFixture[str]) -> None:
    assert two.run(train, "late, but within what is allowed") == [5, 5]
    assert capfd.readouterr().err == ""


def test_a_rank_that_takes_long_but_gets_on_is_waited_for(two: Ranks, capfd: pytest.CaptureFixture[str]) -> None:
    assert two.run(train, "looks at many people") == [5, 5]
    assert capfd.readouterr().err == ""


def lines_of(pair: Ranks, fault: str, capfd: pytest.CaptureFixture[str], count: int) -> list[str]:
    """What the ranks said until `count` of them had ended."""
    with pytest.raises((EOFError, ConnectionResetError, AssertionError)):  # gone, or an error as the peer has gone
        pair.run(train, fault)
    said, until = "", time.monotonic() + 10
    while said.count("fiag-dist: rank") < count and time.monotonic() < until:
        time.sleep(0.05)
        said += capfd.readouterr().err
    return [line for line in said.splitlines() if line.startswith("fiag-dist: rank")]


@pytest.mark.parametrize("fault", ["reads for ever", "reads for ever, and the other waits for its GPU"])
def test_a_rank_that_hangs_is_the_first_to_say_where(
    pair: Ranks, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    first = lines_of(pair, fault, capfd, 1)[0]
    assert first.startswith("fiag-dist: rank 1 of 2: step 3 takes 1 s, 1 s are allowed: it is at retry.py:")
    assert "(persist)" in first


def test_a_rank_that_got_on_and_then_hangs_is_ended(pair: Ranks, capfd: pytest.CaptureFixture[str]) -> None:
    first = lines_of(pair, "looks at many people, and hangs", capfd, 1)[0]
    assert first.startswith("fiag-dist: rank 1 of 2: step 3 takes 1 s, 1 s are allowed: it is at ")


def test_a_rank_that_gives_no_sign_is_named_by_the_others(pair: Ranks, capfd: pytest.CaptureFixture[str]) -> None:
    (line,) = lines_of(pair, "stopped", capfd, 1)
    assert line.startswith("fiag-dist: rank 0 of 2: step 3 takes ")
    assert "it waits at process.py:" in line
    assert "(all_gather_object); no sign of life from rank 1: " in line
