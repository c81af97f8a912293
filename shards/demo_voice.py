"""A made-up voice: syllables of formant-synthesised vowels with pauses between phrases, and the mouth that goes with it."""

from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16_000
CONTROL_HZ = 100

# vowel: first three formants in Hz, jaw opening 0..1, lip width -1 (pursed) .. 1 (spread), loudness
SOUNDS = {
    "a": ((730, 1090, 2440), 1.00, 0.1, 1.0),
    "e": ((530, 1840, 2480), 0.55, 0.6, 0.8),
    "i": ((270, 2290, 3010), 0.25, 1.0, 0.6),
    "o": ((570, 840, 2410), 0.70, -0.7, 0.8),
    "u": ((300, 870, 2240), 0.30, -1.0, 0.6),
    "m": ((250, 1000, 2200), 0.00, 0.0, 0.15),
    "s": ((250, 1800, 2600), 0.12, 0.4, 0.0),
    " ": ((500, 1500, 2500), 0.00, 0.0, 0.0),
}
HISS = {"s": 0.25}
SMOOTHING_S = 0.035


@dataclass(frozen=True, eq=False)
class Speech:
    """`wav`: float32 mono at 16 kHz, -1..1. `opening` 0..1 and `width` -1..1: one value a video frame."""

    wav: np.ndarray
    opening: np.ndarray
    width: np.ndarray


def speak(rng: np.random.Generator, num_frames: int, fps: float, pitch_hz: float, tract: float) -> Speech:
    """Speech of num_frames / fps seconds. `tract` scales the formants: below 1 a longer vocal tract, a deeper timbre."""
    seconds = num_frames / fps
    times = np.arange(int(np.ceil(seconds * CONTROL_HZ)) + 1) / CONTROL_HZ
    sounds = _sentence(rng, seconds)
    formants = tract * _track(sounds, times, [SOUNDS[s][0] for s, _ in sounds])
    opening, width, loudness, hiss = _track(sounds, times, [(*SOUNDS[s][1:], HISS.get(s, 0.0)) for s, _ in sounds]).T
    wav = _voice(rng, times, formants, loudness, pitch_hz) + _noise(rng, times, hiss)
    samples = round(seconds * SAMPLE_RATE)
    wav = 0.7 * wav[:samples] / np.abs(wav).max()
    # a video frame shows the mouth in the middle of its time
    middles = (np.arange(num_frames) + 0.5) / fps
    return Speech(
        wav.astype(np.float32),
        np.interp(middles, times, opening).clip(0, 1),
        np.interp(middles, times, width).clip(-1, 1),
    )


def _sentence(rng: np.random.Generator, seconds: float) -> list[tuple[str, float]]:
    """Sounds and their lengths in seconds, starting and ending in silence."""
    sounds = [(" ", rng.uniform(0.1, 0.3))]
    while sum(length for _, length in sounds) < seconds:
        for _ in range(rng.integers(3, 7)):
            sounds.append((rng.choice(["m", "s"]), rng.uniform(0.06, 0.11)))
            sounds.append((rng.choice(["a", "e", "i", "o", "u"], p=[0.3, 0.2, 0.2, 0.2, 0.1]), rng.uniform(0.14, 0.28)))
        sounds.append((" ", rng.uniform(0.25, 0.6)))
    return sounds


def _track(sounds: list[tuple[str, float]], times: np.ndarray, values: list[tuple]) -> np.ndarray:
    """Each sound's values over its length, smoothed as a mouth that can't jump: [times, values]."""
    ends = np.cumsum([length for _, length in sounds])
    steps = np.array(values, np.float64)[np.searchsorted(ends, times).clip(0, len(sounds) - 1)]
    reach = np.arange(-15, 16) / CONTROL_HZ
    kernel = np.exp(-0.5 * (reach / SMOOTHING_S) ** 2)
    padded = np.pad(steps, ((15, 15), (0, 0)), mode="edge")
    return np.stack([np.convolve(c, kernel / kernel.sum(), "valid") for c in padded.T], 1)


def _voice(
    rng: np.random.Generator, times: np.ndarray, formants: np.ndarray, loudness: np.ndarray, pitch_hz: float
) -> np.ndarray:
    """Harmonics of a gliding pitch, each as loud as the formants make it."""
    at = np.arange(int(times[-1] * SAMPLE_RATE)) / SAMPLE_RATE
    glide = pitch_hz * (
        1 + 0.08 * np.sin(2 * np.pi * 0.45 * times + rng.uniform(0, 6)) + 0.03 * np.sin(2 * np.pi * 1.3 * times)
    )
    phase = 2 * np.pi * np.cumsum(np.interp(at, times, glide)) / SAMPLE_RATE
    bandwidths = np.array([90.0, 110.0, 170.0])
    wav = np.zeros(len(at))
    for harmonic in range(1, int(4000 / pitch_hz)):
        frequency = harmonic * glide[:, None]
        gain = (np.array([1.0, 0.6, 0.3]) / (1 + ((frequency - formants) / bandwidths) ** 2)).sum(1) / harmonic**0.5
        wav += np.interp(at, times, gain * loudness) * np.sin(harmonic * phase)
    return wav


def _noise(rng: np.random.Generator, times: np.ndarray, hiss: np.ndarray) -> np.ndarray:
    """The hiss of an s, and a little room noise."""
    at = np.arange(int(times[-1] * SAMPLE_RATE)) / SAMPLE_RATE
    white = rng.normal(size=len(at))
    return np.interp(at, times, hiss) * np.diff(white, prepend=0.0) + 0.002 * white
