"""What people see while identities are adapted: a live table on a terminal, a line now and then elsewhere."""

import time
from collections import Counter
from dataclasses import dataclass, replace
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from fiag_dist.adaptation.job import Progress
from fiag_dist.monitoring.progress import Pace, clock_text

WAITING, STARTING, AGAIN, BEHIND, DONE, FAILED = (
    "waiting",
    "starting",
    "to be tried again",
    "left behind",
    "done",
    "failed",
)
LINE_EVERY_S = 30.0
"""Where there is no terminal: no identity says more often how far it is."""
REFRESHES_HZ = 2
LAST_ENDED = 5
"""Identities below the running ones, those that ended last."""
SPARE_LINES = 8
"""Of the terminal's height, for titles and counts."""


@dataclass(frozen=True)
class Row:
    """One identity, or one sample of it."""

    state: str = WAITING
    progress: Progress | None = None
    began: float = 0.0
    """When its trial started."""
    pace: Pace | None = None
    """Of its training, once that has said which step it goes on from."""
    ends: float | None = None
    """When that will be at its end."""
    ended: float = 0.0
    note: str = ""

    @property
    def is_running(self) -> bool:
        return self.state not in (WAITING, AGAIN, BEHIND, DONE, FAILED)


class Standings:
    """Rows by name. `with standings:` shows them until the body ends."""

    def __init__(self, names: list[str], console: Console) -> None:
        self.rows = dict.fromkeys(names, Row())
        self._console = console
        self._spoke: dict[str, float] = {}
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=REFRESHES_HZ, transient=True)

    def __enter__(self) -> "Standings":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def add(self, names: list[str]) -> None:
        """More rows: samples of a search."""
        self.rows |= dict.fromkeys(names, Row())

    def drop(self, names: list[str]) -> None:
        """Those rows have had their time."""
        for name in names:
            del self.rows[name]

    def started(self, name: str) -> None:
        self.rows[name] = Row(STARTING, began=time.monotonic())

    def moved(self, name: str, progress: Progress) -> None:
        row, now = self.rows[name], time.monotonic()
        pace = row.pace or Pace(progress.steps)
        left_s = pace.left_s(progress.step)
        ends = None if left_s is None else now + left_s
        self.rows[name] = replace(row, state=progress.state, progress=progress, pace=pace, ends=ends)
        if now - self._spoke.get(name, row.began) > LINE_EVERY_S:
            score = "" if progress.psnr_db is None else f", {progress.psnr_db:.2f} dB on held-out frames"
            self._say(name, f"{progress.state}, step {progress.step} of {progress.steps}{score}")

    def ended(self, name: str) -> None:
        """Its trial ended, before its last step if it is a sample that others left behind."""
        row, now = self.rows[name], time.monotonic()
        state = BEHIND if row.progress and row.progress.step < row.progress.steps else DONE
        self.rows[name] = replace(row, state=state, ended=now)
        self._say(name, f"{state} after {clock_text(now - row.began)} ({self._counts()})")

    def failed(self, name: str, why: str, again: bool) -> None:
        """Its trial died; `again`: it has another try before it."""
        state = AGAIN if again else FAILED
        self.rows[name] = replace(self.rows[name], state=state, ended=time.monotonic(), note=why)
        self._say(name, f"{state}: {why}")

    def render(self) -> RenderableType:
        """Running rows, as many as the terminal has room for, the last that ended, and how many there are of each kind."""
        running = [(name, row) for name, row in self.rows.items() if row.is_running]
        ended = sorted((r for r in self.rows.items() if r[1].ended), key=lambda item: item[1].ended)[-LAST_ENDED:]
        room = max(1, self._console.height - SPARE_LINES - len(ended))
        table = Table("identity", Column("state", no_wrap=True), box=SIMPLE_HEAD, pad_edge=False)
        for title in ("step", "PSNR, dB", "left"):
            table.add_column(title, justify="right")
        for name, row in [*running[:room], *(item for item in ended if not item[1].is_running)]:
            table.add_row(*_cells(name, row), style="dim" if row.state in (DONE, BEHIND) else None)
        lines: list[RenderableType] = [table]
        if len(running) > room:
            lines.append(Text(f"and {len(running) - room} more at work"))
        return Group(*lines, Text(self._counts()))

    def _counts(self) -> str:
        counts = Counter("at work" if row.is_running else row.state for row in self.rows.values())
        order = (DONE, "at work", WAITING, BEHIND, AGAIN, FAILED)
        said = ", ".join(f"{counts[state]} {state}" for state in order if counts[state])
        return f"{said}; {len(self.rows)} in all"

    def _say(self, name: str, what: str) -> None:
        self._spoke[name] = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"  {name}: {what}", soft_wrap=True, markup=False)


def _cells(name: str, row: Row) -> list[str]:
    progress = row.progress
    step = f"{progress.step}/{progress.steps}" if progress else ""
    state = f"{row.state}: {row.note}" if row.state in (FAILED, AGAIN) else row.state
    score = f"{progress.psnr_db:.2f}" if progress and progress.psnr_db is not None else ""
    left = clock_text(max(0, row.ends - time.monotonic())) if row.is_running and row.ends is not None else ""
    return [name, state, step, score, left]
