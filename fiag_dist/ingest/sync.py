"""How late the sound of a clip is against its lips: the shift at which speech foretells the opening of the mouth best."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Float32

from fiag_dist.ingest import speech

MOST_S = 0.6
"""Offsets are searched up to this far both ways, seconds."""
LEAST_S = 5.0
SURE_CORRELATION, SURE_MARGIN = 0.4, 0.2
"""An estimate is sure when sound foretells the lips with this correlation, and other shifts with so much less."""
WORTH_S = 0.06
"""Smaller offsets are left alone: speech features reach that far to both sides, and lips often move a little before they are heard."""
_NEAR = 4
"""Frames around the best shift that say nothing against it: speech resembles itself."""
_BANDS, _RIDGE, _FOLDS, _GAP, _SMOOTH_S = 16, 30.0, 5, 5, 2.0


@dataclass(frozen=True)
class Offset:
    """An estimate. `late_s`: by how much the sound comes after the lips, negative when it comes before, seconds."""

    late_s: float
    correlation: float
    """Of the mouth's opening with what the sound foretells, at the best shift, on seconds left out of the fit."""
    elsewhere: float
    """The same at the best of the other shifts."""
    sure: bool


def estimate(mouth_open: Float[np.ndarray, " frames"], wav: Float32[np.ndarray, " samples"], fps: int) -> Offset | None:
    """The offset of a clip from the opening of its mouth in each frame and its sound; None for less than LEAST_S."""
    num_frames, most = len(mouth_open), round(MOST_S * fps)
    if num_frames < LEAST_S * fps:
        return None
    wide = round(_SMOOTH_S / 2 * fps)
    slow = np.convolve(np.pad(mouth_open, wide, "edge"), np.full(2 * wide + 1, 1 / (2 * wide + 1)), "valid")
    lips = mouth_open - slow
    mel = speech.features(wav, num_frames, fps, "mel").astype(np.float64).mean(2)
    bands = mel.reshape(num_frames, _BANDS, -1).mean(2)
    heard = np.concatenate([np.roll(bands, k, axis=0) for k in (-1, 0, 1)], axis=1)
    middle = np.arange(most + 1, num_frames - most - 1)
    found = np.array([_foretold(heard[middle + shift], lips[middle]) for shift in range(-most, most + 1)])
    best = int(found.argmax())
    elsewhere = float(found[np.abs(np.arange(len(found)) - best) > _NEAR].max())
    inside = 0 < best < len(found) - 1
    sure = inside and found[best] > SURE_CORRELATION and found[best] - elsewhere > SURE_MARGIN
    fine = 0.0
    if inside:  # the top of the parabola through three neighbours
        low, top, high = found[best - 1 : best + 2]
        fine = 0.5 * (low - high) / min(low - 2 * top + high, -1e-9)
    late_s = round(float(best - most + fine) / fps, 3)
    return Offset(late_s, round(float(found[best]), 3), round(elsewhere, 3), bool(sure))


def corrected(wav: Float32[np.ndarray, " samples"], late_s: float, sample_rate: int) -> Float32[np.ndarray, " moved"]:
    """The sound moved to where the lips are: its start cut off when it is late, silence before it when it is early."""
    samples = round(late_s * sample_rate)
    return wav[samples:] if samples > 0 else np.pad(wav, (-samples, 0))


def _foretold(heard: np.ndarray, lips: np.ndarray) -> float:
    """Correlation of lips [T] with their ridge regression from heard [T F], each fifth of the frames foretold from the others."""
    foretold, edges = np.zeros(len(lips)), np.linspace(0, len(lips), _FOLDS + 1).astype(int)
    for low, high in pairwise(edges):
        others = np.r_[0 : max(0, low - _GAP), min(len(lips), high + _GAP) : len(lips)]
        mean, spread = heard[others].mean(0), heard[others].std(0) + 1e-6
        x, y = (heard[others] - mean) / spread, lips[others] - lips[others].mean()
        weights = np.linalg.solve(x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T @ y)
        foretold[low:high] = (heard[low:high] - mean) / spread @ weights
    spread = foretold.std() * lips.std()
    return float(np.mean((foretold - foretold.mean()) * (lips - lips.mean())) / spread) if spread > 0 else 0.0
