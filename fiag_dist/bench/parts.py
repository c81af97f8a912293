"""Where the time of a training step goes: stopwatches around what the loop calls, put there for a while and taken away again."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fiag_dist.bench.contest import now_s
from fiag_dist.training import losses
from fiag_dist.training.step import Training

PARTS = (
    "data",
    "forward_identity",
    "forward_motion",
    "forward_raster",
    "losses",
    "backward",
    "optimizer",
    "personal_optimizer",
    "rest",
)
"""`data`: waiting for the feed. `forward_raster`: all of the forward pass but IE-Net and the motion networks, so colours, projection, blending.
`optimizer`: the engine's step without the backward pass. `rest`: statistics for densification, moving averages, the log's numbers."""


@dataclass
class _Part:
    name: str
    began_s: float
    inner_s: float = 0.0


class Stopwatch:
    """Milliseconds by part; time in an inner part is not the outer one's."""

    def __init__(self) -> None:
        self.found_ms: dict[str, float] = {}
        self._open: list[_Part] = []

    @contextmanager
    def part(self, name: str, inside: str = "") -> Iterator[None]:
        """Counts its body as `name`; with `inside`, only directly within that part, and as the surrounding part elsewhere."""
        if inside and (not self._open or self._open[-1].name != inside):
            yield
            return
        part = _Part(name, now_s())
        self._open.append(part)
        try:
            yield
        finally:
            self._open.pop()
            took_s = now_s() - part.began_s
            self.found_ms[name] = self.found_ms.get(name, 0.0) + 1e3 * (took_s - part.inner_s)
            if self._open:
                self._open[-1].inner_s += took_s

    def take(self) -> dict[str, float]:
        """The times since the last call."""
        found, self.found_ms = self.found_ms, {}
        return {name: found.get(name, 0.0) for name in PARTS}


@contextmanager
def watched(training: Training) -> Iterator[Stopwatch]:
    """A stopwatch that runs while `training` learns. `rest` is what the body itself counts around a step."""
    watch = Stopwatch()
    head, universal = training.head, training.head.universal
    with ExitStack() as stack:
        # A name twice: where it is looked up, and what it is a part of. Networks are called by the losses as well, and count as losses there.
        for owner, method, part, inside in (
            (head, "forward", "forward_raster", ""),
            (head, "person", "forward_identity", "forward_raster"),
            (head, "drive", "forward_motion", "forward_raster"),
            (universal, "move", "forward_motion", "forward_raster"),
            (universal.mouth, "forward", "forward_motion", "forward_raster"),
            (losses, "compute", "losses", ""),
            (training.engine, "backward_and_step", "optimizer", ""),
            (torch.autograd, "backward", "backward", "optimizer"),
            (training.pool, "step", "personal_optimizer", ""),
        ):
            stack.enter_context(_around(owner, method, watch, part, inside))
        yield watch


@contextmanager
def _around(owner: Any, name: str, watch: Stopwatch, part: str, inside: str) -> Iterator[None]:
    """`owner.name` counts as `part` in the body."""
    original: Callable = getattr(owner, name)
    was_own = name in vars(owner)

    def timed(*args: Any, **kwargs: Any) -> Any:
        with watch.part(part, inside):
            return original(*args, **kwargs)

    setattr(owner, name, timed)
    try:
        yield
    finally:
        if was_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
