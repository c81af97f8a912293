"""A lip-sync score of our own: does the mouth open when the sound says so, and when? It is no Sync-C and is not named so.

A ridge regression from speech features to how far lips are open, learnt from true frames of people, says how far the lips should be open at every
moment of a sound. The rendered mouth is compared with that: the best correlation within 0.4 s, at which lag, and the same for a rolled sound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float16, Float64

from fiag_dist.errors import DataError
from fiag_dist.ingest.lips import around
from fiag_dist.ingest.sync import followed

LAG_S = 0.4
ROLLS = 12
"""How many rolled sounds the true one is compared with."""
_TAPS = (-4, -2, -1, 0, 1, 2, 4)
"""Frames around a moment that are heard for it."""
_RIDGE = 30_000.0
"""Of standardised features, chosen on eleven true videos, each judged by the ten others: 0.48, 0.57, 0.60 for 300, 3 000, 30 000."""
_MOST_FRAMES = 4000
_FEWEST_FRAMES = 100


@dataclass(frozen=True)
class Match:
    """How well a mouth follows a sound."""

    score: float
    """Highest correlation over all lags, -1..1."""
    lag_s: float
    """Where it is; above 0 when the mouth is late."""


class Judge:
    """Knows how far lips open at a sound. Raises DataError when there are too few frames to learn from."""

    def __init__(
        self,
        speech: Sequence[Float16[np.ndarray, "frames dim window"]],
        openings: Sequence[Float[np.ndarray, " frames"]],
    ) -> None:
        """speech, openings: of each person's true video; openings are taken as deviations of that person's own."""
        X_ND = np.concatenate([around(track, _TAPS) for track in speech])
        y_N = np.concatenate([(o - o.mean()) / max(float(o.std()), 1e-6) for o in openings])
        if len(y_N) < _FEWEST_FRAMES:
            raise DataError(
                f"lip sync: {len(y_N)} true frames to learn from, {_FEWEST_FRAMES} needed; pack more or longer clips"
            )
        keep = np.linspace(0, len(y_N) - 1, min(len(y_N), _MOST_FRAMES)).round().astype(int)
        X_ND, y_N = X_ND[keep], y_N[keep]
        self._mean, self._deviation = X_ND.mean(0), X_ND.std(0) + 1e-3
        X_ND = (X_ND - self._mean) / self._deviation
        # Fewer frames than features: the dual form is the smaller system.
        dual_N = np.linalg.solve(X_ND @ X_ND.T + _RIDGE * np.eye(len(y_N)), y_N)
        self._weights = X_ND.T @ dual_N

    def openings(self, track: Float16[np.ndarray, "frames dim window"]) -> Float64[np.ndarray, " frames"]:
        """How far lips should be open at each frame of a sound, in deviations."""
        return (around(track, _TAPS) - self._mean) / self._deviation @ self._weights


def match(mouth: Float[np.ndarray, " frames"], expected: Float[np.ndarray, " frames"], fps: float) -> Match:
    """The lag within LAG_S at which the mouth follows best."""
    reach = round(LAG_S * fps)
    lags = range(-reach, reach + 1)
    values = [followed(mouth, expected, -lag) for lag in lags]  # a mouth that is late: a sound that is early
    best = int(np.argmax(values))
    return Match(values[best], lags[best] / fps)


def rolled(
    mouth: Float[np.ndarray, " frames"], expected: Float[np.ndarray, " frames"], fps: float
) -> Float64[np.ndarray, " rolls"]:
    """Scores, as `match` gives them, against the same sound started elsewhere and closed to a ring: what chance reaches."""
    reach = round(LAG_S * fps)
    starts = np.linspace(2 * reach, len(expected) - 2 * reach, ROLLS).round().astype(int)
    return np.array([match(mouth, np.roll(expected, start), fps).score for start in starts])
