"""How far lips open at a sound, foretold by a linear reading of speech features that was learnt from other people.

lips.npy beside this file is that reading: `python benchmarks/lips.py` fitted it to seven clips of Talking-Face_PC-AVS (Zhou et al., CC-BY-4.0). It
says when lips move, which is the same for everybody, and not how far this person's do (docs/decisions.md, 40).
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Float64

from fiag_dist.ingest import speech

EARS = "whisper:3"
"""Speech features that it listens to, whatever the shards hold."""
FPS = 25
TAPS = (-3, -1, 0, 1, 3)
"""Frames around a moment that are heard for it."""
FILE = Path(__file__).with_suffix(".npy")


def heard(wav: Float32[np.ndarray, " samples"], num_frames: int) -> Float64[np.ndarray, "frames 1920"]:
    """What the reading is of: the features around each of `num_frames` frames at FPS; wav at 16 kHz. Raises WeightsError when Whisper's file is missing."""
    return around(speech.features(wav, num_frames, FPS, EARS), TAPS)


def around(track: Float16[np.ndarray, "frames dim window"], taps: Sequence[int]) -> Float64[np.ndarray, "frames heard"]:
    """The mean window of each frame at `taps` from it, one after the other; the first or the last one beyond the ends."""
    means, num = track.astype(np.float64).mean(2), len(track)
    return means[(np.arange(num)[:, None] + np.array(taps)).clip(0, num - 1)].reshape(num, -1)


def expected(wav: Float32[np.ndarray, " samples"], num_frames: int) -> Float64[np.ndarray, " frames"]:
    """How far lips should be open in each frame, but for a factor and a constant. Raises WeightsError when Whisper's file is missing."""
    return heard(wav, num_frames) @ _reading()


@lru_cache(maxsize=1)
def _reading() -> Float64[np.ndarray, " 1920"]:
    return np.load(FILE, allow_pickle=False).astype(np.float64)
