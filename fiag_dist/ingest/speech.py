"""Speech features of a wav, one window for each video frame.

Two extractors. `mel`: log-mel energies at 100 Hz, no weights needed. `whisper`: the residual stream after the second layer of Whisper tiny.en's
encoder at 50 Hz; later layers drift from sounds to words, which carry less about the lips.
"""

import struct
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float16, Float32
from torch import Tensor

from fiag_dist import weights
from fiag_dist.errors import ConfigError, WeightsError
from fiag_dist.types import AUDIO_FRAMES

SAMPLE_RATE = 16_000
WHISPER_LAYER = 2
WHISPER_HEADS = 6

_DIMS = {"mel": (80, 4), "whisper": (384, 2)}
_MEL_HZ = 100
_WHISPER_HZ = 50
_MEL_CENTRE, _MEL_SPREAD = -5.1, 1.7
"""Mean and deviation of log10 mel energy below the loudest of a wav, over talking-head clips."""
_CHUNK_S, _OVERLAP_S = 30, 4
"""Whisper's encoder sees 30 s; neighbouring chunks share 4 s and each gives up the outer half of it."""


def dims(extractor: str) -> tuple[int, int]:
    """Channels of one feature vector and vectors in the window of one video frame. Raises ConfigError for an unknown extractor."""
    if extractor not in _DIMS:
        raise ConfigError(f"extractor {extractor!r}: unknown; use one of {', '.join(_DIMS)}")
    return _DIMS[extractor]


def features(
    wav: Float32[np.ndarray, " samples"], num_frames: int, fps: float, extractor: str
) -> Float16[np.ndarray, "frames dim window"]:
    """Speech features of every video frame: window vectors spread evenly over the frame's time, the first at its start.

    wav: mono at 16 kHz, -1..1, its first sample at the time of frame 0; frames after its end hear silence. Raises ConfigError for an unknown
    extractor, WeightsError when Whisper's file is missing.
    """
    dim, window = dims(extractor)
    wanted = round(num_frames / fps * SAMPLE_RATE) + SAMPLE_RATE // 10
    samples = torch.from_numpy(np.pad(wav[:wanted], (0, max(0, wanted - len(wav)))).astype(np.float32))
    if extractor == "mel":
        track_TC, rate = _log_mel(samples).T, _MEL_HZ
        track_TC = (track_TC - track_TC.max().clamp(min=-2.0) - _MEL_CENTRE) / _MEL_SPREAD
    else:
        track_TC, rate = _whisper_track(samples), _WHISPER_HZ
    times_s = (np.arange(num_frames)[:, None] + np.arange(window)[None] / window) / fps
    index = np.minimum(np.floor(times_s * rate + 0.5).astype(np.int64), len(track_TC) - 1)
    track = track_TC.numpy()[index].transpose(0, 2, 1)
    assert track.shape == (num_frames, dim, window)
    return np.ascontiguousarray(track, dtype=np.float16)


def windows(track: Float16[np.ndarray, "frames dim window"], t: int) -> Float16[np.ndarray, "8 dim window"]:
    """What frame t hears: the features of frames t-4 .. t+3, zeros before the first and after the last."""
    out = np.zeros((AUDIO_FRAMES, *track.shape[1:]), track.dtype)
    first = t - AUDIO_FRAMES // 2
    lo, hi = max(first, 0), min(first + AUDIO_FRAMES, len(track))
    if lo < hi:
        out[lo - first : hi - first] = track[lo:hi]
    return out


def _log_mel(samples: Float32[Tensor, " samples"]) -> Float32[Tensor, "80 vectors"]:
    """log10 of mel energies at 100 Hz, vector k centred on k/100 s; at most eight decades below the loudest."""
    spectrum = torch.stft(samples, 400, 160, window=torch.hann_window(400), return_complex=True)[:, :-1].abs().square()
    log_mel = (_mel_filters() @ spectrum).clamp(min=1e-10).log10()
    return torch.maximum(log_mel, log_mel.max() - 8.0)


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


