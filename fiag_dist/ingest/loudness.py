"""How loud a sound is at each frame of a video, and how far that is from silence."""

import numpy as np
from jaxtyping import Float32, Float64

from fiag_dist.media.sound import SAMPLE_RATE

SILENT_DB, CLEAR_DB = -35.0, -20.0
"""Against the loud frames of the same sound: at the first nobody speaks, at the second somebody does."""


def loudness_db(
    wav: Float32[np.ndarray, " samples"], num_frames: int, fps: float
) -> Float64[np.ndarray, " num_frames"]:
    """Of the two frames' time around each frame, against full scale."""
    samples = SAMPLE_RATE / fps
    power = np.concatenate([[0.0], np.cumsum(np.asarray(wav, np.float64) ** 2)])
    first = ((np.arange(num_frames) - 0.5) * samples).round().astype(int).clip(0, len(power) - 1)
    last = ((np.arange(num_frames) + 1.5) * samples).round().astype(int).clip(0, len(power) - 1)
    return 10 * np.log10((power[last] - power[first]) / np.maximum(last - first, 1) + 1e-12)


def loud_db(loudness: Float64[np.ndarray, " frames"]) -> float:
    """Of the loud frames: the 95th percentile."""
    return float(np.percentile(loudness, 95))


def audible(loudness: Float64[np.ndarray, " frames"], loud: float) -> Float32[np.ndarray, " frames"]:
    """How far each frame is from silence, 0..1."""
    return ((loudness - loud - SILENT_DB) / (CLEAR_DB - SILENT_DB)).clip(0, 1).astype(np.float32)
