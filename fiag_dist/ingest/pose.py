"""Head poses of a clip: bundle adjustment over stable landmarks and flow tracks, with one rigid shape and a fixed focal length.

The landmark model's own matrix assumes the average face, and landmarks alone jitter more than it does; tracks on hair and forehead hold the pose
still. A long clip is solved in overlapping windows, so that the cost is linear in its length. All share one shape, found from landmarks all over the clip; what
a window finds of the tracks' points holds in later ones, where tracks go on and where the first keyframe is seen again.

Skin slides and hair swings: face and hair are two bodies. All points together decide on the shape; then what lies on the face alone says where the
face is, and what lies beyond where the hair is; between them lies the hair's `swing` (docs/decisions.md, 35).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64
from scipy.spatial.transform import Rotation

from fiag_dist.ingest.adjustment import Problem, minimise
from fiag_dist.ingest.face_model import canonical_vertices
from fiag_dist.ingest.tracks import POSE_SIZE, Tracks
from fiag_dist.landmarks import OVAL_SIDES, RIGID
from fiag_dist.types import HEAD_ORIGIN_M, STILL

WINDOW, OVERLAP = 250, 50
"""Frames solved together; neighbouring windows share OVERLAP frames, over which one fades into the next."""

_LANDMARK_WEIGHT, _OVAL_WEIGHT = 0.3, 0.09
_TRACK_WEIGHT = 0.3
_FACE_IN_HAIR = 0.1
"""How much of their weight points of the face have where hair is placed: where little hair can be followed, it moves with the face."""
_SHAPE_SIGMA_M, _TRACK_SIGMA_M = 0.004, 0.02
"""How far points may lie from where they start: landmarks from the average face, tracks from a guess of their depth."""
_MATRIX_FOV_DEG = 63.0
_FLIP = np.diag([1.0, -1.0, -1.0])
"""OpenGL camera (y up, z back) to OpenCV."""


@dataclass(frozen=True, eq=False)
class Poses:
    """World-to-camera transforms of every frame and how well they fit."""

    viewmats: Float64[np.ndarray, "frames 4 4"]
    """Of the face."""
    swing: Float[np.ndarray, "frames 3 4"]
    """Of what lies beyond it, as in Frame."""
    landmark_rms_px: float
    """Of the stable landmarks against the rigid shape, pixels of a 256-pixel crop."""
    track_median_px: float
    """NaN without tracks."""
    num_tracks: int


def solve(
    landmarks: Float32[np.ndarray, "frames 478 coordinates"],
    matrices: Float64[np.ndarray, "frames 4 4"],
    tracks: Iterable[Tracks],
    focal_px: float,
    splices: Sequence[int] = (),
) -> Poses:
    """Poses in the head frame of types.py. landmarks: pixels of 256-pixel crops; matrices: the landmark model's; focal_px: at that size.

    tracks: as `follow` yields them; taken as each window needs them, and only those of a window are held. splices: frames before which the film was cut
    out of; there the head may jump.
    """
    R, t = start_poses(matrices, focal_px)
    steady = _steady(len(R), splices)
    windows, canonical = _windows(len(R)), canonical_vertices()[list(RIGID)]
    shared = len(windows) > 1
    shape = _shared_shape(R, t, landmarks, canonical, focal_px) if shared else canonical
    source, near, solved = iter(tracks), deque[Tracks](), dict[int, np.ndarray]()
    squares, medians, num_tracks = [], [], 0
    of_all, of_face, of_hair = (R, t), (R.copy(), t.copy()), (R.copy(), t.copy())
    for window in windows:
        near.extend(_until(window.stop, source))
        while near and near[0].frames.stop <= window.start:
            near.popleft()
        here = _by_keyframe(near, window, solved)
        problem = _problem(window, R, t, landmarks, shape, here, solved, focal_px)
        problem.calm_where(steady[window.start : window.stop - 2])
        problem.num_known = sum(len(solved[k]) for k in here if k in solved) + (len(shape) if shared else 0)
        minimise(problem)
        on_face = np.concatenate([np.ones(len(shape), bool), *(parts[0].on_face for parts in here.values())])
        face, hair = problem.placed_by(on_face), problem.placed_by(np.where(on_face, _FACE_IN_HAIR, 1.0))
        minimise(face)
        minimise(hair)
        for (turns, shifts), found in ((of_all, problem), (of_face, face), (of_hair, hair)):
            overlap = OVERLAP if window.start else 0
            turns[window], shifts[window] = _faded(turns[window], shifts[window], found, overlap)
        shape, *points = np.split(
            problem.X, np.cumsum([len(shape), *(len(parts[0].points) for parts in here.values())])[:-1]
        )
        num_tracks += sum(len(found) for k, found in zip(here, points, strict=True) if k not in solved)
        solved.update(zip(here, points, strict=True))
        error = problem.errors_px()
        squares.append(np.square(error[:, : len(shape)]).mean())
        trusted = error[:, len(shape) :][problem.weights[:, len(shape) :] > 0.5 * _TRACK_WEIGHT]
        medians += [float(np.median(trusted))] if trusted.size else []
    viewmats, hair_viewmats = (_to_head_frame(*placed, shape, canonical) for placed in (of_face, of_hair))
    return Poses(
        viewmats,
        (np.linalg.inv(viewmats) @ hair_viewmats)[:, :3],
        float(np.sqrt(np.mean(squares))),
        float(np.mean(medians)) if medians else float("nan"),
        num_tracks,
    )


def detected(
    landmarks: Float32[np.ndarray, "frames 478 coordinates"],
    matrices: Float64[np.ndarray, "frames 4 4"],
    focal_px: float,
) -> Poses:
    """The landmark model's own poses, to compare with; arguments as for `solve`."""
    R, t = start_poses(matrices, focal_px)
    canonical = canonical_vertices()[list(RIGID)]
    error = _problem(range(len(R)), R, t, landmarks, canonical, {}, {}, focal_px).errors_px()
    viewmats = _to_head_frame(R, t, canonical, canonical)
    return Poses(viewmats, np.tile(STILL, (len(R), 1, 1)), float(np.sqrt(np.square(error).mean())), float("nan"), 0)


