"""Head poses of a clip: bundle adjustment over stable landmarks and flow tracks, with one rigid shape and a fixed focal length.

The landmark model's own matrix assumes the average face, and landmarks alone jitter more than it does; tracks on hair and forehead hold the pose
still. A long clip is solved in overlapping windows, so that the cost is linear in its length; the first finds the head's shape, which the others keep.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from scipy.spatial.transform import Rotation

from fiag_dist.ingest.adjustment import Problem, minimise
from fiag_dist.ingest.face_model import canonical_vertices
from fiag_dist.ingest.tracks import POSE_SIZE, Tracks
from fiag_dist.types import HEAD_ORIGIN_M

STABLE = tuple(sorted({
    33, 133, 263, 362, 1, 2, 4, 5, 6, 168, 197, 195, 98, 327, 129, 358, 48, 278, 64, 294, 115, 344, 220, 440, 122, 351, 193, 417, 245,
    465, 19, 94, 10, 67, 103, 109, 151, 297, 332, 338, 9, 8, 54, 284, 69, 299, 108, 337, 127, 234, 356, 454, 21, 251, 162, 389, 117, 118,
    119, 346, 347, 348, 50, 280, 101, 330, 100, 329, 36, 266, 121, 350, 128, 357, 114, 343, 47, 277, 126, 355, 209, 429, 198, 420,
}))  # fmt: skip
"""Landmarks that speech and expression hardly move: eye corners, nose, forehead, cheekbones, upper oval."""

WINDOW, OVERLAP = 250, 50
"""Frames solved together; neighbouring windows share OVERLAP frames, over which one fades into the next."""

_LANDMARK_WEIGHT, _OVAL_WEIGHT = 0.3, 0.09
_OVAL = (127, 234, 356, 454, 21, 251, 162, 389, 54, 284, 103, 332)
"""Points on the outline slide over the head as it turns."""
_TRACK_WEIGHT = 0.3
_SHAPE_SIGMA_M, _TRACK_SIGMA_M = 0.004, 0.02
"""How far points may lie from where they start: landmarks from the average face, tracks from a guess of their depth."""
_MATRIX_FOV_DEG = 63.0
_FLIP = np.diag([1.0, -1.0, -1.0])
"""OpenGL camera (y up, z back) to OpenCV."""


@dataclass(frozen=True, eq=False)
class Poses:
    """World-to-camera transforms of every frame and how well they fit."""

    viewmats: Float64[np.ndarray, "frames 4 4"]
    landmark_rms_px: float
    """Of the stable landmarks against the rigid shape, pixels of a 256-pixel crop."""
    track_median_px: float
    num_tracks: int


@dataclass(eq=False)
class _Followed:
    """Tracks of a keyframe, and where their points lie in the head frame [N 3] once a window was solved with them."""

    tracks: Tracks
    points: np.ndarray | None = None


def solve(
    landmarks: Float32[np.ndarray, "frames 478 coordinates"],
    matrices: Float64[np.ndarray, "frames 4 4"],
    tracks: Iterable[Tracks],
    focal_px: float,
) -> Poses:
    """Poses in the head frame of types.py. landmarks: pixels of 256-pixel crops; matrices: the landmark model's; focal_px: at that size.

    tracks: by keyframe, in order; taken as each window needs them, and only those of a window are held.
    """
    R, t = start_poses(matrices, focal_px)
    canonical = canonical_vertices()[list(STABLE)]
    shape, source, near = canonical, iter(tracks), deque[_Followed]()
    squares, medians, num_tracks = [], [], 0
    for window in _windows(len(R)):
        while not near or near[-1].tracks.keyframe < window.stop:
            following = next(source, None)
            if following is None:
                break
            near.append(_Followed(following))
            num_tracks += len(following.points)
        while near and not len(_shared(near[0].tracks, window)):
            near.popleft()
        here = [one for one in near if one.tracks.keyframe < window.stop]
        problem = _problem(window, R, t, landmarks[window, STABLE, :2], shape, here, focal_px)
        minimise(problem)
        _fade_in(R[window], t[window], problem, OVERLAP if window.start else 0)
        shape, *parts = np.split(problem.X, np.cumsum([len(STABLE), *(len(one.tracks.points) for one in here)])[:-1])
        for one, points in zip(here, parts, strict=True):
            one.points = points
        error = problem.errors_px()
        squares.append(np.square(error[:, : len(STABLE)]).mean())
        trusted = error[:, len(STABLE) :][problem.weights[:, len(STABLE) :] > 0.5 * _TRACK_WEIGHT]
        medians.append(float(np.median(trusted)) if trusted.size else float("nan"))
    viewmats = _to_head_frame(R, t, shape, canonical)
    return Poses(viewmats, float(np.sqrt(np.mean(squares))), float(np.mean(medians)), num_tracks)


def start_poses(matrices: Float64[np.ndarray, "frames 4 4"], focal_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotations and translations (OpenCV, metres, our head frame) from the landmark model's matrices, at our focal length."""
    left, _, right = np.linalg.svd(_FLIP @ matrices[:, :3, :3])
    R = left @ right
    own_focal_px = 0.5 * POSE_SIZE / np.tan(np.radians(_MATRIX_FOV_DEG / 2))
    t = matrices[:, :3, 3] @ _FLIP / 100
    t[:, 2] *= focal_px / own_focal_px  # the head keeps its size in the image
    return R, t + R @ np.array([0.0, HEAD_ORIGIN_M, 0.0])


