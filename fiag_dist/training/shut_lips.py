"""A person's shut lips: in which frames they are shut, and where they are then. Every clip shows them, although few show a silence."""

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from fiag_dist.landmarks import LIPS, UPPER_LIP, UPPER_LIP_EDGE
from fiag_dist.shards.reader import FrameReader

SHARE = 0.05
"""Share of a person's frames in which the mouth is taken for shut: those in which it is least open, within the bounds below."""
SHUT, HARDLY_SHUT = 0.012, 0.03
"""A mouth that is no more open than the first is always taken for shut, one that is more open than the second never; distances between the outer eye
corners."""
FRAMES = 5
"""From which shut lips are known, at most."""


class ShutLips:
    """positions: of the frames to learn from; their landmarks are read when they are first asked for, and stay on `device`."""

    def __init__(self, reader: FrameReader, positions: Int[np.ndarray, " n"], device: torch.device | str = "cpu"):
        self._reader, self._positions, self._device = reader, positions, device
        openings = reader.mouth_open[positions]
        self.below = float(np.clip(np.quantile(openings, SHARE), SHUT, HARDLY_SHUT))
        """The opening up to which this mouth is taken for shut, distances between the outer eye corners."""
        self.frames: Int[np.ndarray, " shut"] = positions[openings <= self.below]
        """Positions of the frames in which it is; none where this mouth never shuts."""

    @cached_property
    def lips(self) -> Float[Tensor, "lips 3"]:
        """Where this person's LIPS are when they meet: as in the frames in which they are least open, what is left of the gap closed; metres, head frame."""
        openings = self._reader.mouth_open[self._positions]
        least = np.argsort(openings, kind="stable")[:FRAMES]
        least = least[: max(int((openings[least] <= self.below).sum()), 1)]
        tracked = [self._reader.landmarks(int(p))[list(LIPS)] for p in self._positions[least]]
        return torch.from_numpy(met(np.stack(tracked).mean(0))).to(self._device)


def met(lips: Float32[np.ndarray, "lips 3"]) -> Float32[np.ndarray, "lips 3"]:
    """LIPS whose inner edges meet half-way; the outer edges go along."""
    inner, outer = len(UPPER_LIP), len(UPPER_LIP_EDGE)
    upper, upper_edge, lower, lower_edge, corners = np.split(lips, np.cumsum([inner, outer, inner, outer]))
    half = (upper - lower) / 2
    return np.concatenate([upper - half, upper_edge - half, lower + half, lower_edge + half, corners])
