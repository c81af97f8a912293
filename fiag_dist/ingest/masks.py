"""Which pixel is what: a soft person matte from a network, a head mask and face parts from landmarks, and the label map of both."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from fiag_dist import weights
from fiag_dist.ingest.face import as_mediapipe, load_mediapipe
from fiag_dist.landmarks import (
    CHIN,
    FACE_OVAL,
    FOREHEAD_TOP,
    LEFT_CHEEK,
    LEFT_LOBE,
    LIPS_INNER,
    LIPS_OUTER,
    RIGHT_CHEEK,
    RIGHT_LOBE,
)
from fiag_dist.types import Label

_FINE = 2
"""Masks are drawn this much finer than the sample and averaged down: soft edges."""
_SHIFT_BITS = 3
"""Polygon corners are given in eighths of a pixel."""


@dataclass(frozen=True)
class Masks:
    """All masks of one frame at the sample's size."""

    alpha: UInt8[np.ndarray, "size size"]
    labels: UInt8[np.ndarray, "size size"]
    lips_rect: tuple[int, int, int, int]


class PersonMatte:
    """Segments the person in a crop. Close it, or use it as a context manager."""

    def __init__(self) -> None:
        load_mediapipe()
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.ImageSegmenterOptions(
            base_options=BaseOptions(model_asset_path=str(weights.path("selfie-segmentation"))),
            output_confidence_masks=True,
        )
        self._task = vision.ImageSegmenter.create_from_options(options)

    def __enter__(self) -> PersonMatte:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.close()

    def segment(self, image: UInt8[np.ndarray, "side side 3"]) -> UInt8[np.ndarray, "side side"]:
        """Confidence that a pixel shows the person, 0..255, at the image's size."""
        confidence = self._task.segment(as_mediapipe(image)).confidence_masks[-1].numpy_view().squeeze()
        return np.round(confidence * 255).astype(np.uint8)


def build(
    landmarks: Float32[np.ndarray, "478 coordinates"], person: UInt8[np.ndarray, "size size"], margin: float = 0.15
) -> Masks:
    """Head alpha, labels and lip rectangle of a frame from its tracked landmarks (pixels) and soft person matte.

    margin: how far the lip rectangle reaches beyond the lips, in its own width.
    """
    size = len(person)
    points = landmarks[:, :2]
    head = head_mask(landmarks, size)
    # The network's edge is several pixels wide; steepened to about two, it neither eats hair nor lets the background shine in.
    matte = np.clip((person.astype(np.float32) / 255 - 0.5) * 2.5 + 0.5, 0, 1)
    oval = _polygon(points, FACE_OVAL, size)
    alpha = np.maximum(matte * head, oval)
    lips, mouth = _polygon(points, LIPS_OUTER, size), _polygon(points, LIPS_INNER, size)
    labels = np.full((size, size), Label.BACKGROUND, np.uint8)
    labels[matte > 0.5] = Label.TORSO
    labels[alpha > 0.5] = Label.HAIR
    labels[oval > 0.5] = Label.FACE
    labels[lips > 0.5] = Label.LIPS
    labels[mouth > 0.5] = Label.MOUTH
    return Masks(np.round(alpha * 255).astype(np.uint8), labels, _rectangle(points[list(LIPS_OUTER)], size, margin))


def head_mask(landmarks: Float32[np.ndarray, "478 coordinates"], size: int) -> Float32[np.ndarray, "size size"]:
    """Where the head may be, 0..1 with soft edges: an ellipse around it above the ear lobes, the face oval below.

    Shoulders, collar and neck stay outside; cut it with the person matte for the head itself. landmarks: pixels of the size x size crop.
    """
    points = landmarks[:, :2].astype(np.float64)
    up, right, centre, height, half_width = _frame_of_face(points)
    fine = (np.arange(size * _FINE) + 0.5) / _FINE
    dx, dy = fine[None] - centre[0], fine[:, None] - centre[1]
    along, across = dx * up[0] + dy * up[1], dx * right[0] + dy * right[1]
    lobes = float((points[[RIGHT_LOBE, LEFT_LOBE]].mean(0) - centre) @ up)
    ellipse = (across / (1.75 * half_width)) ** 2 + (along / (0.95 * height)) ** 2 < 1
    above = (ellipse & (along > lobes)).astype(np.float32)
    return np.maximum(cv2.resize(above, (size, size), interpolation=cv2.INTER_AREA), _polygon(points, FACE_OVAL, size))


def _frame_of_face(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """Unit vectors up and across the face in the image, the head's centre, the face's height and half width, pixels."""
    up = points[FOREHEAD_TOP] - points[CHIN]
    height = float(np.linalg.norm(up))
    up = up / height
    centre = (points[FOREHEAD_TOP] + points[CHIN]) / 2 + 0.15 * height * up
    half_width = float(np.linalg.norm(points[LEFT_CHEEK] - points[RIGHT_CHEEK])) / 2
    return up, np.array([-up[1], up[0]]), centre, height, half_width


def _polygon(points: np.ndarray, corners: tuple[int, ...], size: int) -> Float32[np.ndarray, "size size"]:
    """Coverage of each pixel by the polygon, 0..1."""
    # Pixel centres lie at +0.5 in our coordinates and at whole numbers in OpenCV's.
    fixed = np.round((points[list(corners)] * _FINE - 0.5) * (1 << _SHIFT_BITS)).astype(np.int32)
    fine = cv2.fillPoly(np.zeros((size * _FINE, size * _FINE), np.uint8), [fixed], 255, shift=_SHIFT_BITS)
    return cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _rectangle(points: np.ndarray, size: int, margin: float) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 around points, half open, inside the image and never empty."""
    low, high = points.min(0), points.max(0)
    pad = margin * (high[0] - low[0])
    x0, y0 = np.clip(np.floor(low - pad), 0, size - 2).astype(int)
    x1, y1 = np.clip(np.ceil(high + pad), [x0 + 1, y0 + 1], size).astype(int)
    return int(x0), int(y0), int(x1), int(y1)
