"""What the settings of packing may be: some that are not would else be noticed by who trains on the shards, hours later."""

import dataclasses
import math

from fiag_dist.config import PackConfig
from fiag_dist.errors import ConfigError

SIZES = (48, 2048)
"""Smallest and largest side of packed frames, pixels: LPIPS takes nothing smaller than 35."""
MOST_FPS = 240
"""No camera that films people talking is faster; each frame of a slower clip would be packed several times."""
MOST_PER_SHARD = 10_000
"""Samples in a tar file, which is made in memory: at 256 pixels about a gigabyte."""


def refuse_nonsense(cfg: PackConfig) -> None:
    """Raises ConfigError when a setting is out of range."""
    even = cfg.size % 2 == 0 and SIZES[0] <= cfg.size <= SIZES[1]  # identities keep their backdrop as H.264
    finite = [
        (name, math.isfinite(value), "a finite number")
        for name, value in dataclasses.asdict(cfg).items()
        if isinstance(value, float)
    ]
    rules = (
        *finite,
        ("size", even, f"an even number of pixels, {SIZES[0]} to {SIZES[1]}"),
        ("fps", cfg.fps >= 1, "1 frame a second or more"),
        ("fps", cfg.fps <= MOST_FPS, f"{MOST_FPS} frames a second or less"),
        ("max_seconds", cfg.max_seconds >= 0, "0 (all of a clip) or more"),
        ("min_seconds", cfg.min_seconds >= 0, "0 or more"),
        (
            "max_seconds",
            cfg.max_seconds == 0 or cfg.max_seconds >= cfg.min_seconds,
            f"0 (all of a clip), or min_seconds ({cfg.min_seconds:g}) or more: what is shorter is refused",
        ),
        ("focal_ratio", cfg.focal_ratio > 0, "more than 0"),
        (
            "test_share",
            0 < cfg.test_share < 1,
            "more than 0 and less than 1, so that there is something to train on and to test with",
        ),
        ("frames_per_shard", cfg.frames_per_shard >= 1, "1 or more"),
        (
            "frames_per_shard",
            cfg.frames_per_shard <= MOST_PER_SHARD,
            f"{MOST_PER_SHARD} or less, since a shard is made in memory",
        ),
        ("jobs", cfg.jobs >= 0, "0 (as many as there are cores and memory for) or more"),
    )
    for name, fine, rule in rules:
        if not fine:
            example = f"--{name.replace('_', '-')} {getattr(PackConfig(), name):.4g}"
            raise ConfigError(f"{name} {getattr(cfg, name)}: the rule is {rule}; for example {example}")
