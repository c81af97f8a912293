"""status.json of a run: what it last said of itself, and enough to tell whether whoever said so is still there."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from fiag_dist.dist.process import Process
from fiag_dist.errors import ConfigError, DataError
from fiag_dist.storage import Storage

FILE = "status.json"
State = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Status:
    """One word of a run about itself."""

    state: State
    step: int
    steps: int
    """Of the whole run."""
    host: str
    pid: int
    """Of rank 0."""
    born: str | None
    """When that process started, as its host's kernel counts: numbers of processes are used again."""
    said: str
    """When, UTC, ISO 8601."""
    every_s: float = 0.0
    """Seconds since the word before: another one can be expected after as many."""
    error: str = ""

    @property
    def said_at(self) -> datetime:
        return datetime.fromisoformat(self.said)

    @property
    def is_here(self) -> bool | None:
        """Whether the process that said so lives; None when it ran on another machine."""
        return None if self.host != platform.node() else self.born is not None and born(self.pid) == self.born


class Teller:
    """Keeps status.json up to date; rank 0 writes, the others say nothing."""

    def __init__(self, storage: Storage, process: Process, steps: int) -> None:
        self._storage, self._writes, self._steps = storage, process.is_first, steps
        self._last: Status | None = None

    def say(self, state: State, step: int, error: str = "") -> None:
        """Writes down where the run is. Raises DataError when the run folder can't be reached."""
        if not self._writes:
            return
        now, pid = datetime.now(UTC), os.getpid()
        said = now.isoformat(timespec="seconds")
        status = Status(
            state=state,
            step=step,
            steps=self._steps,
            host=platform.node(),
            pid=pid,
            born=born(pid),
            said=said,
            error=error,
        )
        if self._last:
            status = replace(status, every_s=(now - self._last.said_at).total_seconds())
        self._storage.write(FILE, (json.dumps(asdict(status), indent=1) + "\n").encode())
        self._last = status

    def failed(self, error: BaseException) -> None:
        """Writes down what ended the run, if that still can be."""
        step = self._last.step if self._last else 0
        try:
            self.say("failed", step, f"{type(error).__name__}: {error}".splitlines()[0])
        except DataError as unreachable:
            error.add_note(f"{FILE} still says that the run is running: {unreachable}")


@contextmanager
def told(storage: Storage, process: Process, step: int, steps: int) -> Iterator[Teller]:
    """Says that the run is running, and, when the body raises, why it is not any more."""
    teller = Teller(storage, process, steps)
    teller.say("running", step)
    try:
        yield teller
    except BaseException as error:
        teller.failed(error)
        raise


def read(storage: Storage, folder: str = "") -> Status | None:
    """The last word of the run in `folder`; None when it left none, or none that can be read."""
    path = f"{folder}/{FILE}".lstrip("/")
    if not storage.exists(path):
        return None
    try:
        return Status(**json.loads(storage.read(path)))
    except (ValueError, TypeError):
        return None


def refuse_a_second(storage: Storage) -> None:
    """Raises ConfigError when another process of this machine is at work on the run."""
    last = read(storage)
    if last and last.state == "running" and last.is_here and last.pid != os.getpid():
        raise ConfigError(
            f"{storage.url}: is being trained already, by process {last.pid} of this machine; wait for it, end it, or give another --name"
        )


def born(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks since the machine did; None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
