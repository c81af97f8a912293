"""Which frames of a clip can be used: the longest run with a face in every frame and no cut."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from fiag_dist.ingest.face import Face
from fiag_dist.landmarks import CHIN, FOREHEAD_TOP

MOST_MOTION, MOST_GROWTH = 0.4, 0.25
"""A face that moves further than this between frames, in face heights, or grows by more than this share, was cut to."""
CUT_DIFFERENCE = 40.0
"""Mean absolute difference of neighbouring frames from which there was a cut, of 255."""


@dataclass(frozen=True)
class Span:
    """Frames first .. stop - 1, and why the others are left out."""

    first: int
    stop: int
    left_out: dict[str, int]

    def __len__(self) -> int:
        return self.stop - self.first


def longest(faces: list[Face | None], differences: list[float]) -> Span:
    """The longest usable run. differences: `difference` of each frame to the one before, 0 for the first."""
    breaks = [0]
    runs: list[tuple[int, int]] = []
    missing = sum(face is None for face in faces)
    for i in range(1, len(faces) + 1):
        if i == len(faces) or _breaks(faces[i - 1], faces[i], differences[i]):
            runs.append((breaks[-1], i))
            breaks.append(i)
    usable = [(low, high) for low, high in runs if faces[low] is not None]
    first, stop = max(usable, key=lambda run: run[1] - run[0], default=(0, 0))
    elsewhere = len(faces) - missing - (stop - first)
    left_out = {"no face": missing, "beyond a cut or a gap": elsewhere}
    return Span(first, stop, {reason: count for reason, count in left_out.items() if count})


def difference(image: UInt8[np.ndarray, "size size 3"], before: UInt8[np.ndarray, "size size 3"] | None) -> float:
    """Mean absolute difference of two frames, 0..255, at a quarter of their size; 0 without a frame before."""
    if before is None:
        return 0.0
    return float(np.abs(image[::4, ::4].astype(np.int16) - before[::4, ::4]).mean())


def _breaks(before: Face | None, after: Face | None, changed: float) -> bool:
    if before is None or after is None:
        return (before is None) != (after is None)
    (centre, height), (next_centre, next_height) = _place(before.landmarks), _place(after.landmarks)
    moved = float(np.linalg.norm(next_centre - centre)) / height
    return moved > MOST_MOTION or abs(next_height / height - 1) > MOST_GROWTH or changed > CUT_DIFFERENCE


def _place(landmarks: Float32[np.ndarray, "478 3"]) -> tuple[np.ndarray, float]:
    top, chin = landmarks[FOREHEAD_TOP, :2], landmarks[CHIN, :2]
    return (top + chin) / 2, max(float(np.linalg.norm(top - chin)), 1e-6)
