"""report.json: what of a clip was used, what was left out, how well the head was tracked."""

import dataclasses
from typing import Any

import numpy as np

from fiag_dist.config import PackConfig
from fiag_dist.ingest import masks, pose, span, sync
from fiag_dist.ingest.footage import Reel, Tracked
from fiag_dist.ingest.tracks import POSE_SIZE
from fiag_dist.landmarks import CHIN, FOREHEAD_TOP
from fiag_dist.types import BOUND_M


def report(
    reel: Reel,
    cfg: PackConfig,
    use: span.Span,
    tracked: Tracked,
    poses: pose.Poses,
    offset: sync.Offset | None,
    fixed: bool,
) -> dict[str, Any]:
    """Plain values. fixed: whether the sound was moved by the offset."""
    heights = np.linalg.norm(tracked.landmarks[:, FOREHEAD_TOP] - tracked.landmarks[:, CHIN], axis=1)
    return {
        "clip": reel.path.name,
        "start_s": round(use.first / cfg.fps, 2),
        "seconds_used": round(len(use) / cfg.fps, 2),
        "seconds_left_out": {reason: round(count / cfg.fps, 2) for reason, count in use.left_out.items()},
        "splices_s": [round(i / cfg.fps, 2) for i in use.splices],
        "sound": None if offset is None else dataclasses.asdict(offset) | {"fixed": fixed},
        "crop_px": dataclasses.asdict(reel.crop),
        "face_height_px": round(float(np.median(heights)), 1),
        "pose": {
            "landmark_rms_px_at_256": round(poses.landmark_rms_px, 3),
            "track_median_px_at_256": round(poses.track_median_px, 3),
            "tracks": poses.num_tracks,
            "jitter": pose.jitter(poses.viewmats, cfg.focal_ratio * POSE_SIZE),
        },
        "head_inside_bound": round(_inside_bound(cfg, tracked, poses), 4),
    }


def _inside_bound(cfg: PackConfig, tracked: Tracked, poses: pose.Poses) -> float:
    """Share of the head's pixels whose rays pass the head's middle inside the cube of types.BOUND_M, over a few frames."""
    shares = []
    for i in np.linspace(0, len(tracked) - 1, 9).round().astype(int).tolist():
        rows, columns = np.nonzero(masks.build(tracked.landmarks[i], tracked[i]).alpha > 127)
        R, t = poses.viewmats[i, :3, :3], poses.viewmats[i, :3, 3]
        centred = np.column_stack([columns + 0.5, rows + 0.5]) - cfg.size / 2
        rays = np.column_stack([centred / (cfg.focal_ratio * cfg.size), np.ones(len(rows))]) @ R
        eye = -t @ R
        at_middle = eye + rays * (-eye[2] / rays[:, 2])[:, None]
        shares.append(float((np.abs(at_middle).max(1) <= BOUND_M).mean()))
    return float(np.mean(shares))
