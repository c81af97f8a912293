"""Ends a run that stands still, and says which rank is stuck, in which step and where: nobody waits overnight for a rank that hangs.

In each rank a thread watches how long the steps of the main thread take. When one takes too long, it looks at what the main thread is doing:
- It computes, reads or sleeps: the other ranks wait for this one. The thread says where it is, and ends the process at once.
- It waits for other ranks: the thread gives the one that is stuck time to say so first. Then it says which ranks give no sign of life, and ends the process.
torchrun then starts all ranks again.
Work within a step that takes long but gets on, as a look at many people does, says so with `alive`: the others then go on waiting for it.
"""

import math
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fiag_dist.dist.process import Process, is_talking, new_store

NO_ANSWER = "the first node does not answer: it is down, or the network between is cut"
LEAVE_S = 2.0
"""How long the end of a run waits for a thread that is in the store: longer only where the store's machine has gone."""
GO_ON = "start again, and the run goes on from its newest checkpoint"


_alive_s = -math.inf


def alive() -> None:
    """A sign of life within a step, from the thread that trains: from here, the step may take as long again."""
    global _alive_s
    _alive_s = time.monotonic()


@dataclass(frozen=True)
class Beat:
    """The end of a step."""

    step: int
    at_s: float
    """Monotonic time."""
    allowed_s: float
    """How long the next step may take."""


class Heartbeat:
    """Watches the steps of the thread that makes it, until `close`."""

    def __init__(
        self,
        process: Process,
        first_s: float,
        later_s: float,
        step: int = 0,
        period_s: float = 1.0,
        grace_s: float = 10.0,
    ) -> None:
        """first_s, later_s: seconds that the first step, which compiles, and the others may take. step: steps done so far.

        period_s: between two signs of life. grace_s: how long a rank that waits lets the one it waits for speak first.
        """
        self._process, self._first_s, self._later_s = process, first_s, later_s
        self._period_s, self._grace_s = period_s, grace_s
        self._watched = threading.get_ident()
        self._beat = Beat(step, time.monotonic(), first_s)
        self._closed = threading.Event()
        self._signs = new_store("heartbeat", timeout_s=grace_s)
        self._threads = [
            threading.Thread(target=work, name="heartbeat", daemon=True) for work in (self._give_signs, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def beat(self, step: int, patient: bool = False) -> None:
        """Says that `step` steps are done. patient: the next one may take as long as the first."""
        self._beat = Beat(step, time.monotonic(), self._first_s if patient else self._later_s)

    def close(self) -> None:
        """Watches no more; its threads end first."""
        self._closed.set()
        for thread in self._threads:
            thread.join(LEAVE_S)

    def _give_signs(self) -> None:
        """Goes on also while `_watch` waits for the others: a rank that waits is not silent."""
        count = 0
        while self._signs and not self._closed.wait(self._period_s if count else 0):
            count += 1
            try:
                self._signs.set(f"{self._process.rank}", f"{count} {_age_s(self._beat):.3f}")
            except RuntimeError:  # the store has gone: that is said when this rank's step takes too long
                return

    def _watch(self) -> None:
        while not self._closed.wait(self._period_s):
            beat = self._beat
            if _age_s(beat) > beat.allowed_s:
                self._end(beat)

    def _end(self, beat: Beat) -> None:
        """Ends the process, unless the step ends while it waits for the others to speak, or one of them is still getting on."""
        waits, place = _place(sys._current_frames()[self._watched])
        if not waits:
            self._leave(
                beat, f"it is at {place}; look there, or raise step_timeout_s if a step may take so long; {GO_ON}"
            )
        found: list[str | None] = []  # by a thread of its own: a store behind a cut cable may never answer
        threading.Thread(target=lambda: found.append(self._silent(beat.allowed_s)), daemon=True).start()
        if self._closed.wait(self._grace_s) or self._beat is not beat or _age_s(beat) <= beat.allowed_s:
            return
        text = found[0] if found else NO_ANSWER
        if text is not None:
            self._leave(beat, f"it waits at {place}; {text}; look there first; {GO_ON}")

    def _leave(self, beat: Beat, text: str) -> NoReturn:
        here, late_s = self._process, _age_s(beat)
        print(
            f"fiag-dist: rank {here.rank} of {here.world}: step {beat.step + 1} takes {late_s:.0f} s, {beat.allowed_s:g} s are allowed: {text}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # the main thread may be deep in a call that never returns

    def _silent(self, allowed_s: float) -> str | None:
        """Which ranks have stopped to give signs of life; None where one of the others gets on with what may take `allowed_s`."""
        try:
            before = self._signs_of_all()
            time.sleep(3 * self._period_s)
            after = self._signs_of_all()
        except RuntimeError:  # the store is on another machine
            return NO_ANSWER
        living = {rank for rank, signs in enumerate(zip(before, after, strict=True)) if len(set(signs)) > 1}
        if any(float(after[rank].split()[1]) <= allowed_s for rank in living - {self._process.rank}):
            return None
        found = [f"rank {rank}" for rank in range(len(after)) if rank not in living]
        if found:
            return f"no sign of life from {', '.join(found)}: its machine is down, the network between is cut, or it is stuck"
        return "all ranks give signs of life"

    def _signs_of_all(self) -> list[str]:
        return [self._signs.get(f"{rank}").decode() for rank in range(self._process.world)] if self._signs else []


def _age_s(beat: Beat) -> float:
    """Seconds since `beat`, or the sign of life after it."""
    return time.monotonic() - max(beat.at_s, _alive_s)


def _place(frame: FrameType | None) -> tuple[bool, str]:
    """Whether the training thread, at `frame`, waits for other ranks, and the line of this package that it is at."""
    waits = is_talking()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        waits = waits or module.startswith("torch.distributed.")
        if module.startswith("fiag_dist.") or frame.f_back is None:
            return waits, f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return waits, "an unknown place"
