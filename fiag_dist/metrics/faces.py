"""The face in a picture, as a landmark model finds it: every metric of a moving face starts here, for render and truth alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from jaxtyping import Float64, UInt8

from fiag_dist import weights
from fiag_dist.ingest.face import as_mediapipe, load_mediapipe


@dataclass(frozen=True, eq=False)
class Seen:
    """What the landmark model says of one picture."""

    landmarks: Float64[np.ndarray, "478 2"]
    """x, y in pixels."""
    blendshapes: dict[str, float]
    """ARKit names, 0..1."""


class FaceFinder:
    """Looks at each picture by itself, so that neither order nor neighbours matter. Close it, or use it as a context manager.

    Raises ConfigError when the landmark library is not installed, WeightsError when its model's file is missing.
    """

    def __init__(self) -> None:
        load_mediapipe()
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(weights.path("face-landmarker"))),
            running_mode=vision.RunningMode.IMAGE,
            num_faces=1,
            output_face_blendshapes=True,
        )
        with _native_logs_dropped():
            self._task = vision.FaceLandmarker.create_from_options(options)
            self._task.detect(as_mediapipe(np.zeros((64, 64, 3), np.uint8)))

    def __enter__(self) -> FaceFinder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._task.close()

    def find(self, image: UInt8[np.ndarray, "height width 3"]) -> Seen | None:
        """The face, None when there is none. 12 ms a picture of 256 x 256 on one core."""
        result = self._task.detect(as_mediapipe(image))
        if not result.face_landmarks:
            return None
        height, width = image.shape[:2]
        points = np.array([[p.x * width, p.y * height] for p in result.face_landmarks[0]])
        return Seen(points, {shape.category_name: float(shape.score) for shape in result.face_blendshapes[0]})


@contextmanager
def _native_logs_dropped() -> Iterator[None]:
    """The landmark library reports its start on the process's stderr, whatever it is asked."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
