"""How long ranks talk: by the clock on a CPU, by marks in the queue of work on a GPU, for which nobody has to wait."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


class Stopwatch:
    """Adds up the time of what it watches."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Counts its body."""
        began = self._mark()
        yield
        self._spans.append((began, self._mark()))

    @contextmanager
    def watch_end_of(self, context: AbstractContextManager[object]) -> Iterator[None]:
        """Runs its body within `context`, and counts what `context` does when the body is done."""
        with context:
            yield
            began = self._mark()
        self._spans.append((began, self._mark()))

    def take_s(self) -> float:
        """Seconds since the last call."""
        spans, self._spans = self._spans, []
        return sum(_seconds(*span) for span in spans)

    def _mark(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds(began: float | torch.cuda.Event, ended: float | torch.cuda.Event) -> float:
    if isinstance(began, float) and isinstance(ended, float):
        return ended - began
    assert isinstance(began, torch.cuda.Event)
    assert isinstance(ended, torch.cuda.Event)
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3