def jitter(viewmats: np.ndarray, focal_px: float, splices: Iterable[int] = ()) -> dict[str, list[float] | float]:
    """Frame-to-frame noise from second differences (real motion counts too): degrees about x, y, z; pixels in x, y; percent of depth.

    splices: frames that begin after a splice; the jump there is the film's.
    """
    first, every = Rotation.from_matrix(viewmats[0, :3, :3]), Rotation.from_matrix(viewmats[:, :3, :3])
    t, depth = viewmats[:, :3, 3], float(np.median(viewmats[:, 2, 3]))
    steady = np.ones(len(viewmats) - 2, bool)
    for splice in splices:
        steady[max(0, splice - 2) : splice] = False
    turns = (first.inv() * every).as_rotvec(degrees=True)
    noise = [np.std(np.diff(x, 2, axis=0)[steady], axis=0) / np.sqrt(6) for x in (turns, t)]
    return {
        "rotation_deg": [round(float(v), 3) for v in noise[0]],
        "shift_px": [round(float(v) * focal_px / depth, 3) for v in noise[1][:2]],
        "depth_percent": round(float(noise[1][2]) / depth * 100, 3),
    }


def _windows(num_frames: int) -> Iterator[slice]:
    starts = [0] if num_frames <= WINDOW else range(0, num_frames - OVERLAP, WINDOW - OVERLAP)
    return (slice(start, min(start + WINDOW, num_frames)) for start in starts)


def _problem(
    window: slice, R: np.ndarray, t: np.ndarray, observed: np.ndarray, shape: np.ndarray, followed: list[_Followed], focal: float
) -> Problem:  # fmt: skip
    """Landmarks and the tracks that touch the window, as dense arrays with weight 0 where nothing was seen.

    Past the first window the shape is known, as are the points of tracks that the window before was solved with; they precede the others.
    """
    num_frames = window.stop - window.start
    rigid = np.array([_OVAL_WEIGHT if i in _OVAL else _LANDMARK_WEIGHT for i in STABLE])
    points, sigmas = [shape], [np.full(len(shape), _SHAPE_SIGMA_M)]
    seen, weights = [observed.astype(np.float64)], [np.tile(rigid, (num_frames, 1))]
    num_known = len(shape) if window.start else 0
    for one in followed:
        part, shared = one.tracks, _shared(one.tracks, window)
        here, there = (slice(shared.start - first, shared.stop - first) for first in (window.start, part.first))
        where, weight = np.zeros((num_frames, len(part.points), 2)), np.zeros((num_frames, len(part.points)))
        where[here], weight[here] = part.observed[there], part.weights[there] * _TRACK_WEIGHT
        if one.points is None:
            points.append(_lift(part, R[part.keyframe], t[part.keyframe], focal))
        else:
            points.append(one.points)
            num_known += len(one.points)
        sigmas.append(np.full(len(part.points), _TRACK_SIGMA_M))
        seen.append(where)
        weights.append(weight)
    return Problem(
        R=R[window].copy(),
        t=t[window].copy(),
        X=np.concatenate(points),
        sigma_m=np.concatenate(sigmas),
        observed=np.concatenate(seen, 1),
        weights=np.concatenate(weights, 1),
        focal=focal,
        num_known=num_known,
    )


def _shared(tracks: Tracks, window: slice) -> range:
    """Frames of the window through which the tracks' points were followed."""
    return range(max(tracks.first, window.start), min(tracks.first + len(tracks.observed), window.stop))


def _lift(part: Tracks, R: np.ndarray, t: np.ndarray, focal: float) -> np.ndarray:
    """First guess of the tracked points in the head frame: the depth of the nearest face vertices, further back away from the face."""
    camera = canonical_vertices() @ R.T + t
    pixels = focal * camera[:, :2] / camera[:, 2:] + POSE_SIZE / 2
    distance = np.linalg.norm(part.points[:, None] - pixels[None], axis=2)
    nearest = np.argsort(distance, axis=1)[:, :3]
    depth = camera[nearest, 2].mean(1) + np.clip(distance.min(1) - 4, 0, 60) * 0.5 * t[2] / focal
    rays = np.column_stack([(part.points - POSE_SIZE / 2) / focal, np.ones(len(depth))])
    return (rays * depth[:, None] - t) @ R


def _fade_in(R: np.ndarray, t: np.ndarray, solved: Problem, overlap: int) -> None:
    """Puts a window's poses into R, t in place; over the first `overlap` frames they take over from those that are there bit by bit."""
    share = np.minimum((np.arange(len(R)) + 1) / (overlap + 1), 1)
    turn = Rotation.from_matrix(solved.R @ R.transpose(0, 2, 1)).as_rotvec()
    R[:] = Rotation.from_rotvec(turn * share[:, None]).as_matrix() @ R
    t += share[:, None] * (solved.t - t)


def _to_head_frame(R: np.ndarray, t: np.ndarray, shape: np.ndarray, canonical: np.ndarray) -> np.ndarray:
    """Viewmats in the frame in which the solved shape lies best on the canonical face (similarity); the images stay the same."""
    middle, target = shape.mean(0), canonical.mean(0)
    left, singular, right = np.linalg.svd((canonical - target).T @ (shape - middle))
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    turn = left @ sign @ right
    scale = float((singular * np.diag(sign)).sum() / np.square(shape - middle).sum())
    offset = target - scale * turn @ middle
    viewmats = np.tile(np.eye(4), (len(R), 1, 1))
    viewmats[:, :3, :3] = R @ turn.T
    viewmats[:, :3, 3] = scale * t - viewmats[:, :3, :3] @ offset
    return viewmats
