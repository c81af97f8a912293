"""report.json: what of a clip was used, what was left out, how well the head was tracked."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fiag_dist.config import PackConfig
from fiag_dist.ingest import masks, pose, rest, span, sync
from fiag_dist.ingest.face import Crop
from fiag_dist.ingest.footage import Tracked
from fiag_dist.ingest.tracks import POSE_SIZE
from fiag_dist.landmarks import CHIN, FOREHEAD_TOP, RIGID
from fiag_dist.types import BOUND_M


def report(
    path: Path, crop: Crop, cfg: PackConfig, use: span.Span, tracked: Tracked, poses: pose.Poses, offset: sync.Offset | None,
    fixed: bool,
) -> dict[str, Any]:  # fmt: skip
    """Plain values of a clip. fixed: whether the sound was moved by the offset."""
    return _footage(path, crop, cfg, use, use.first, tracked) | {
        "sound": None if offset is None else dataclasses.asdict(offset) | {"fixed": fixed},
        "pose": {
            "landmark_rms_px_at_256": round(poses.landmark_rms_px, 3),
            "track_median_px_at_256": round(poses.track_median_px, 3) if poses.num_tracks else None,
            "tracks": poses.num_tracks,
            "jitter": pose.jitter(poses.viewmats, cfg.focal_ratio * POSE_SIZE, [i - use.first for i in use.splices]),
        },
        "head_inside_bound": round(_inside_bound(cfg.focal_ratio, tracked, poses.viewmats), 4),
    }


def imported(
    path: Path, crop: Crop, cfg: PackConfig, use: span.Span, number: int, tracked: Tracked, viewmats: np.ndarray,
    K: np.ndarray, scale: float,
) -> dict[str, Any]:  # fmt: skip
    """Plain values of a prepared folder. number: of the first used frame, in the folder; K: of the samples; scale: units of its world to a metre."""
    rest_landmarks = rest.rest_shape(tracked.landmarks, viewmats, K)[list(RIGID)]
    seen = rest.project(np.tile(rest_landmarks, (len(tracked), 1, 1)), viewmats, K) * POSE_SIZE / cfg.size
    error = np.linalg.norm(seen - tracked.landmarks[:, RIGID] * POSE_SIZE / cfg.size, axis=-1)
    return _footage(path, crop, cfg, use, number, tracked) | {
        "pose": {
            "landmark_rms_px_at_256": round(float(np.sqrt(np.square(error).mean())), 3),
            "jitter": pose.jitter(viewmats, float(K[0, 0]) * POSE_SIZE / cfg.size),
            "world_units_per_metre": round(scale, 3),
        },
        "head_inside_bound": round(_inside_bound(float(K[0, 0]) / cfg.size, tracked, viewmats), 4),
    }


def _footage(path: Path, crop: Crop, cfg: PackConfig, use: span.Span, number: int, tracked: Tracked) -> dict[str, Any]:
    """What was used and what was left out. number: of the first used frame, in the footage."""
    heights = np.linalg.norm(tracked.landmarks[:, FOREHEAD_TOP] - tracked.landmarks[:, CHIN], axis=1)
    return {
        "clip": path.name,
        "start_s": round(number / cfg.fps, 2),
        "seconds_used": round(len(use) / cfg.fps, 2),
        "seconds_left_out": {reason: round(count / cfg.fps, 2) for reason, count in use.left_out.items()},
        "splices_s": [round(i / cfg.fps, 2) for i in use.splices],
        "crop_px": dataclasses.asdict(crop),
        "face_height_px": round(float(np.median(heights)), 1),
    }


def _inside_bound(focal_ratio: float, tracked: Tracked, viewmats: np.ndarray) -> float:
    """Share of the head's pixels whose rays pass the head's middle inside the cube of types.BOUND_M, over a few frames."""
    shares = []
    for i in np.linspace(0, len(tracked) - 1, 9).round().astype(int).tolist():
        alpha = masks.build(tracked.landmarks[i], tracked[i]).alpha
        rows, columns = np.nonzero(alpha > 127)
        R, t = viewmats[i, :3, :3], viewmats[i, :3, 3]
        centred = np.column_stack([columns + 0.5, rows + 0.5]) - len(alpha) / 2
        rays = np.column_stack([centred / (focal_ratio * len(alpha)), np.ones(len(rows))]) @ R
        eye = -t @ R
        at_middle = eye + rays * (-eye[2] / rays[:, 2])[:, None]
        shares.append(float((np.abs(at_middle).max(1) <= BOUND_M).mean()))
    return float(np.mean(shares))
