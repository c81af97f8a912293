"""Bundle adjustment of one moving rigid head: Gauss-Newton on poses and points, robust against outliers, with the points eliminated (Schur complement)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk  # type: ignore[attr-defined]
from scipy.spatial.transform import Rotation

from fiag_dist.ingest.tracks import POSE_SIZE

_ROBUST_PX2 = (30.0, 4.0, 0.5)
"""Cauchy loss: the squared error, pixels^2, from which an observation counts for less; wide first, while the tracks' depths are guesses."""
_PRIOR_WEIGHT = 0.02
_CALM_WEIGHT = 0.3
"""Of the second difference of a pose, in pixels by which it moves the head's surface: breaks ties between turn, shift and depth, and hardly costs a fit."""
_ARM_M = 0.08
"""From the head's middle to its surface: how far a turn of one radian moves it."""


@dataclass(eq=False)
class Problem:
    """Rotations [T 3 3], translations [T 3], points [N 3] with how far they may lie from where they start [N], observations [T N 2] and weights [T N].

    The first `num_known` points are held where they are.
    """

    R: np.ndarray
    t: np.ndarray
    X: np.ndarray
    sigma_m: np.ndarray
    observed: np.ndarray
    weights: np.ndarray
    focal: float
    num_known: int = 0

    def __post_init__(self) -> None:
        self.X0 = self.X
        self.stiffness = len(self.R) * _PRIOR_WEIGHT / np.square(self.sigma_m)
        per_metre = self.focal / np.median(self.t[:, 2])
        self.calm_6 = _CALM_WEIGHT * np.square(per_metre * np.array([_ARM_M] * 3 + [1] * 3))
        self.calm_where(np.zeros(max(0, len(self.R) - 2)))

    def calm_where(self, neighbours: np.ndarray) -> None:
        """Lets poses i, i + 1 and i + 2 prefer a line where `neighbours` [T-2] is 1; at first they do nowhere."""
        self.neighbours = neighbours[:, None].astype(float)
        self.differences = self.neighbours * np.diff(np.eye(len(self.R)), 2, axis=0)
        self.H_calm = self.differences.T @ self.differences

    def placed_by(self, shares: np.ndarray) -> Problem:
        """How the same frames are posed by points that stay where they are and have these shares of their weights [N]."""
        some = shares > 0
        part = replace(
            self,
            X=self.X[some],
            sigma_m=self.sigma_m[some],
            observed=self.observed[:, some],
            weights=self.weights[:, some] * shares[some],
            num_known=int(some.sum()),
        )
        part.calm_where(self.neighbours[:, 0])
        return part

    def project(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [T N 2] and camera-frame points [T N 3]."""
        camera = self.X @ self.R.transpose(0, 2, 1) + self.t[:, None]
        return self.focal * camera[..., :2] / camera[..., 2:] + POSE_SIZE / 2, camera

    def errors_px(self) -> np.ndarray:
        """Distance of each point from where it was seen [T N], pixels."""
        return np.linalg.norm(self.project()[0] - self.observed, axis=-1)

    def unrest(self) -> np.ndarray:
        """Second differences of turns (radians) and shifts (metres) where poses prefer a line, else 0 [T-2 6]."""
        turns = Rotation.from_matrix(self.R[1:] @ self.R[:-1].transpose(0, 2, 1)).as_rotvec()
        return self.neighbours * np.column_stack([np.diff(turns, axis=0), np.diff(self.t, 2, axis=0)])


def minimise(p: Problem, max_steps: int = 15, tolerance: float = 2e-4) -> None:
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


def _cost(p: Problem, robust: float) -> float:
    squared = np.square(p.project()[0] - p.observed).sum(-1)
    prior = (p.stiffness * np.square(p.X - p.X0).sum(-1)).sum() * _ROBUST_PX2[-1]
    unrest = (p.calm_6 * np.square(p.unrest())).sum()
    return float((p.weights * np.log1p(squared / robust)).sum() * robust + prior + unrest)


def _step(p: Problem, robust: float, damping: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One Gauss-Newton step: rotation vectors [T 3], shifts [T 3] and point moves [N 3]."""
    pixels, camera = p.project()
    residual, free = pixels - p.observed, slice(p.num_known, None)
    weight = p.weights / (1 + np.square(residual).sum(-1) / robust)  # Cauchy, as reweighted squares
    num_frames, num_points = weight.shape
    # Derivatives of the two pixel coordinates by the camera-frame point, [T N 2 3].
    by_camera = np.zeros((num_frames, num_points, 2, 3))
    by_camera[..., 0, 0] = by_camera[..., 1, 1] = p.focal / camera[..., 2]
    by_camera[..., 2] = -p.focal * camera[..., :2] / np.square(camera[..., 2:])
    arm = (camera - p.t[:, None])[:, :, None]
    by_pose = np.concatenate([np.cross(arm, by_camera), by_camera], -1)
    weighted = by_pose * weight[..., None, None]
    H_poses = np.einsum("tnij,tnik->tjk", weighted, by_pose, optimize=True)
    g_poses = -np.einsum("tnij,tni->tj", weighted, residual, optimize=True)
    by_point = by_camera[:, free] @ p.R[:, None]
    H_mixed = weighted[:, free].transpose(0, 1, 3, 2) @ by_point
    weighted = by_point * weight[:, free, None, None]
    stiffness = p.stiffness[free] * _ROBUST_PX2[-1]
    H_points = np.einsum("tnij,tnik->njk", weighted, by_point, optimize=True)
    g_points = -np.einsum("tnij,tni->nj", weighted, residual[:, free], optimize=True)
    g_points -= stiffness[:, None] * (p.X - p.X0)[free]
    eye = np.eye(3)
    H_points = H_points * (1 + damping * eye) + (stiffness[:, None, None] + 1e-6) * eye
    # Points out: S = H_poses - (H_mixed L^-T)(H_mixed L^-T)^T with H_points = L L^T.
    inverse_L = np.linalg.inv(np.linalg.cholesky(H_points))
    half = (H_mixed @ inverse_L.transpose(0, 2, 1)).transpose(0, 2, 1, 3).reshape(6 * num_frames, 3 * len(g_points))
    half_g = (inverse_L @ g_points[..., None]).reshape(-1)
    S = np.zeros((6 * num_frames, 6 * num_frames), order="F")
    if half.size:  # BLAS knows no empty matrices
        S = dsyrk(-1.0, half.T, trans=1, lower=1, c=S, overwrite_c=1)
    rows = np.arange(6 * num_frames).reshape(num_frames, 6)
    S[rows[:, :, None], rows[:, None, :]] += H_poses * (1 + damping * np.eye(6))
    for axis, calm in enumerate(p.calm_6):
        S[axis::6, axis::6] += calm * p.H_calm
    g_poses -= p.calm_6 * (p.differences.T @ p.unrest())
    pose_step = np.asarray(cho_solve(cho_factor(S, lower=True), g_poses.reshape(-1) - half @ half_g))
    point_step = np.zeros_like(p.X)
    point_step[free] = (inverse_L.transpose(0, 2, 1) @ (half_g - half.T @ pose_step).reshape(-1, 3, 1))[..., 0]
    pose_step = pose_step.reshape(num_frames, 6)
    return pose_step[:, :3], pose_step[:, 3:], point_step
