"""A visitor's camera, as a change to what a clip's own camera shows: the head turned on its neck, the picture scaled and moved.

What is behind the head is a flat picture, so nothing can go round it: the head turns instead.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64

from fiag_dist.acting.staging import NECK_M, about_neck
from fiag_dist.types import Camera

HOME_M = 1.0
"""How far from the neck a visitor's camera starts, straight before the face, metres."""
FOV_RAD = 0.5
"""Its vertical field of view: how many pixels of the page a shift of the camera is."""
ZOOM = (0.25, 8.0)
FARTHEST_M = 100.0
"""Where a visitor's camera can be, along each axis, metres."""
HAIR_M = np.array([0.0, 0.10, 0.0])
"""About where hair is, metres, head frame."""
_ASIDE_RAD = 0.2
"""From so far aside a visitor sees where hair is towards the clip's camera, which that camera hardly could."""
_FACING = np.diag([1.0, -1.0, -1.0])
"""The orientation of a camera that looks into the face: OpenCV's y points down and z forward, the head's up and out of the face."""


@dataclass(frozen=True)
class Orbit:
    """How a visitor looks."""

    wxyz: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 0.0)
    """The camera's orientation in the world, which is the head frame; OpenCV axes."""
    position: tuple[float, float, float] = (NECK_M[0], NECK_M[1], NECK_M[2] + HOME_M)
    look_at: tuple[float, float, float] = (NECK_M[0], NECK_M[1], NECK_M[2])
    """What the camera goes round, metres."""

    @classmethod
    def of(cls, wxyz: Iterable[float], position: Iterable[float], look_at: Iterable[float]) -> "Orbit":
        """As a browser says it, which may say anything: what is no number is straight before the face, what is too far away comes nearer."""
        said = [float(x) for x in (*wxyz, *position, *look_at)]
        if not np.isfinite(said).all():
            return cls()
        x, y, z, *to = np.clip(said[4:], -FARTHEST_M, FARTHEST_M).tolist()
        return cls((said[0], said[1], said[2], said[3]), (x, y, z), (to[0], to[1], to[2]))

    @property
    def to_world(self) -> Float64[np.ndarray, "3 3"]:
        """The orientation as a matrix."""
        w, x, y, z = np.array(self.wxyz, np.float64) / max(np.linalg.norm(self.wxyz), 1e-12)
        return np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )

    @property
    def turn(self) -> Float64[np.ndarray, "3 3"]:
        """Of the head in its own axes, by which the visitor sees it as from there."""
        return _FACING @ self.to_world.T

    def flattened(
        self, swing: Float32[np.ndarray, "3 4"], viewmat: Float32[np.ndarray, "4 4"]
    ) -> Float32[np.ndarray, "3 4"]:
        """A hair's motion without what of it is along the view of the clip's camera, the more the farther aside the visitor stands.

        How near hair came to that camera is what tracking knows least of (docs/decisions.md, 35): from the side it would fly to and fro.
        """
        turned_rad = np.arccos(np.clip((np.trace(self.turn) - 1) / 2, -1, 1))
        along = viewmat[2, :3].astype(np.float64)
        depth_m = along @ (swing[:, :3] @ HAIR_M + swing[:, 3] - HAIR_M)
        flat = swing.astype(np.float64)
        flat[:, 3] -= min(turned_rad / _ASIDE_RAD, 1.0) * depth_m * along
        return flat.astype(np.float32)

    def onto(self, size: int, width: int, height: int) -> Float64[np.ndarray, "3 3"]:
        """From pixels of the clip's square frames to those of a picture of any shape, whose shorter side the frame fills from straight before it."""
        away_m = np.array(self.position) - self.look_at
        distance_m = max(float(np.linalg.norm(away_m)), 1e-6)
        zoom = float(np.clip(HOME_M / distance_m, *ZOOM))
        aside_m = self.to_world.T @ (NECK_M - self.look_at)
        shift = aside_m[:2] / (2 * distance_m * np.tan(FOV_RAD / 2)) * height
        scale = zoom * min(width, height) / size
        middle = np.array([width / 2, height / 2]) + shift - scale * size / 2
        return np.array([[scale, 0, middle[0]], [0, scale, middle[1]], [0, 0, 1]])

    def camera(
        self,
        viewmat: Float32[np.ndarray, "4 4"],
        K: Float32[np.ndarray, "3 3"],
        onto: Float64[np.ndarray, "3 3"],
        width: int,
        height: int,
    ) -> Camera:
        """What draws the head as the visitor sees it. viewmat, K: of the clip's frame; onto: `onto`'s."""
        turned = viewmat.astype(np.float64) @ about_neck(self.turn)
        zoom = float(onto[0, 0])
        return Camera(torch.from_numpy(turned).float(), torch.from_numpy(onto @ K).float(), width, height, zoom)