def start_poses(matrices: Float64[np.ndarray, "frames 4 4"], focal_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotations and translations (OpenCV, metres, our head frame) from the landmark model's matrices, at our focal length."""
    left, _, right = np.linalg.svd(_FLIP @ matrices[:, :3, :3])
    R = left @ right
    own_focal_px = 0.5 * POSE_SIZE / np.tan(np.radians(_MATRIX_FOV_DEG / 2))
    t = matrices[:, :3, 3] @ _FLIP / 100
    t[:, 2] *= focal_px / own_focal_px  # the head keeps its size in the image
    return R, t + R @ np.array([0.0, HEAD_ORIGIN_M, 0.0])


def jitter(viewmats: np.ndarray, focal_px: float, splices: Iterable[int] = ()) -> dict[str, Any]:
    """Frame-to-frame noise from second differences (real motion counts too): degrees about x, y, z; pixels in x, y; percent of depth.

    splices: frames that begin after a splice; the jump there is the film's.
    """
    first, every = Rotation.from_matrix(viewmats[0, :3, :3]), Rotation.from_matrix(viewmats[:, :3, :3])
    t, depth = viewmats[:, :3, 3], float(np.median(viewmats[:, 2, 3]))
    steady = _steady(len(viewmats), splices)
    turns = (first.inv() * every).as_rotvec(degrees=True)
    noise = [np.std(np.diff(x, 2, axis=0)[steady], axis=0) / np.sqrt(6) for x in (turns, t)]
    return {
        "rotation_deg": [round(float(v), 3) for v in noise[0]],
        "shift_px": [round(float(v) * focal_px / depth, 3) for v in noise[1][:2]],
        "depth_percent": round(float(noise[1][2]) / depth * 100, 3),
    }


def _steady(num_frames: int, splices: Iterable[int]) -> np.ndarray:
    """Whether no splice lies between frames i, i + 1 and i + 2, bool [num_frames - 2]."""
    steady = np.ones(max(0, num_frames - 2), bool)
    for splice in splices:
        steady[max(0, splice - 2) : splice] = False
    return steady


def _windows(num_frames: int) -> list[range]:
    starts = [0] if num_frames <= WINDOW else range(0, num_frames - OVERLAP, WINDOW - OVERLAP)
    return [range(start, min(start + WINDOW, num_frames)) for start in starts]


def _shared_shape(
    R: np.ndarray, t: np.ndarray, landmarks: np.ndarray, canonical: np.ndarray, focal: float
) -> np.ndarray:
    """The stable landmarks of a long clip's head, from frames spread over all of it; without tracks, which hardly any of these frames share."""
    spread = np.linspace(0, len(R) - 1, WINDOW).round().astype(int)
    problem = _problem(spread, R, t, landmarks, canonical, {}, {}, focal)
    minimise(problem)
    return problem.X


def _until(stop: int, source: Iterator[Tracks]) -> Iterator[Tracks]:
    """Tracks up to the first of a keyframe at `stop` or later: by then all that earlier frames can have are there."""
    for part in source:
        yield part
        if part.keyframe >= stop:
            return


def _by_keyframe(near: Iterable[Tracks], window: range, solved: dict[int, np.ndarray]) -> dict[int, list[Tracks]]:
    """Tracks that a window can use, by keyframe: those whose points were solved before, then those of keyframes in it."""
    found: dict[int, list[Tracks]] = {}
    for part in near:
        met = part.frames.start < window.stop and window.start < part.frames.stop
        if met and (part.keyframe in solved or (part.keyframe in window and part.keyframe in part.frames)):
            found.setdefault(part.keyframe, []).append(part)
    return dict(sorted(found.items(), key=lambda item: item[0] not in solved))


def _problem(
    frames: range | np.ndarray, R: np.ndarray, t: np.ndarray, landmarks: np.ndarray, shape: np.ndarray,
    tracks: dict[int, list[Tracks]], solved: dict[int, np.ndarray], focal: float,
) -> Problem:  # fmt: skip
    """Landmarks and tracks of some frames, in order, as dense arrays with weight 0 where nothing was seen."""
    rigid = np.array([_OVAL_WEIGHT if i in OVAL_SIDES else _LANDMARK_WEIGHT for i in RIGID])
    points, sigmas = [shape], [np.full(len(shape), _SHAPE_SIGMA_M)]
    seen, weights = [landmarks[frames][:, RIGID, :2].astype(np.float64)], [np.tile(rigid, (len(frames), 1))]
    for keyframe, parts in tracks.items():
        num_points = len(parts[0].points)
        where, weight = np.zeros((len(frames), num_points, 2)), np.zeros((len(frames), num_points))
        for part in parts:
            _, here, there = np.intersect1d(frames, part.frames, assume_unique=True, return_indices=True)
            where[here], weight[here] = part.observed[there], part.weights[there] * _TRACK_WEIGHT
        points.append(solved[keyframe] if keyframe in solved else _lift(parts[0], R[keyframe], t[keyframe], focal))
        sigmas.append(np.full(num_points, _TRACK_SIGMA_M))
        seen.append(where)
        weights.append(weight)
    return Problem(
        R=R[frames],
        t=t[frames],
        X=np.concatenate(points),
        sigma_m=np.concatenate(sigmas),
        observed=np.concatenate(seen, 1),
        weights=np.concatenate(weights, 1),
        focal=focal,
    )


def _lift(part: Tracks, R: np.ndarray, t: np.ndarray, focal: float) -> np.ndarray:
    """First guess of the tracked points in the head frame: the depth of the nearest face vertices, further back away from the face."""
    camera = canonical_vertices() @ R.T + t
    pixels = focal * camera[:, :2] / camera[:, 2:] + POSE_SIZE / 2
    distance = np.linalg.norm(part.points[:, None] - pixels[None], axis=2)
    nearest = np.argsort(distance, axis=1)[:, :3]
    depth = camera[nearest, 2].mean(1) + np.clip(distance.min(1) - 4, 0, 60) * 0.5 * t[2] / focal
    rays = np.column_stack([(part.points - POSE_SIZE / 2) / focal, np.ones(len(depth))])
    return (rays * depth[:, None] - t) @ R


def _faded(R: np.ndarray, t: np.ndarray, solved: Problem, overlap: int) -> tuple[np.ndarray, np.ndarray]:
    """A window's poses, which over the first `overlap` frames take over from R, t little by little."""
    share = np.minimum((np.arange(len(R)) + 1) / (overlap + 1), 1)
    turn = Rotation.from_matrix(solved.R @ R.transpose(0, 2, 1)).as_rotvec()
    return Rotation.from_rotvec(turn * share[:, None]).as_matrix() @ R, t + share[:, None] * (solved.t - t)


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
