"""Head poses of a clip: bundle adjustment over stable landmarks and flow tracks, with one rigid shape and a fixed focal length.

The landmark model's own matrix assumes the average face, and landmarks alone jitter more than it does; tracks on hair and forehead hold the pose
still. Gauss-Newton with the points eliminated (Schur complement) in overlapping windows: the cost is linear in the clip's length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk  # type: ignore[attr-defined]
from scipy.spatial.transform import Rotation

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
_MIN_SHARED = 5
"""Tracks that share fewer frames with a window say nothing there."""
_ROBUST_PX2 = (30.0, 4.0, 0.5)
"""Cauchy loss: the squared error, pixels^2, from which an observation counts for less; wide first, while the tracks' depths are guesses."""
_SHAPE_SIGMA_M, _SHARED_SIGMA_M, _TRACK_SIGMA_M = 0.004, 0.001, 0.02
"""How far points may lie from where they start: landmarks from the average face, landmarks in a later window from the shared shape, tracks."""
_PRIOR_WEIGHT = 0.02
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
class _Problem:
    """Rotations [T 3 3], translations [T 3], points [N 3] with their start and stiffness, observations [T N 2] and weights [T N]."""

    R: np.ndarray
    t: np.ndarray
    X: np.ndarray
    X0: np.ndarray
    stiffness: np.ndarray
    observed: np.ndarray
    weights: np.ndarray
    focal: float


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
    observed = landmarks[:, STABLE, :2].astype(np.float64)
    source, near = iter(tracks), deque[Tracks]()
    num_tracks = 0
    rigid = np.array([_OVAL_WEIGHT if i in _OVAL else _LANDMARK_WEIGHT for i in STABLE])
    canonical = canonical_vertices()[list(STABLE)]
    num_frames = len(R)
    starts = [0] if num_frames <= WINDOW else list(range(0, num_frames - OVERLAP, WINDOW - OVERLAP))
    shape, sigma = canonical, _SHAPE_SIGMA_M
    if len(starts) > 1:
        some = np.linspace(0, num_frames - 1, WINDOW).round().astype(int)
        weights = np.tile(rigid, (len(some), 1))
        stiffness = np.full(len(STABLE), len(some) * _PRIOR_WEIGHT / sigma**2)
        problem = _Problem(R[some], t[some], canonical.copy(), canonical, stiffness, observed[some], weights, focal_px)
        _minimise(problem)
        shape, sigma = problem.X, _SHARED_SIGMA_M
    fade = np.zeros(num_frames)
    solved_R, solved_t = R.copy(), t.copy()
    errors, shapes, medians = [], [], []
    for start in starts:
        window = slice(start, min(start + WINDOW, num_frames))
        while not near or near[-1].keyframe < window.stop:
            following = next(source, None)
            if following is None:
                break
            near.append(following)
            num_tracks += len(following.points)
        while near and near[0].keyframe < start:
            near.popleft()
        problem = _window_problem(window, R, t, observed, rigid, shape, sigma, near, focal_px)
        _minimise(problem)
        shapes.append(problem.X[: len(STABLE)])
        error = np.linalg.norm(_project(problem)[0] - problem.observed, axis=-1)
        errors.append(error[:, : len(STABLE)])
        trusted = error[:, len(STABLE) :][problem.weights[:, len(STABLE) :] > 0.5 * _TRACK_WEIGHT]
        medians.append(float(np.median(trusted)) if trusted.size else float("nan"))
        share = (
            np.clip((np.arange(window.start, window.stop) - start + 1) / (OVERLAP + 1), 0, 1)
            if start
            else np.ones(len(error))
        )
        seen = fade[window] > 0
        _blend(solved_R[window], solved_t[window], problem.R, problem.t, np.where(seen, share, 1.0))
        fade[window] = 1
    viewmats = _to_head_frame(solved_R, solved_t, np.mean(shapes, axis=0), canonical)
    rms = float(np.sqrt(np.mean(np.square(np.concatenate(errors)))))
    return Poses(viewmats, rms, float(np.mean(medians)), num_tracks)


