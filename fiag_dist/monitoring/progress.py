"""How far a run is: on a terminal a bar that moves with every step, elsewhere a line at every report; and how long the rest takes."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn


class Pace:
    """How long a run still takes, at the speed of its steps since it was first asked: what comes before the first report is mostly start and compiling.

    The first steps of a training may render nothing, and what they take says little of those that follow: until these come, what is said
    is a lower bound, and then speed is theirs alone.
    """

    def __init__(self, steps: int, unrendered: int = 0) -> None:
        """steps: of the whole run. unrendered: how many of its first steps are without images."""
        self._steps, self._unrendered = steps, unrendered
        self._from, self._began = -1, 0.0

    def left_s(self, step: int) -> float | None:
        """Seconds, or None before there is a speed and when `steps` is 0, not known. step: how many are done."""
        now = time.monotonic()
        if self._from < 0 or self._from < self._unrendered <= step:
            self._from, self._began = step, now
        if step <= self._from or not self._steps:
            return None
        return (now - self._began) / (step - self._from) * max(0, self._steps - step)

    def left(self, step: int) -> str:
        """The same for people: 0:20:30, over 0:05:00, or nothing."""
        seconds = self.left_s(step)
        if seconds is None:
            return ""
        return ("over " if step < self._unrendered else "") + clock_text(seconds)


class Bar:
    """A bar at the foot of a terminal; what is printed through the same console goes above it."""

    def __init__(self, console: Console, steps: int, done: int) -> None:
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TaskProgressColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=console)
        self._task = self._progress.add_task("", total=steps, completed=done, numbers="")
        self._progress.start()

    def advance(self, step: int) -> None:
        """A step is done."""
        self._progress.update(self._task, completed=step)

    def report(self, numbers: str) -> None:
        """Puts the newest numbers beside the bar."""
        self._progress.update(self._task, numbers=numbers)

    def close(self) -> None:
        """Leaves the bar where it is."""
        self._progress.stop()


def clock_text(seconds: float) -> str:
    """1:02:03."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
