"""Log-mel energies of a wav at 100 Hz, a stretch at a time: no weights needed."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fiag_dist.media.sound import SAMPLE_RATE

RATE_HZ = 100
NUM_MELS = 80
DECADES = 8.0
"""What is further below the loudest of a wav counts as silence."""

_HOP, _WINDOW = SAMPLE_RATE // RATE_HZ, 400
_PIECE = 30 * RATE_HZ
_CENTRE, _SPREAD = -5.1, 1.7
"""Mean and deviation of log10 mel energy below the loudest of a wav, over talking-head clips."""
_SILENCE = 1e-10


class LogMel:
    """An extractor (speech.py): 80 energies, four vectors a frame."""

    dim, window, rate_hz = NUM_MELS, 4, RATE_HZ

    def vectors(self, wav: Float32[np.ndarray, " samples"]) -> Iterator[Float32[np.ndarray, "vectors 80"]]:
        top = max(loudest(wav), -2.0)
        for start in range(0, len(wav) // _HOP, _PIECE):
            stop = min(start + _PIECE, len(wav) // _HOP)
            yield ((log_mel(wav, start, stop).clamp(min=top - DECADES).T - top - _CENTRE) / _SPREAD).numpy()


def loudest(wav: Float32[np.ndarray, " samples"]) -> float:
    """The largest log10 mel energy of a wav."""
    count = len(wav) // _HOP
    pieces = (log_mel(wav, start, min(start + _PIECE, count)) for start in range(0, count, _PIECE))
    return max((float(piece.max()) for piece in pieces), default=-10.0)


def log_mel(wav: Float32[np.ndarray, " samples"], start: int, stop: int) -> Float32[Tensor, "80 vectors"]:
    """log10 of mel energies of vectors start .. stop - 1, vector k centred on k/100 s; silence before and after the wav."""
    low, high = start * _HOP - _WINDOW // 2, (stop - 1) * _HOP + _WINDOW // 2
    before, after = max(0, -low), max(0, high - len(wav))
    samples = torch.from_numpy(np.pad(wav[max(low, 0) : max(high, 0)], (before, after)))
    window = torch.hann_window(_WINDOW)
    spectrum = torch.stft(samples, _WINDOW, _HOP, window=window, center=False, return_complex=True).abs().square()
    return (_mel_filters() @ spectrum).clamp(min=_SILENCE).log10()


@lru_cache(maxsize=1)
def _mel_filters(num_fft: int = 400, num_mels: int = 80) -> Float32[Tensor, "80 201"]:
    """Slaney's mel filter bank up to 8 kHz with unit area: linear below 1 kHz, logarithmic above."""
    step = np.log(6.4) / 27.0

    def to_mel(hz: np.ndarray) -> np.ndarray:
        return np.where(hz < 1000, hz * 3 / 200, 15 + np.log(np.maximum(hz, 1e-9) / 1000) / step)

    def to_hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * step))

    top = to_mel(np.array(SAMPLE_RATE / 2.0))
    edges = to_hz(np.linspace(0.0, top, num_mels + 2))
    widths = np.diff(edges)
    ramps = edges[:, None] - np.linspace(0, SAMPLE_RATE / 2, num_fft // 2 + 1)[None]
    triangles = np.maximum(0, np.minimum(-ramps[:-2] / widths[:-1, None], ramps[2:] / widths[1:, None]))
    return torch.tensor(triangles * (2 / (edges[2:] - edges[:-2]))[:, None], dtype=torch.float32)
