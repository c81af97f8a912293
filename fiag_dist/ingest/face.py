"""Where the head is: one square crop for a whole clip, and the face landmarks of every frame inside it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from fiag_dist import weights
from fiag_dist.errors import ConfigError, DataError
from fiag_dist.landmarks import CHIN, FOREHEAD_TOP

os.environ.setdefault("GLOG_minloglevel", "2")  # its native library reports every start on stderr

SEARCH_LONG_SIDE = 960
"""Frames are shrunk to this before the face is looked for, pixels."""
SURE_OF_FACE = 0.75
"""What the detector must say of a sampled frame, 0..1. An upright face has 0.8 and more; a picture that stands on its head is read as some
face the right way up in half of its frames at 0.5, the detector's own default, and in next to none at this."""
LYING_DEG = 45
"""A head that leans more than this to one side, as the median of a clip, is taken for a video that lies on its side."""
TWO_FACES_SIZE, TWO_FACES_SHARE = 0.6, 0.2
"""A second face counts from this share of the first one's size; a clip is refused when this share of its frames shows one."""

SHOT_MOTION, SHOT_GROWTH = 0.6, 1.4
"""Between two samples of one shot the head moves less than this share of its box's side and grows by less than this factor."""


@dataclass(frozen=True)
class Crop:
    """A square of the full frame, pixels; `side` is the same for every frame of a clip."""

    x: int
    y: int
    side: int

    def cut(self, image: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
        """The square, resampled to size x size."""
        window = image[self.y : self.y + self.side, self.x : self.x + self.side]
        how = cv2.INTER_AREA if size < self.side else cv2.INTER_CUBIC
        return np.ascontiguousarray(cv2.resize(window, (size, size), interpolation=how))


@dataclass(frozen=True)
class Face:
    """What the landmark model says of one frame."""

    landmarks: Float32[np.ndarray, "478 3"]
    """x, y in pixels of the crop as given, z in the same unit, smaller is nearer."""
    blendshapes: dict[str, float]
    """ARKit names, 0..1."""
    matrix: Float64[np.ndarray, "4 4"]
    """Canonical face (centimetres, its own origin) to an OpenGL camera of 63 degrees vertical field of view."""
    second: bool = False
    """Whether another face of similar size is in the picture."""


class FaceTracker:
    """Follows one face through the crops of a clip, in order. Close it, or use it as a context manager."""

    def __init__(self) -> None:
        # Asked for a single face, the model smooths landmarks over time: they lag behind fast heads and lips.
        self._task = _landmarker(num_faces=2, video=True)
        self._milliseconds = 0

    def __enter__(self) -> FaceTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.close()

    def track(self, image: UInt8[np.ndarray, "size size 3"], step_ms: int) -> Face | None:
        """The face of the next frame, `step_ms` after the last; None when there is none."""
        self._milliseconds += step_ms
        result = self._task.detect_for_video(as_mediapipe(image), self._milliseconds)
        if not result.face_landmarks or not result.facial_transformation_matrixes:
            return None
        faces = [_pixels(points, image.shape) for points in result.face_landmarks]
        largest = max(range(len(faces)), key=lambda i: _height(faces[i]))
        return Face(
            landmarks=faces[largest],
            blendshapes={shape.category_name: float(shape.score) for shape in result.face_blendshapes[largest]},
            matrix=np.array(result.facial_transformation_matrixes[largest], np.float64),
            second=any(_another(faces[largest], other) for i, other in enumerate(faces) if i != largest),
        )


def find_crop(samples: Iterable[UInt8[np.ndarray, "height width 3"]], name: str) -> Crop:
    """One square that holds the whole head, hair and some shoulder, wherever it moves in `samples` (frames spread over the clip).

    It is fixed for the clip, so that neither the background nor the camera jumps. `name` is the clip's, for messages. Raises DataError when no
    face is found, two of similar size are, or the head lies on its side.
    """
    boxes, leans, seen, doubles, shape = [], [], 0, 0, (0, 0, 3)
    task = _landmarker(num_faces=2, video=False)
    try:
        for image in samples:
            seen, shape = seen + 1, image.shape
            faces = sorted(_faces(task, image), key=_height, reverse=True)
            if not faces:
                continue
            boxes.append(_head_box(faces[0]))
            leans.append(_lean(faces[0]))
            doubles += len(faces) > 1 and _another(faces[0], faces[1])
    finally:
        task.close()
    if len(boxes) < max(1, seen // 10):
        raise DataError(
            f"{name}: a face in {len(boxes)} of {seen} sampled frames; give a clip that shows one face, upright and from the front"
        )
    lean = float(np.median(leans))
    if abs(lean) > LYING_DEG:
        raise DataError(
            f"{name}: the head lies on its side; turn the video, for example: "
            f"ffmpeg -i {name} -vf transpose={1 if lean > 0 else 2} upright.mp4"
        )
    if doubles > TWO_FACES_SHARE * len(boxes):
        raise DataError(
            f"{name}: two faces of similar size in {doubles} of {seen} sampled frames; crop the video to one person"
        )
    boxes = _longest_shot(np.stack(boxes))
    left, top = np.percentile(boxes, 2, axis=0)[:2]
    right, bottom = np.percentile(boxes, 98, axis=0)[2:]
    height, width = shape[:2]
    side = min(round(max(right - left, bottom - top)), height, width)
    x = min(max(round((left + right - side) / 2), 0), width - side)
    y = min(max(round((top + bottom - side) / 2), 0), height - side)
    return Crop(x, y, side)


def as_mediapipe(image: UInt8[np.ndarray, "height width 3"]) -> Any:
    """The same pixels as the landmark library's image; it reads rows without looking at strides."""
    mediapipe = load_mediapipe()
    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))


