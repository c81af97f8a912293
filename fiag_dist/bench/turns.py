"""Launches of several ranks each take turns on one machine, so that a minute in which it is slow is slow for all of them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fiag_dist.dist import process
from fiag_dist.dist.process import Process

LOOK_S = 0.002
"""How often the first rank of a launch looks whether its turn has come; the others wait for it in a barrier."""


@dataclass(frozen=True)
class Turns:
    """One launch's view of a file that counts the turns taken so far, by all launches, from 0: player i has turns i, i + players, i + 2 players ..."""

    path: Path
    player: int
    players: int

    @contextmanager
    def mine(self, here: Process) -> Iterator[None]:
        """The body runs on all ranks of this launch, and on no other launch."""
        if here.is_first:
            while self._taken() % self.players != self.player:
                time.sleep(LOOK_S)
        process.barrier()
        yield
        process.barrier()
        if here.is_first:
            new = self.path.with_suffix(".new")
            new.write_text(str(self._taken() + 1))
            new.replace(self.path)

    def _taken(self) -> int:
        return int(self.path.read_text())
