"""Landmarks in three dimensions: the clip's rest shape, and every frame's tracked landmarks brought into the head frame."""

import numpy as np
from jaxtyping import Float, Float32, Float64

from fiag_dist.ingest.face_model import rest_start

MOST_FRAMES = 1000
"""The rest shape is a median over at most so many frames."""


def rest_shape(
    landmarks: Float32[np.ndarray, "frames 478 coordinates"],
    viewmats: Float64[np.ndarray, "frames 4 4"],
    K: Float64[np.ndarray, "3 3"],
) -> Float32[np.ndarray, "478 3"]:
    """Per-landmark median over (evenly spread) frames, head frame, metres; found from the average face in two rounds."""
    some = np.unique(np.linspace(0, len(landmarks) - 1, min(MOST_FRAMES, len(landmarks))).round().astype(int))
    rest = rest_start()
    for _ in range(2):
        rest = np.median(unproject(landmarks[some], viewmats[some], K, rest), axis=0)
    return rest.astype(np.float32)


def unproject(
    landmarks: Float32[np.ndarray, "frames 478 coordinates"],
    viewmats: Float64[np.ndarray, "frames 4 4"],
    K: Float64[np.ndarray, "3 3"],
    rest: Float[np.ndarray, "478 3"],
) -> Float32[np.ndarray, "frames 478 3"]:
    """Landmarks of each frame, head frame, metres.

    A pixel fixes a ray; the depth along it is that of the rest shape under the frame's pose, so that landmarks project back exactly onto their pixels.
    """
    directions = (landmarks[..., :2] - K[:2, 2]) / K[[0, 1], [0, 1]]
    rays_TLC = np.concatenate([directions, np.ones((*landmarks.shape[:2], 1))], -1)
    R, t = viewmats[:, :3, :3], viewmats[:, :3, 3]
    depth_TL = R[:, 2, :] @ rest.T + t[:, 2, None]
    return ((rays_TLC * depth_TL[..., None] - t[:, None]) @ R).astype(np.float32)


def project(
    points: Float[np.ndarray, "frames points 3"],
    viewmats: Float64[np.ndarray, "frames 4 4"],
    K: Float64[np.ndarray, "3 3"],
) -> Float64[np.ndarray, "frames points 2"]:
    """Pixels of points in the head frame."""
    camera = points @ viewmats[:, :3, :3].transpose(0, 2, 1) + viewmats[:, None, :3, 3]
    return camera[..., :2] / camera[..., 2:] * K[[0, 1], [0, 1]] + K[:2, 2]