def start_poses(matrices: Float64[np.ndarray, "frames 4 4"], focal_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotations and translations (OpenCV, metres, our head frame) from the landmark model's matrices, at our focal length."""
    left, _, right = np.linalg.svd(_FLIP @ matrices[:, :3, :3])
    R = left @ right
    own_focal_px = 0.5 * POSE_SIZE / np.tan(np.radians(_MATRIX_FOV_DEG / 2))
    t = matrices[:, :3, 3] @ _FLIP / 100
    t[:, 2] *= focal_px / own_focal_px  # the head keeps its size in the image
    return R, t + R @ np.array([0.0, HEAD_ORIGIN_M, 0.0])


def jitter(viewmats: np.ndarray, focal_px: float) -> dict[str, list[float] | float]:
    """Frame-to-frame noise from second differences (real motion counts too): degrees about x, y, z; pixels in x, y; percent of depth."""
    turns = (Rotation.from_matrix(viewmats[0, :3, :3]).inv() * Rotation.from_matrix(viewmats[:, :3, :3])).as_rotvec(
        degrees=True
    )
    t, depth = viewmats[:, :3, 3], float(np.median(viewmats[:, 2, 3]))
    noise = [np.std(np.diff(x, 2, axis=0), axis=0) / np.sqrt(6) for x in (turns, t)]
    return {
        "rotation_deg": [round(float(v), 3) for v in noise[0]],
        "shift_px": [round(float(v) * focal_px / depth, 3) for v in noise[1][:2]],
        "depth_percent": round(float(noise[1][2]) / depth * 100, 3),
    }


def _window_problem(
    window: slice, R: np.ndarray, t: np.ndarray, observed: np.ndarray, rigid: np.ndarray, shape: np.ndarray, sigma: float,
    tracks: Iterable[Tracks], focal: float,
) -> _Problem:  # fmt: skip
    """Landmarks and every track that touches the window, as dense arrays with weight 0 where nothing was seen."""
    num_frames = window.stop - window.start
    points, sigmas = [shape], [np.full(len(shape), sigma)]
    seen, weights = [observed[window]], [np.tile(rigid, (num_frames, 1))]
    for part in tracks:
        low, high = max(part.first, window.start), min(part.first + len(part.observed), window.stop)
        if high - low < _MIN_SHARED or not window.start <= part.keyframe < window.stop:
            continue
        here, there = slice(low - window.start, high - window.start), slice(low - part.first, high - part.first)
        where, weight = np.zeros((num_frames, len(part.points), 2)), np.zeros((num_frames, len(part.points)))
        where[here], weight[here] = part.observed[there], part.weights[there] * _TRACK_WEIGHT
        points.append(_lift(part, R[part.keyframe], t[part.keyframe], focal))
        sigmas.append(np.full(len(part.points), _TRACK_SIGMA_M))
        seen.append(where)
        weights.append(weight)
    X = np.concatenate(points)
    stiffness = num_frames * _PRIOR_WEIGHT / np.square(np.concatenate(sigmas))
    return _Problem(
        R[window].copy(),
        t[window].copy(),
        X.copy(),
        X,
        stiffness,
        np.concatenate(seen, 1),
        np.concatenate(weights, 1),
        focal,
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


def _project(p: _Problem) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [T N 2] and camera-frame points [T N 3]."""
    camera = p.X @ p.R.transpose(0, 2, 1) + p.t[:, None]
    return p.focal * camera[..., :2] / camera[..., 2:] + POSE_SIZE / 2, camera


def _cost(p: _Problem, robust: float) -> float:
    squared = np.square(_project(p)[0] - p.observed).sum(-1)
    prior = (p.stiffness * np.square(p.X - p.X0).sum(-1)).sum() * _ROBUST_PX2[-1]
    return float((p.weights * np.log1p(squared / robust)).sum() * robust + prior)


def _minimise(p: _Problem, max_steps: int = 15, tolerance: float = 2e-4) -> None:
    """Levenberg-Marquardt on poses and points, in place; at each robust width until a step gains less than `tolerance` of the cost."""
    for robust in _ROBUST_PX2:
        cost, damping = _cost(p, robust), 1e-4
        for _ in range(max_steps):
            turn, shift, move = _step(p, robust, damping)
            old = p.R, p.t, p.X
            p.R, p.t, p.X = Rotation.from_rotvec(turn).as_matrix() @ p.R, p.t + shift, p.X + move
            new = _cost(p, robust)
            if new < cost:
                gain, cost, damping = (cost - new) / cost, new, max(damping / 5, 1e-7)
                if gain < (tolerance if robust == _ROBUST_PX2[-1] else 10 * tolerance):
                    break
            else:
                p.R, p.t, p.X = old
                damping *= 10
                if damping > 1:
                    break


def _step(p: _Problem, robust: float, damping: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One Gauss-Newton step: rotation vectors [T 3], shifts [T 3] and point moves [N 3]."""
    pixels, camera = _project(p)
    residual, stiffness = pixels - p.observed, p.stiffness * _ROBUST_PX2[-1]
    weight = p.weights / (1 + np.square(residual).sum(-1) / robust)  # Cauchy, as reweighted squares
    num_frames, num_points = weight.shape
    # Derivatives of the two pixel coordinates by the camera-frame point, [T N 2 3].
    by_camera = np.zeros((num_frames, num_points, 2, 3))
    by_camera[..., 0, 0] = by_camera[..., 1, 1] = p.focal / camera[..., 2]
    by_camera[..., 2] = -p.focal * camera[..., :2] / np.square(camera[..., 2:])
    arm = (camera - p.t[:, None])[:, :, None]
    by_pose = np.concatenate([np.cross(arm, by_camera), by_camera], -1)
    by_point = by_camera @ p.R[:, None]
    weighted = by_pose * weight[..., None, None]
    H_poses = np.einsum("tnij,tnik->tjk", weighted, by_pose, optimize=True)
    g_poses = -np.einsum("tnij,tni->tj", weighted, residual, optimize=True)
    H_mixed = weighted.transpose(0, 1, 3, 2) @ by_point
    weighted = by_point * weight[..., None, None]
    H_points = np.einsum("tnij,tnik->njk", weighted, by_point, optimize=True)
    g_points = -np.einsum("tnij,tni->nj", weighted, residual, optimize=True) - stiffness[:, None] * (p.X - p.X0)
    eye = np.eye(3)
    H_points = H_points * (1 + damping * eye) + (stiffness[:, None, None] + 1e-6) * eye
    # Points out: S = H_poses - (H_mixed L^-T)(H_mixed L^-T)^T with H_points = L L^T.
    inverse_L = np.linalg.inv(np.linalg.cholesky(H_points))
    half = (H_mixed @ inverse_L.transpose(0, 2, 1)).transpose(0, 2, 1, 3).reshape(6 * num_frames, 3 * num_points)
    half_g = (inverse_L @ g_points[..., None]).reshape(-1)
    S = -dsyrk(1.0, half.T, trans=1, lower=1)
    rows = np.arange(6 * num_frames).reshape(num_frames, 6)
    S[rows[:, :, None], rows[:, None, :]] += H_poses * (1 + damping * np.eye(6))
    pose_step = cho_solve(cho_factor(S, lower=True), g_poses.reshape(-1) - half @ half_g)
    point_step = (inverse_L.transpose(0, 2, 1) @ (half_g - half.T @ pose_step).reshape(-1, 3, 1))[..., 0]
    pose_step = pose_step.reshape(num_frames, 6)
    return pose_step[:, :3], pose_step[:, 3:], point_step


def _blend(R: np.ndarray, t: np.ndarray, new_R: np.ndarray, new_t: np.ndarray, share: np.ndarray) -> None:
    """Moves R, t towards the new ones by `share` [T], in place."""
    turn = Rotation.from_matrix(new_R @ R.transpose(0, 2, 1)).as_rotvec()
    R[:] = Rotation.from_rotvec(turn * share[:, None]).as_matrix() @ R
    t += share[:, None] * (new_t - t)


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
