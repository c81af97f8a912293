"""The Global Gaussian Field: one set of raw parameters per branch, shared by all identities (model.md 2.2)."""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import KDTree
from torch import Tensor, nn

from fiag_dist.types import SH_DC, Gaussians

PARAMETERS = ("means", "quats", "log_scales", "opacities", "sh_dc", "sh_rest")


class GaussianField(nn.Module):
    """Gaussians of one branch in rows 0 .. live-1 of tensors of fixed capacity.

    Fixed capacity keeps the optimiser's sharded state valid while the field grows and shrinks; rows beyond `live` have no gradient and no moments.
    """

    live: Tensor

    def __init__(self, capacity: int, sh_degree: int):
        super().__init__()
        num_rest = (sh_degree + 1) ** 2 - 1
        self.means = nn.Parameter(torch.zeros(capacity, 3))
        self.quats = nn.Parameter(torch.zeros(capacity, 4))
        self.log_scales = nn.Parameter(torch.zeros(capacity, 3))
        self.opacities = nn.Parameter(torch.zeros(capacity))
        self.sh_dc = nn.Parameter(torch.zeros(capacity, 3))
        self.sh_rest = nn.Parameter(torch.zeros(capacity, num_rest, 3))
        self.register_buffer("live", torch.zeros((), dtype=torch.int64))
        self._counted: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        # Read from the device only after it changed: a GPU would have to be waited for.
        key = (id(self.live), self.live._version)
        if self._counted is None or self._counted[:2] != key:
            self._counted = (*key, int(self.live))
        return self._counted[2]

    @property
    def capacity(self) -> int:
        return len(self.means)

    @torch.no_grad()
    def fill(self, means_N3: Float[np.ndarray, "n 3"], colors_N3: Float[np.ndarray, "n 3"], opacity: float) -> None:
        """Starts the field: isotropic Gaussians as large as the mean distance to their three nearest, colours 0..1."""
        num = len(means_N3)
        assert num <= self.capacity, f"{num} points, capacity {self.capacity}"
        self.means[:num] = torch.from_numpy(np.asarray(means_N3, np.float32))
        self.quats[:num] = torch.tensor([1.0, 0, 0, 0])
        self.log_scales[:num] = torch.from_numpy(np.log(spacing(means_N3)).astype(np.float32))[:, None]
        self.opacities[:num] = math.log(opacity / (1 - opacity))
        self.sh_dc[:num] = torch.from_numpy(((np.asarray(colors_N3) - 0.5) / SH_DC).astype(np.float32))
        self.live.fill_(num)

    def gaussians(self) -> Gaussians:
        """The living Gaussians, canonical: nobody's yet."""
        return Gaussians(**{name: getattr(self, name)[: len(self)] for name in PARAMETERS})


def spacing(points_N3: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    """Mean distance of each point to its three nearest, 0.5 to 20 mm: how large a first Gaussian is; metres."""
    return KDTree(points_N3).query(points_N3, 4)[0][:, 1:].mean(1).clip(5e-4, 0.02)


def cube_points(
    num: int, rng: np.random.Generator, side_m: float = 0.2, center_y_m: float = 0.0
) -> Float[np.ndarray, "num 3"]:
    """The paper's start: uniform in a cube."""
    return (rng.random((num, 3)) - 0.5) * side_m + np.array([0.0, center_y_m, 0.0])
