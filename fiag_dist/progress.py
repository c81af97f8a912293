"""How far a run is: on a terminal a bar that moves with every step, elsewhere a line at every report."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Bar:
    """A bar at the foot of a terminal; what is printed through the same console goes above it."""

    def __init__(self, console: Console, steps: int, done: int) -> None:
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TaskProgressColumn())
        self._progress = Progress(
            *columns, TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[numbers]}"), console=console
        )
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
