"""Whisper tiny.en's encoder as an extractor: the residual stream after one of its four layers, at 50 Hz. Early layers hear sounds, late ones words;
the third says most about lips (docs/decisions.md, 29)."""

import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32
from torch import Tensor

from fiag_dist import weights
from fiag_dist.errors import WeightsError
from fiag_dist.ingest import logmel

WHISPER = "whisper-tiny-en"
"""Its file, among fiag_dist.weights.REGISTRY."""
LAYERS, HEADS = 4, 6

_CHUNK_S, _OVERLAP_S = 30, 4
"""The encoder sees 30 s; neighbouring chunks share 4 s and each gives up the outer half of it."""


class Whisper:
    """An extractor (speech.py): 384 channels, two vectors a frame, after `layer` of LAYERS. Raises WeightsError when its file is missing."""

    dim, window, rate_hz = 384, 2, 50

    def __init__(self, layer: int):
        self.layer = layer

    def vectors(self, wav: Float32[np.ndarray, " samples"]) -> Iterator[Float32[np.ndarray, "vectors 384"]]:
        """Encoder states for a wav of any length, joined from overlapping chunks of 30 s; only one is held."""
        model = str(weights.path(WHISPER))
        parameters = _parameters(model)
        chunk, hop, margin = (s * logmel.RATE_HZ for s in (_CHUNK_S, _CHUNK_S - _OVERLAP_S, _OVERLAP_S // 2))
        # One loudness reference for the whole wav, so that chunks agree where they meet; silence pads the last chunk.
        floor = logmel.loudest(wav) - logmel.DECADES
        num_vectors, given = len(wav) * logmel.RATE_HZ // logmel.SAMPLE_RATE, 0
        for start in range(0, max(num_vectors - _OVERLAP_S * logmel.RATE_HZ, 1), hop):
            mel = (logmel.log_mel(wav, start, start + chunk).clamp(min=floor) + 4.0) / 4.0
            states = _encode(parameters, mel[None], self.layer) - _position_bias(model, self.layer)
            skip = margin if start else 0
            keep = chunk if start + chunk >= num_vectors else chunk - margin
            piece = states[skip // 2 : keep // 2][: num_vectors // 2 - given]
            given += len(piece)
            yield piece.numpy()


@lru_cache(maxsize=LAYERS)
def _position_bias(path: str, layer: int) -> Float32[Tensor, "1500 384"]:
    """What the place in the 30-s chunk alone adds to a state, measured on noise (a smoothed mean of two passes).

    Without it the same sound a few seconds later differs by 43 % of the features' variance, with it by 5 %: position would be learnt as speech.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 80, _CHUNK_S * logmel.RATE_HZ, generator=generator) * 0.4 - 0.2
    states_TC = torch.stack([_encode(_parameters(path), mel[None], layer) for mel in noise]).mean(0)
    smooth_1CT = F.avg_pool1d(F.pad(states_TC.T[None], (20, 20), mode="replicate"), 41, 1)
    return smooth_1CT[0].T - states_TC.mean(0)


@torch.no_grad()
def _encode(
    parameters: dict[str, Tensor], mel: Float32[Tensor, "1 80 vectors"], layers: int
) -> Float32[Tensor, "half 384"]:
    """The first `layers` of Whisper's encoder: two convolutions, sinusoidal positions, pre-norm transformer layers."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], parameters[name + "/gamma"], parameters[name + "/beta"])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, parameters[name + "/weight"], parameters.get(name + "/bias"))

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    x = F.gelu(F.conv1d(mel, parameters["encoder/conv1/weight"], parameters["encoder/conv1/bias"], padding=1))
    x = F.gelu(F.conv1d(x, parameters["encoder/conv2/weight"], parameters["encoder/conv2/bias"], stride=2, padding=1))
    x = x.transpose(1, 2)
    x = x + parameters["encoder/position_encodings/encodings"][: x.shape[1]]
    for layer in range(layers):
        block = f"encoder/layer_{layer}"
        q, k, v = linear(norm(x, block + "/self_attention/layer_norm"), block + "/self_attention/linear_0").chunk(3, -1)
        mixed = F.scaled_dot_product_attention(heads(q), heads(k), heads(v)).transpose(1, 2).flatten(2)
        x = x + linear(mixed, block + "/self_attention/linear_1")
        x = x + linear(
            F.gelu(linear(norm(x, block + "/ffn/layer_norm"), block + "/ffn/linear_0")), block + "/ffn/linear_1"
        )
    return x[0]


@lru_cache(maxsize=1)
def _parameters(path: str) -> dict[str, Tensor]:
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
    except (struct.error, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not a CTranslate2 model file ({error}); run: fiag-dist weights fetch") from error
    return parameters
