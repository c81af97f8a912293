"""How far many clips are, and how long the rest will take."""

import time
from collections.abc import Mapping

from fiag_dist.shards.packing import Work

LEAST_DONE = 0.02
"""Share of the work from which on the time left is estimated."""


class Far:
    """Which of the clips are finished, and since when they are at work."""

    def __init__(self, todo: list[Work]) -> None:
        self.finished = set[int]()
        self._todo, self._began = todo, time.perf_counter()

    def line(self, at_work: Mapping[int, float]) -> str:
        """`2 of 12 clips done; anchor_a 45%, b 12%; about 6 min left`. Clips are taken to need time in proportion to their bytes.

        at_work: the shares done, 0..1, by number.
        """
        shares = [1.0 if i in self.finished else at_work.get(i, 0.0) for i in range(len(self._todo))]
        busy = [f"{self._todo[i].name} {share:.0%}" for i, share in enumerate(shares) if 0 < share < 1]
        weights = [max(1, work.source.bytes) for work in self._todo]
        done = sum(share * weight for share, weight in zip(shares, weights, strict=True)) / sum(weights)
        parts = [f"{len(self.finished)} of {len(shares)} clips done"] if len(shares) > 1 else []
        parts += [", ".join(busy)] if busy else []
        if done > LEAST_DONE:
            parts.append(f"about {_duration((time.perf_counter() - self._began) * (1 - done) / done)} left")
        return "; ".join(parts) or "starting"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{max(1, round(seconds))} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
