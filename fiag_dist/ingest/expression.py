"""Upper-face expression channels, mouth opening and blink, from blendshapes and landmarks."""

import numpy as np
from jaxtyping import Float32

from fiag_dist.landmarks import INNER_LIP_BOTTOM, INNER_LIP_TOP, LEFT_EYE_OUTER, RIGHT_EYE_OUTER
from fiag_dist.types import EXPRESSION_NAMES

_SOURCES = {
    "AU01": ("browInnerUp",),
    "AU02": ("browOuterUpLeft", "browOuterUpRight"),
    "AU04": ("browDownLeft", "browDownRight"),
    "AU05": ("eyeWideLeft", "eyeWideRight"),
    "AU06": ("cheekSquintLeft", "cheekSquintRight"),
    "AU07": ("eyeSquintLeft", "eyeSquintRight"),
    "AU45": ("eyeBlinkLeft", "eyeBlinkRight"),
}
_SMALLEST_RANGE = 0.05
"""A channel that never moves is not blown up to full range."""


def raw(blendshapes: dict[str, float]) -> Float32[np.ndarray, " channels"]:
    """The channels of EXPRESSION_NAMES of one frame, each the mean of its blendshapes, 0..1."""
    return np.array([np.mean([blendshapes[n] for n in _SOURCES[au]]) for au in EXPRESSION_NAMES], np.float32)


def scaled(raw: Float32[np.ndarray, "frames channels"], num_train: int) -> Float32[np.ndarray, "frames channels"]:
    """Channels so that 1 is the 99th percentile over the first `num_train` frames; 0..1.2."""
    top = np.maximum(np.percentile(raw[:num_train], 99, axis=0), _SMALLEST_RANGE)
    return np.clip(raw / top, 0, 1.2).astype(np.float32)


def blink(blendshapes: dict[str, float]) -> float:
    """0 open .. 1 closed, mean of both eyes."""
    return float(np.clip((blendshapes["eyeBlinkLeft"] + blendshapes["eyeBlinkRight"]) / 2, 0, 1))


def mouth_open(landmarks: Float32[np.ndarray, "478 coordinates"]) -> float:
    """Gap between the inner lips over the distance between the outer eye corners, in the image."""
    points = landmarks[:, :2]
    eyes = np.linalg.norm(points[LEFT_EYE_OUTER] - points[RIGHT_EYE_OUTER])
    return float(np.linalg.norm(points[INNER_LIP_TOP] - points[INNER_LIP_BOTTOM]) / max(float(eyes), 1e-6))