def _whisper_track(samples: Float32[Tensor, " samples"]) -> Float32[Tensor, "vectors 384"]:
    """Encoder states at 50 Hz for a wav of any length, joined from overlapping chunks of 30 s."""
    model = str(weights.path("whisper-tiny-en"))
    parameters = _whisper_parameters(model)
    chunk, hop, margin = (s * _MEL_HZ for s in (_CHUNK_S, _CHUNK_S - _OVERLAP_S, _OVERLAP_S // 2))
    # One loudness reference for the whole wav, so that chunks agree where they meet; silence pads the last chunk.
    log_mel = _log_mel(F.pad(samples, (0, _CHUNK_S * SAMPLE_RATE)))
    mel = (log_mel + 4.0) / 4.0
    num_vectors = len(samples) // 160
    pieces = []
    for start in range(0, max(num_vectors - _OVERLAP_S * _MEL_HZ, 1), hop):
        states = _encode(parameters, mel[None, :, start : start + chunk]) - _position_bias(model)
        skip = margin if start else 0
        keep = chunk if start + chunk >= num_vectors else chunk - margin
        pieces.append(states[skip // 2 : keep // 2])
    return torch.cat(pieces)[: num_vectors // 2]


@lru_cache(maxsize=1)
def _position_bias(path: str) -> Float32[Tensor, "1500 384"]:
    """What the place in the 30-s chunk alone adds to a state, measured on noise (a smoothed mean of two passes).

    Without it the same sound a few seconds later differs by 43 % of the features' variance, with it by 5 %: position would be learnt as speech.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 80, _CHUNK_S * _MEL_HZ, generator=generator) * 0.4 - 0.2
    states_TC = torch.stack([_encode(_whisper_parameters(path), mel[None]) for mel in noise]).mean(0)
    smooth_1CT = F.avg_pool1d(F.pad(states_TC.T[None], (20, 20), mode="replicate"), 41, 1)
    return smooth_1CT[0].T - states_TC.mean(0)


@torch.no_grad()
def _encode(parameters: dict[str, Tensor], mel: Float32[Tensor, "1 80 vectors"]) -> Float32[Tensor, "half 384"]:
    """Whisper's encoder up to WHISPER_LAYER: two convolutions, sinusoidal positions, pre-norm transformer layers."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], parameters[name + "/gamma"], parameters[name + "/beta"])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, parameters[name + "/weight"], parameters.get(name + "/bias"))

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (WHISPER_HEADS, -1)).transpose(1, 2)

    x = F.gelu(F.conv1d(mel, parameters["encoder/conv1/weight"], parameters["encoder/conv1/bias"], padding=1))
    x = F.gelu(F.conv1d(x, parameters["encoder/conv2/weight"], parameters["encoder/conv2/bias"], stride=2, padding=1))
    x = x.transpose(1, 2)
    x = x + parameters["encoder/position_encodings/encodings"][: x.shape[1]]
    for layer in range(WHISPER_LAYER):
        block = f"encoder/layer_{layer}"
        q, k, v = linear(norm(x, block + "/self_attention/layer_norm"), block + "/self_attention/linear_0").chunk(3, -1)
        mixed = F.scaled_dot_product_attention(heads(q), heads(k), heads(v)).transpose(1, 2).flatten(2)
        x = x + linear(mixed, block + "/self_attention/linear_1")
        x = x + linear(
            F.gelu(linear(norm(x, block + "/ffn/layer_norm"), block + "/ffn/linear_0")), block + "/ffn/linear_1"
        )
    return x[0]


@lru_cache(maxsize=1)
def _whisper_parameters(path: str) -> dict[str, Tensor]:
    """Encoder tensors of a CTranslate2 model file as float32.

    The file is a version, a model name and revision, then for each tensor its name, rank, shape, type, size in bytes and data, all little endian.
    Raises WeightsError when the file ends early.
    """
    kinds = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    data = Path(path).read_bytes()
    offset = 0

    def take(kind: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from("<" + kind, data, offset)
        offset += struct.calcsize("<" + kind)
        return value

    def text() -> str:
        nonlocal offset
        length = take("H")
        offset += length
        return data[offset - length : offset].rstrip(b"\0").decode()

    parameters: dict[str, Tensor] = {}
    try:
        for skip in (lambda: take("I"), text, lambda: take("I")):
            skip()
        for _ in range(take("I")):
            name = text()
            shape = [take("I") for _ in range(take("B"))]
            kind, num_bytes = np.dtype(kinds[take("B")]), take("I")
            if name.startswith("encoder/"):
                values = np.frombuffer(data, kind, num_bytes // kind.itemsize, offset).reshape(shape)
                parameters[name] = torch.from_numpy(values.astype(np.float32))
            offset += num_bytes
    except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not a CTranslate2 model file ({error}); run: fiag-dist weights fetch") from error
    return parameters
