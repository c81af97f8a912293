"""How late the sound of a clip is against its lips: the shift at which they open as what is heard foretells it (lips.py).

Sound that is a tenth of a second off teaches a mouth to move at the wrong time, and clips from the web often are (docs/decisions.md, 40).
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

from fiag_dist.ingest import lips
from fiag_dist.ingest.lips import FPS

MOST_S = 0.6
"""Offsets are searched up to this far both ways, seconds."""
LEAST_S = 3.0
"""Shorter clips tell too little."""
SURE_CORRELATION, SURE_MARGIN = 0.4, 0.15
"""An estimate is sure when lips follow the sound with this correlation, and at other shifts with so much less."""
WORTH_S = 0.03
"""Smaller offsets are left alone: estimates from different five seconds of one clip have a deviation of 0.015 s."""
_NEAR = 4
"""Frames around the best shift that say nothing against it: speech resembles itself."""
_SMOOTH_S = 2.0


@dataclass(frozen=True)
class Offset:
    """An estimate. `late_s`: by how much the sound comes after the lips, negative when it comes before, seconds."""

    late_s: float
    correlation: float
    """Of the mouth's opening with what the sound foretells, at the best shift."""
    elsewhere: float
    """The same at the best of the other shifts."""
    sure: bool


def estimate(mouth_open: Float[np.ndarray, " frames"], wav: Float32[np.ndarray, " samples"], fps: int) -> Offset | None:
    """The offset of a clip from the opening of its mouth in each frame and its sound (16 kHz); None for less than LEAST_S.

    Raises WeightsError when Whisper's file is missing.
    """
    num = len(mouth_open) * FPS // fps
    if num < LEAST_S * FPS:
        return None
    opening = np.interp(np.arange(num) / FPS, np.arange(len(mouth_open)) / fps, mouth_open)
    return compare(opening, lips.expected(wav, num))


def compare(opening: Float[np.ndarray, " frames"], expected: Float[np.ndarray, " frames"]) -> Offset:
    """Where two tracks at FPS agree best; more than 2 MOST_S long."""
    opening, expected = quick(opening), quick(expected)
    most = round(MOST_S * FPS)
    found = np.array([followed(opening, expected, shift) for shift in range(-most, most + 1)])
    best = int(found.argmax())
    elsewhere = float(found[np.abs(np.arange(len(found)) - best) > _NEAR].max())
    inside = 0 < best < len(found) - 1
    sure = inside and found[best] > SURE_CORRELATION and found[best] - elsewhere > SURE_MARGIN
    fine = 0.0
    if inside:  # the top of the parabola through three neighbours
        low, top, high = found[best - 1 : best + 2]
        fine = 0.5 * (low - high) / min(low - 2 * top + high, -1e-9)
    late_s = round(float(best - most + fine) / FPS, 3)
    return Offset(late_s, round(float(found[best]), 3), round(elsewhere, 3), bool(sure))


def quick(track: Float[np.ndarray, " frames"]) -> Float64[np.ndarray, " frames"]:
    """Without what changes over seconds, at FPS: moods and poses open a mouth as well."""
    wide = round(_SMOOTH_S / 2 * FPS)
    return track - np.convolve(np.pad(track, wide, "edge"), np.full(2 * wide + 1, 1 / (2 * wide + 1)), "valid")


def corrected(wav: Float32[np.ndarray, " samples"], late_s: float, sample_rate: int) -> Float32[np.ndarray, " moved"]:
    """The sound moved to where the lips are: its start cut off when it is late, silence before it when it is early."""
    samples = round(late_s * sample_rate)
    return wav[samples:] if samples > 0 else np.pad(wav, (-samples, 0))


def covered(wav: Float32[np.ndarray, " moved"], late_s: float, sample_rate: int, fps: int) -> tuple[int, int]:
    """Frames first .. stop - 1 have sound after it was moved by `late_s`: what came early lacks its start, what came late its end."""
    return max(0, math.ceil(-late_s * fps)), int(len(wav) / sample_rate * fps + 1e-6)


def followed(opening: Float[np.ndarray, " frames"], expected: Float[np.ndarray, " frames"], late: int) -> float:
    """Correlation of what overlaps when the sound is `late` frames late (negative: early); 0 where nothing moves."""
    a = opening[-late:] if late < 0 else opening[: len(opening) - late]
    b = expected[:late] if late < 0 else expected[late:]
    both = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean()) / both if both > 1e-12 else 0.0
