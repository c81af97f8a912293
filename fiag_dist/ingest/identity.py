"""Face-recogniser embeddings: 128 numbers that are near for one person and far between two (dlib's ResNet)."""

from typing import Any, cast

import numpy as np
from jaxtyping import Float32, UInt8

from fiag_dist import weights
from fiag_dist.errors import ConfigError
from fiag_dist.landmarks import LEFT_EYE_INNER, LEFT_EYE_OUTER, NOSE_BASE, RIGHT_EYE_INNER, RIGHT_EYE_OUTER

MODEL, DIM = "dlib-resnet-v1", 128
_CHIP_PX, _CHIP_PADDING = 150, 0.25
_FIVE_POINTS = (LEFT_EYE_OUTER, LEFT_EYE_INNER, RIGHT_EYE_OUTER, RIGHT_EYE_INNER, NOSE_BASE)
"""The landmarks that dlib aligns by, in its order."""


class IdentityEmbedder:
    """Embeds aligned faces; 0.15 s each on one core."""

    def __init__(self) -> None:
        try:
            import dlib
        except ImportError as error:
            raise ConfigError(
                "packing clips needs dlib, which is not installed; run: bash launch/install.sh ingest"
            ) from error
        self._dlib = cast(Any, dlib)
        self._network = self._dlib.face_recognition_model_v1(str(weights.path("face-recognition")))

    def embed(
        self, image: UInt8[np.ndarray, "side side 3"], landmarks: Float32[np.ndarray, "478 coordinates"]
    ) -> Float32[np.ndarray, " id_dim"]:
        """L2-normalised embedding of the face whose landmarks (pixels of `image`) are given."""
        points = [self._dlib.point(round(float(x)), round(float(y))) for x, y in landmarks[list(_FIVE_POINTS), :2]]
        low, high = landmarks[:, :2].min(0), landmarks[:, :2].max(0)
        box = self._dlib.rectangle(*(round(float(v)) for v in (*low, *high)))
        aligned = self._dlib.get_face_chip(
            image, self._dlib.full_object_detection(box, points), _CHIP_PX, _CHIP_PADDING
        )
        return normalised(np.array(self._network.compute_face_descriptor(aligned), np.float32))


def normalised(vector: Float32[np.ndarray, " id_dim"]) -> Float32[np.ndarray, " id_dim"]:
    """The vector at length 1."""
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def nearest_in_time(
    known: dict[int, Float32[np.ndarray, " id_dim"]], num_frames: int
) -> Float32[np.ndarray, "frames id_dim"]:
    """One embedding a frame: that of the nearest frame that has one."""
    keys = np.array(sorted(known))
    nearest = keys[np.abs(np.arange(num_frames)[:, None] - keys[None]).argmin(1)]
    return np.stack([known[int(i)] for i in nearest])
