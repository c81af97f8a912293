"""What lips do, foretold from what is heard: a linear reading, by ridge regression over everybody's footage."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from fiag_dist.landmarks import INNER_LIP_BOTTOM, INNER_LIP_TOP, LEFT_LIP_CORNER, RIGHT_LIP_CORNER

ENDS = ((INNER_LIP_TOP, INNER_LIP_BOTTOM), (RIGHT_LIP_CORNER, LEFT_LIP_CORNER))
"""Between which landmarks the motions are measured: how far lips open, and how far they are spread."""
MOTIONS = len(ENDS)
RIDGE = 300.0
"""As many frames of whitened speech in which lips stand still are taken to have been seen before the first one."""


class LipReader(nn.Module):
    """Keeps the sums over frames that the regression is solved from, and no frame: they travel in a checkpoint, and somebody new is added to them.

    dim: of what is heard.
    """

    scatter: Tensor
    product: Tensor
    weights: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("scatter", torch.zeros(dim, dim))
        self.register_buffer("product", torch.zeros(dim, MOTIONS))
        self.register_buffer("weights", torch.zeros(dim, MOTIONS))

    @torch.no_grad()
    def add(self, heard_TD: Float[Tensor, "frames dim"], motions_TM: Float[Tensor, "frames motions"], weight: float):
        """Learns from frames of which each counts as `weight`. motions_TM: as `motions` finds them."""
        heard = heard_TD.double()
        self.scatter += weight * (heard.T @ heard)
        self.product += weight * (heard.T @ motions_TM.double())
        ridge = RIDGE * torch.eye(len(self.scatter), dtype=heard.dtype, device=heard.device)
        self.weights.copy_(torch.linalg.solve(self.scatter.double() + ridge, self.product.double()))

    def forward(self, heard_D: Float[Tensor, " dim"]) -> Float[Tensor, " motions"]:
        """In deviations of whoever speaks, from the mean."""
        return heard_D @ self.weights


def motions(landmarks: Sequence[Float32[np.ndarray, "478 3"]]) -> Float32[np.ndarray, "frames motions"]:
    """What one person's lips do in each frame, in deviations from this person's mean: people open their mouths more or less, to the same words."""
    tracked = np.stack(landmarks).astype(np.float64)
    measured = np.stack([np.linalg.norm(tracked[:, a] - tracked[:, b], axis=1) for a, b in ENDS], 1)
    return ((measured - measured.mean(0)) / np.maximum(measured.std(0), 1e-6)).astype(np.float32)
