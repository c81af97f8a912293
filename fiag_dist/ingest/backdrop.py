"""The clean background plate: the clip without its person."""

import cv2
import numpy as np
from jaxtyping import Int64, UInt8

MOST_FRAMES = 60
_PERSON_ABOVE = 25
"""A matte value from which a pixel may show some of the person, of 255."""


def choose(num_frames: int) -> Int64[np.ndarray, " some"]:
    """Numbers of the frames that a plate is made from: all of a clip's, or MOST_FRAMES evenly spread."""
    return np.unique(np.linspace(0, num_frames - 1, min(MOST_FRAMES, num_frames)).round().astype(np.int64))


def plate(
    images: UInt8[np.ndarray, "frames size size 3"], mattes: UInt8[np.ndarray, "frames size size"]
) -> UInt8[np.ndarray, "size size 3"]:
    """Median over time of the pixels that show background; what the person covers throughout is filled in from around it.

    images, mattes: crops spread over one clip and their person mattes, 0..255.
    """
    size = images.shape[1]
    spread = max(3, size // 40) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (spread, spread))
    covered = np.stack(
        [cv2.dilate((mattes[i] > _PERSON_ABOVE).astype(np.uint8), kernel) > 0 for i in range(len(images))]
    )
    rows = []
    for y in range(size):  # row by row: a stack of all frames as floats would be large
        row = np.ma.masked_array(images[:, y], np.repeat(covered[:, y, :, None], 3, axis=2))
        rows.append(np.ma.median(row, axis=0).filled(0))
    median = np.stack(rows).round().astype(np.uint8)
    return _filled(median, covered.mean(0) > 0.9)


def _filled(image: UInt8[np.ndarray, "size size 3"], holes: np.ndarray) -> UInt8[np.ndarray, "size size 3"]:
    """Holes inpainted at a quarter of the size, then blended in: large holes want smooth colour, not streaks."""
    if holes.all() or not holes.any():
        return image
    size = len(image)
    small = max(16, size // 4)
    known = (~holes).astype(np.float32)
    weight = cv2.resize(known, (small, small), interpolation=cv2.INTER_AREA)
    colour = (
        cv2.resize(image * known[..., None], (small, small), interpolation=cv2.INTER_AREA)
        / np.maximum(weight, 1e-3)[..., None]
    )
    coarse = cv2.inpaint(colour.clip(0, 255).astype(np.uint8), (weight < 0.05).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    smooth = cv2.GaussianBlur(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), (0, 0), size / 64)
    soft = cv2.GaussianBlur(holes.astype(np.float32), (0, 0), 1.5)[..., None]
    soft = np.where(holes[..., None], 1.0, soft)
    return np.round(image * (1 - soft) + smooth * soft).astype(np.uint8)
