"""The GPU check's report: one JSON file that is whole after every part, whatever becomes of the next one; and the time that a part may take."""

import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fiag_dist.bench.rounding import rounded

LEAST_S = 5.0
"""A part is not begun with less time left than this."""


class OutOfTime(BaseException):
    """A part took longer than it may. No Exception: what catches those inside a part must not swallow it."""


class Report:
    """The parts of a check, run one after the other within a budget, each with its numbers or the line of its error.

    A part is `passed`, `failed` (its numbers say so), `error` (it raised) or `left out`. The file is written anew after each.
    """

    def __init__(self, out: Path, about: dict[str, Any], budget_s: float):
        self._out, self._end = out, time.monotonic() + budget_s
        self.content: dict[str, Any] = {"passed": False, **about, "parts": {}}
        self._write()

    @property
    def left_s(self) -> float:
        return self._end - time.monotonic()

    def part(self, name: str, limit_s: float, run: Callable[[], dict[str, Any]], *after: str) -> None:
        """Runs a part for at most `limit_s` seconds; its result is a failure when it has `passed` and that is false.

        after: parts without whose success this one is left out.
        """
        allowed_s, began = min(limit_s, self.left_s), time.monotonic()
        lacking = [other for other in after if self.content["parts"][other]["state"] != "passed"]
        if lacking:
            found: dict[str, Any] = {"state": "left out", "why": f"it needs what did not pass: {', '.join(lacking)}"}
        elif allowed_s < LEAST_S:
            found = {"state": "left out", "why": f"{max(self.left_s, 0):.0f} s of the budget were left"}
        else:
            print(f"gpu_check: {name} (at most {allowed_s:.0f} s)", flush=True)
            found = _found(run, allowed_s)
        found["seconds"] = time.monotonic() - began
        self.content["parts"][name] = found
        self.content["passed"] = all(part["state"] == "passed" for part in self.content["parts"].values())
        reason = found.get({"error": "error", "left out": "why"}.get(found["state"], ""), "")
        print(f"gpu_check: {name}: {found['state']} {reason}".rstrip(), flush=True)
        self._write()

    def _write(self) -> None:
        self._out.parent.mkdir(parents=True, exist_ok=True)
        part = self._out.with_name(f".part-{self._out.name}")
        part.write_text(json.dumps(rounded(self.content), indent=1) + "\n")
        part.replace(self._out)


def _found(run: Callable[[], dict[str, Any]], allowed_s: float) -> dict[str, Any]:
    try:
        with _time_guard(allowed_s):
            result = run()
    except (Exception, OutOfTime) as error:
        return {"state": "error", "error": _one_line(error), "at": _where(error)}
    return {"state": "passed" if result.pop("passed", True) else "failed"} | result


@contextmanager
def _time_guard(limit_s: float) -> Iterator[None]:
    """Raises OutOfTime in the body when it takes longer. An alarm that was set before goes on afterwards."""

    def stop(*_: Any) -> None:
        raise OutOfTime(f"longer than its {limit_s:.0f} s")

    handler = signal.signal(signal.SIGALRM, stop)
    began = time.monotonic()
    before_s, _ = signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if before_s:
            signal.setitimer(signal.ITIMER_REAL, max(before_s - (time.monotonic() - began), 0.01))


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _where(error: BaseException) -> list[str]:
    """The last calls before the error, outermost first."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
