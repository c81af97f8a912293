"""Whether the face moves as the true one does: distance of the lips' landmarks, and tracks of mouth and eyes against the truth's."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

from fiag_dist.landmarks import (
    INNER_LIP_BOTTOM,
    INNER_LIP_TOP,
    LEFT_EYE_OUTER,
    LIDS,
    LIPS_INNER,
    LIPS_OUTER,
    RIGHT_EYE_OUTER,
    gaze,
)
from fiag_dist.metrics.faces import Seen
from fiag_dist.types import NUM_LANDMARKS

LMD_SIZE = 512
"""Landmark distances are given as if frames had this side, pixels."""
FEWEST = 5
"""Frames below which a correlation says nothing."""
STILL_MOUTH, STILL_EYES = 0.01, 0.005
"""A true track of a smaller deviation is the tracker's noise (0.003 and 0.0015): there is nothing to follow. Distances between the eyes."""
STILL_GAZE = 0.01
"""The same of gaze (noise 0.006), widths of an eye."""
_LIPS = [*LIPS_OUTER, *LIPS_INNER]


def scores(render: Sequence[Seen | None], truth: Sequence[Seen | None], size: int) -> dict[str, float | None]:
    """LMD, and correlation and slope of mouth opening, eye closure and gaze, over the frames in which both faces were found.

    Gaze is from side to side, where the true eyes are open. size: side of the frames, pixels. A value is None where no frame, or too little motion of
    the truth, speaks for it.
    """
    pairs = found(render, truth)
    mine, true = [a for a, _ in pairs], [b for _, b in pairs]
    mouth = agreement(openings(mine), openings(true), STILL_MOUTH)
    lids = lid_gaps(true)
    eyes = agreement(-lid_gaps(mine), -lids, STILL_EYES)
    awake = lids > 0.5 * np.median(lids) if pairs else slice(None)
    looks = agreement(gazes(mine)[awake], gazes(true)[awake], STILL_GAZE)
    return {
        "lmd_px_at_512": lip_distance(pairs, size),
        "mouth_opening_correlation": mouth[0],
        "mouth_opening_slope": mouth[1],
        "eye_closure_correlation": eyes[0],
        "eye_closure_slope": eyes[1],
        "gaze_correlation": looks[0],
        "gaze_slope": looks[1],
    }


def found(render: Sequence[Seen | None], truth: Sequence[Seen | None]) -> list[tuple[Seen, Seen]]:
    """The frames in which both faces were found."""
    return [(a, b) for a, b in zip(render, truth, strict=True) if a is not None and b is not None]


def lip_distance(pairs: Sequence[tuple[Seen, Seen]], size: int) -> float | None:
    """LMD: mean distance of the 40 lip landmarks after taking each set's own mean out, pixels at LMD_SIZE (after Chen et al., 2018)."""
    if not pairs:
        return None
    lips = np.array([[a.landmarks[_LIPS], b.landmarks[_LIPS]] for a, b in pairs])
    lips -= lips.mean(2, keepdims=True)
    return float(np.linalg.norm(lips[:, 0] - lips[:, 1], axis=-1).mean() * LMD_SIZE / size)


def openings(faces: Sequence[Seen]) -> Float64[np.ndarray, " frames"]:
    """Gap between the inner lips, distances between the outer eye corners."""
    return np.array([_gap(face, INNER_LIP_TOP, INNER_LIP_BOTTOM) for face in faces], np.float64)


def lid_gaps(faces: Sequence[Seen]) -> Float64[np.ndarray, " frames"]:
    """Gap between the lids, mean of both eyes, distances between the outer eye corners."""
    return np.array([np.mean([_gap(face, *lids) for lids in LIDS]) for face in faces], np.float64)


def gazes(faces: Sequence[Seen]) -> Float64[np.ndarray, " frames"]:
    """How far the irises are to the person's left, widths of an eye."""
    return gaze(np.array([face.landmarks for face in faces]).reshape(-1, NUM_LANDMARKS, 2))[:, 0]


def agreement(
    mine: Float[np.ndarray, " frames"], true: Float[np.ndarray, " frames"], still: float
) -> tuple[float | None, float | None]:
    """Correlation, and slope of the least-squares line from the true track to ours: 1 and 1 for equal tracks, slope below 1 for too little motion.

    still: the truth must deviate by more, else both are None. A track of ours that stands still follows nothing: 0 and 0.
    """
    if len(true) < FEWEST or true.std() <= still:
        return None, None
    together = float(((mine - mine.mean()) * (true - true.mean())).mean())
    both = float(mine.std() * true.std())
    return together / both if both > 1e-12 else 0.0, together / float(true.var())


def _gap(face: Seen, a: int, b: int) -> float:
    points = face.landmarks
    eyes = float(np.linalg.norm(points[LEFT_EYE_OUTER] - points[RIGHT_EYE_OUTER]))
    return float(np.linalg.norm(points[a] - points[b])) / max(eyes, 1e-6)
