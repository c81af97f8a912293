"""Landmarks in three dimensions: the clip's rest shape, and every frame's tracked landmarks brought into the head frame."""

import numpy as np
from jaxtyping import Float, Float32, Float64

from fiag_dist.ingest.face_model import rest_start


def unproject(
    landmarks: Float32[np.ndarray, "frames 478 coordinates"],
    viewmats: Float64[np.ndarray, "frames 4 4"],
    K: Float64[np.ndarray, "3 3"],
    num_train: int,
) -> tuple[Float32[np.ndarray, "478 3"], Float32[np.ndarray, "frames 478 3"]]:
    """Rest shape and landmarks of each frame, head frame, metres.

    A pixel fixes a ray; the depth along it is that of the rest shape under the frame's pose, so that landmarks project back exactly onto their
    pixels. The rest shape is the median over the first `num_train` frames, found from the average face in two rounds.
    """
    rays_TLC = np.concatenate(
        [(landmarks[..., :2] - K[:2, 2]) / K[[0, 1], [0, 1]], np.ones((*landmarks.shape[:2], 1))], -1
    )
    R, t = viewmats[:, :3, :3], viewmats[:, :3, 3]
    rest, points_TLC = rest_start(), np.zeros_like(rays_TLC)
    for _ in range(2):
        depth_TL = rest @ R[:, 2, :].T + t[:, 2]
        points_TLC = (rays_TLC * depth_TL.T[..., None] - t[:, None]) @ R
        rest = np.median(points_TLC[:num_train], axis=0)
    return rest.astype(np.float32), points_TLC.astype(np.float32)


def project(
    points: Float[np.ndarray, "frames points 3"],
    viewmats: Float64[np.ndarray, "frames 4 4"],
    K: Float64[np.ndarray, "3 3"],
) -> Float64[np.ndarray, "frames points 2"]:
    """Pixels of points in the head frame."""
    camera = points @ viewmats[:, :3, :3].transpose(0, 2, 1) + viewmats[:, None, :3, 3]
    return camera[..., :2] / camera[..., 2:] * K[[0, 1], [0, 1]] + K[:2, 2]
