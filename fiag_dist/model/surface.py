"""The face as a surface: where the first Gaussians lie, and how far from it motion reaches."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import Delaunay, KDTree
from torch import Tensor, nn
from torch.nn import functional as F

from fiag_dist.landmarks import NUM_VERTICES
from fiag_dist.types import BOUND_M

VOLUME_CELLS = 64


class FaceSurface:
    """Triangles over a rest shape, seen from the front (a face is nearly a height field).

    rest_landmarks: [478, 3] metres, head frame.
    """

    def __init__(self, rest_landmarks: Float[np.ndarray, "478 3"]):
        self.points_V3 = np.asarray(rest_landmarks, np.float64)[:NUM_VERTICES]
        triangles = Delaunay(self.points_V3[:, :2]).simplices
        corners = self.points_V3[triangles]
        longest_side = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(1)
        self.corners_T33 = corners[longest_side < 0.04]  # slivers along the outline span cheek to forehead

    def sample(self, num: int, rng: np.random.Generator, thickness_m: float = 0.001) -> Float[np.ndarray, "num 3"]:
        """Points uniform by area, spread normally by `thickness_m`."""
        edges = self.corners_T33[:, 1:] - self.corners_T33[:, :1]
        area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
        chosen = rng.choice(len(area), num, p=area / area.sum())
        weights = rng.dirichlet([1.0, 1.0, 1.0], num)
        return (self.corners_T33[chosen] * weights[..., None]).sum(1) + rng.normal(0, thickness_m, (num, 3))

    def distance(self, points_N3: np.ndarray, at_most: float = np.inf) -> np.ndarray:
        """Distance to the nearest vertex, centre or edge centre of the surface, metres [N]; infinite beyond `at_most`."""
        corners = self.corners_T33
        middles = [(corners[:, i] + corners[:, (i + 1) % 3]) / 2 for i in range(3)]
        return KDTree(np.concatenate([self.points_V3, corners.mean(1), *middles])).query(
            points_N3, distance_upper_bound=at_most
        )[0]


class MotionGate(nn.Module):
    """1 on the face, 0 on hair and ears: motion fades between two distances from the surface.

    The distance is looked up in a volume, so that the gate is a pure function of position and costs one interpolation.
    """

    volume: Tensor

    def __init__(self, surface: FaceSurface, near_m: float, far_m: float):
        super().__init__()
        axis = np.linspace(-BOUND_M, BOUND_M, VOLUME_CELLS)
        z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
        distance = surface.distance(np.stack([x, y, z], -1).reshape(-1, 3), far_m)
        gate = np.clip((far_m - distance) / (far_m - near_m), 0, 1).reshape(1, 1, *x.shape)
        self.register_buffer("volume", torch.from_numpy(gate).float(), persistent=False)

    def forward(self, points_N3: Float[Tensor, "n 3"]) -> Float[Tensor, "n 1"]:
        """The gate at points in the head frame, metres, without gradient."""
        where = (points_N3.detach() / BOUND_M).view(1, -1, 1, 1, 3)
        return F.grid_sample(self.volume, where, align_corners=True, padding_mode="border").view(-1, 1)
