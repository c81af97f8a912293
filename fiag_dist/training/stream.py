"""Which frame of an identity is trained when: an endless stream of its own."""

from collections.abc import Sequence

import numpy as np

SWEPT_SHARE = 0.1
"""Of an identity's frames: the window within which a frame of the curriculum is drawn."""


class Stream:
    """Training positions of one identity: every frame once an epoch, in an order that only (seed, name, epoch) decides.

    every: each so-many-th draw is one of the curriculum's beside these, 0: none. openings: how far mouth and eyes are open at each of `positions`.
    """

    def __init__(
        self, positions: np.ndarray, seed: int, name: str, every: int = 0, openings: Sequence[np.ndarray] = ()
    ):
        self._positions, self._seed, self._name = positions, seed, list(name.encode())
        self._epoch, self._order = -1, positions
        self._every = every
        self._by_opening = [positions[np.argsort(opening, kind="stable")] for opening in openings if every]

    def position(self, count: int) -> int:
        """The frame of draw number `count`."""
        if self._every:
            turn, place = divmod(count, self._every)
            if place == self._every - 1:
                return self._swept(turn)
            count -= turn
        epoch, place = divmod(count, len(self._positions))
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                np.random.default_rng((self._seed, epoch, *self._name)).permutation(self._positions),
            )
        return int(self._order[place])

    def _swept(self, turn: int) -> int:
        """Draw number `turn` of the curriculum: any frame of a window that slides from closed to open and back, over the mouth's openings, then the eyes'.

        Windows are of ranks, not of degrees of opening: a clip without a blink has them as well.
        """
        num = len(self._positions)
        sweep, place = divmod(turn, num)
        ordered = self._by_opening[sweep // 2 % len(self._by_opening)]
        width = max(round(SWEPT_SHARE * num), 1)
        first = round((num - width) * (place if sweep % 2 == 0 else num - 1 - place) / max(num - 1, 1))
        return int(ordered[first + np.random.default_rng((self._seed, turn, 0, *self._name)).integers(width)])
