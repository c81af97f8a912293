"""What any learnt head must beat: the training frame that shows nearly the same, pasted as it is, or moved onto the head."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from scipy.spatial.transform import Rotation

from fiag_dist.landmarks import ALIGNED
from fiag_dist.types import Camera, Frame, IdentityMeta

EXPRESSION_WEIGHT = 0.3
"""Of a deviation of one expression channel against one of a pose parameter."""
_STILL_DEG, _STILL_PX = 0.05, 0.05
_STILL_EXPRESSION = 0.02
"""Deviations below these are measuring noise and are not blown up."""


@dataclass(frozen=True, eq=False)
class Pasted:
    """A head to put over a backdrop."""

    image: UInt8[np.ndarray, "size size 3"]
    alpha: UInt8[np.ndarray, "size size"]

    def over(self, backdrop: UInt8[np.ndarray, "size size 3"]) -> UInt8[np.ndarray, "size size 3"]:
        weight = self.alpha[..., None].astype(np.float32) / 255
        return np.round(self.image * weight + backdrop * (1 - weight)).astype(np.uint8)


def nearest(
    meta: IdentityMeta,
    mouth_open: Float32[np.ndarray, " frames"] | None,
    train: Int[np.ndarray, " n"],
    test: Int[np.ndarray, " m"],
) -> Int[np.ndarray, " m"]:
    """For each test position the training position nearest in head pose and expression, both in deviations over the training frames.

    mouth_open: of all frames of the clip. None chooses by pose and upper face alone, blind to the mouth: what lips that follow speech must beat.
    """
    place = _placements(meta)
    face = meta.expressions if mouth_open is None else np.concatenate([meta.expressions, mouth_open[:, None]], 1)
    pose_floor = np.repeat([_STILL_DEG, _STILL_PX], 3)
    features = np.concatenate(
        [
            place / np.maximum(place[train].std(0), pose_floor),
            EXPRESSION_WEIGHT * face / np.maximum(face[train].std(0), _STILL_EXPRESSION),
        ],
        1,
    )
    return np.array([train[np.square(features[train] - features[i]).sum(1).argmin()] for i in test], np.int64)


def warped(source: Frame, target: Frame) -> Pasted:
    """The head of `source`, moved by the similarity that takes its stable landmarks (eye corners, nose, forehead) onto those of `target`."""
    size = source.image.shape[0]
    # OpenCV counts pixels from their centres, our cameras from their corners.
    matrix, _ = cv2.estimateAffinePartial2D(project_stable(source) - 0.5, project_stable(target) - 0.5)
    if matrix is None:
        return Pasted(source.image, source.alpha)
    moved = cv2.warpAffine(source.image, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return Pasted(moved, cv2.warpAffine(source.alpha, matrix, (size, size), flags=cv2.INTER_LINEAR))


def project_stable(frame: Frame) -> Float[np.ndarray, "k 2"]:
    """Tracked landmarks that hardly move with speech, pixels."""
    size = frame.image.shape[0]
    camera = Camera(torch.from_numpy(frame.viewmat), torch.from_numpy(frame.K), size, size)
    points = torch.from_numpy(frame.landmarks[list(ALIGNED)].astype(np.float32))
    return camera.project(points).numpy().astype(np.float64)


def _placements(meta: IdentityMeta) -> Float[np.ndarray, "frames 6"]:
    """Head poses as degrees about three axes, from the mean pose, and pixels: where the head's origin is seen, and focal length by distance."""
    turns = Rotation.from_matrix(meta.viewmats[:, :3, :3].astype(np.float64))
    degrees = (turns.mean().inv() * turns).as_rotvec(degrees=True)
    x, y, z = meta.viewmats[:, :3, 3].astype(np.float64).T
    focal = float(meta.K[0, 0])
    # A head's radius, a tenth of a metre, as it is seen: one unit is a pixel, as for the other two.
    return np.column_stack([degrees, focal * x / z, focal * y / z, 0.1 * focal / z])