def load_mediapipe() -> ModuleType:
    """The library, or a ConfigError that says how to install it."""
    try:
        import mediapipe
    except ImportError as error:
        raise ConfigError(
            "packing clips needs mediapipe, which is not installed; run: bash launch/install.sh ingest"
        ) from error
    return mediapipe


def _landmarker(num_faces: int, video: bool) -> Any:
    load_mediapipe()
    from mediapipe.tasks.python import BaseOptions, vision

    mode = vision.RunningMode.VIDEO if video else vision.RunningMode.IMAGE
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(weights.path("face-landmarker"))),
        running_mode=mode,
        num_faces=num_faces,
        min_face_detection_confidence=0.5 if video else SURE_OF_FACE,
        output_face_blendshapes=video,
        output_facial_transformation_matrixes=video,
    )
    return vision.FaceLandmarker.create_from_options(options)


def _faces(task: Any, image: UInt8[np.ndarray, "height width 3"]) -> list[Float32[np.ndarray, "478 3"]]:
    """All faces of a frame in its pixels; when the whole frame shows none, squares of it are searched, top first."""
    height, width = image.shape[:2]
    scale = min(1.0, SEARCH_LONG_SIDE / max(height, width))
    small = image if scale == 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    found = _detect(task, small)
    if found:
        return [points / scale for points in found]
    side = min(height, width)
    for part in (1.0, 0.6):
        part_side = int(side * part)
        for y in range(0, height - part_side + 1, max(1, part_side // 2)):
            for x in range(0, width - part_side + 1, max(1, part_side // 2)):
                window = cv2.resize(
                    image[y : y + part_side, x : x + part_side], (512, 512), interpolation=cv2.INTER_AREA
                )
                found = _detect(task, window)
                if found:
                    offset = np.array([x, y, 0], np.float32)
                    return [points * (part_side / 512) + offset for points in found]
    return []


def _detect(task: Any, image: UInt8[np.ndarray, "height width 3"]) -> list[Float32[np.ndarray, "478 3"]]:
    return [_pixels(points, image.shape) for points in task.detect(as_mediapipe(image)).face_landmarks]


def _pixels(points: Any, shape: tuple[int, ...]) -> Float32[np.ndarray, "478 3"]:
    height, width = shape[:2]
    return np.array([[p.x * width, p.y * height, p.z * width] for p in points], np.float32)


def _height(points: Float32[np.ndarray, "478 3"]) -> float:
    """Forehead to chin, pixels."""
    return float(np.linalg.norm(points[FOREHEAD_TOP, :2] - points[CHIN, :2]))


def _lean(points: Float32[np.ndarray, "478 3"]) -> float:
    """How far the picture would have to be turned clockwise for the chin to be below the forehead, degrees in -180..180."""
    across, down = points[CHIN, :2] - points[FOREHEAD_TOP, :2]
    return float(np.degrees(np.arctan2(across, down)))


def _another(face: Float32[np.ndarray, "478 3"], other: Float32[np.ndarray, "478 3"]) -> bool:
    """Whether `other` is a second person of similar size; the model may report one face twice."""
    apart = np.linalg.norm(other.mean(0) - face.mean(0)) > 0.5 * _height(face)
    return bool(apart and _height(other) > TWO_FACES_SIZE * _height(face))


def _longest_shot(boxes: Float64[np.ndarray, "samples 4"]) -> Float64[np.ndarray, "some 4"]:
    """The longest run of samples in which the head does not jump: a cut to another place or size must not widen the crop."""
    sides = boxes[:, 2] - boxes[:, 0]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    jumps = np.linalg.norm(np.diff(centres, axis=0), axis=1) > SHOT_MOTION * sides[:-1]
    jumps |= np.abs(np.log(sides[1:] / sides[:-1])) > np.log(SHOT_GROWTH)
    return max(np.split(boxes, np.flatnonzero(jumps) + 1), key=len)


def _head_box(points: Float32[np.ndarray, "478 3"]) -> Float64[np.ndarray, " 4"]:
    """left, top, right, bottom of a head with hair and some shoulder, in proportions of the face's height."""
    x, y = (points[FOREHEAD_TOP, :2] + points[CHIN, :2]) / 2
    height = _height(points)
    return np.array([x - 0.95 * height, y - 1.10 * height, x + 0.95 * height, y + 0.80 * height], np.float64)
