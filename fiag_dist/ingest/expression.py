"""Upper-face expression channels, gaze among them, mouth opening and blink, from blendshapes and landmarks."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from fiag_dist.landmarks import INNER_LIP_BOTTOM, INNER_LIP_TOP, LEFT_EYE_OUTER, RIGHT_EYE_OUTER, gaze
from fiag_dist.types import ACTION_UNITS, LIDS_MEET

BLENDSHAPES = {
    "AU01": ("browInnerUp",),
    "AU02": ("browOuterUpLeft", "browOuterUpRight"),
    "AU04": ("browDownLeft", "browDownRight"),
    "AU05": ("eyeWideLeft", "eyeWideRight"),
    "AU06": ("cheekSquintLeft", "cheekSquintRight"),
    "AU07": ("eyeSquintLeft", "eyeSquintRight"),
    "AU45": ("eyeBlinkLeft", "eyeBlinkRight"),
}
"""The blendshapes whose mean stands for each of ACTION_UNITS."""
_SMALLEST_RANGE = 0.05
"""A channel that never moves is not blown up to full range."""
_GAZE_UNITS = np.array([0.05, 0.03])
"""An iris to the left, and up, in widths of the eye, that is a gaze of 1."""
_MOST_GAZE = 2.0


def raw(blendshapes: dict[str, float]) -> Float32[np.ndarray, " units"]:
    """ACTION_UNITS of one frame, each the mean of its blendshapes, 0..1."""
    return np.array([np.mean([blendshapes[n] for n in BLENDSHAPES[au]]) for au in ACTION_UNITS], np.float32)


def channels(
    units: Float32[np.ndarray, "frames units"],
    landmarks: Float32[np.ndarray, "frames 478 coordinates"],
    blinks: Sequence[float],
    num_train: int,
) -> Float32[np.ndarray, "frames channels"]:
    """EXPRESSION_NAMES of each frame. units: raw ACTION_UNITS; landmarks: pixels.

    By the first `num_train` frames: the 99th percentile of a unit becomes 1 (0..1.2 come out), the median gaze of open eyes 0.
    """
    top = np.maximum(np.percentile(units[:num_train], 99, axis=0), _SMALLEST_RANGE)
    seen, looks = np.asarray(blinks[:num_train]) < LIDS_MEET, gaze(landmarks)
    middle = np.median(looks[:num_train][seen], axis=0) if seen.any() else looks[:num_train].mean(0)
    looks = np.clip((looks - middle) / _GAZE_UNITS, -_MOST_GAZE, _MOST_GAZE)
    units = np.clip(units / top, 0, 1.2)
    return np.concatenate([units[:, :-1], looks, units[:, -1:]], 1).astype(np.float32)


def blink(blendshapes: dict[str, float]) -> float:
    """0 open .. 1 closed, mean of both eyes."""
    return float(np.clip((blendshapes["eyeBlinkLeft"] + blendshapes["eyeBlinkRight"]) / 2, 0, 1))


def mouth_open(landmarks: Float32[np.ndarray, "478 coordinates"]) -> float:
    """Gap between the inner lips over the distance between the outer eye corners, in the image."""
    points = landmarks[:, :2]
    eyes = np.linalg.norm(points[LEFT_EYE_OUTER] - points[RIGHT_EYE_OUTER])
    return float(np.linalg.norm(points[INNER_LIP_TOP] - points[INNER_LIP_BOTTOM]) / max(float(eyes), 1e-6))
