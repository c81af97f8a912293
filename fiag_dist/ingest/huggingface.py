"""wav2vec2, HuBERT, WavLM and their kin as extractors: the last hidden states of a model that the transformers library loads, at 50 Hz."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from fiag_dist.errors import ConfigError
from fiag_dist.media.sound import SAMPLE_RATE

_CHUNK_S, _OVERLAP_S = 20, 4
"""Neighbouring chunks share 4 s, and each gives up the outer half of it."""


class HuggingFace:
    """An extractor (speech.py) of two vectors a frame.

    name: of a model on the hub, or a folder with its files. Raises ConfigError when the library is missing or the model can't be loaded or is no
    model of sound at 50 Hz.
    """

    window, rate_hz = 2, 50

    def __init__(self, name: str):
        self._model = _load(name)
        self.dim = int(self._model.config.hidden_size)

    def vectors(self, wav: Float32[np.ndarray, " samples"]) -> Iterator[Float32[np.ndarray, "vectors dim"]]:
        """States joined from overlapping chunks; only one is held. The wav is brought to mean 0 and deviation 1, as these models expect."""
        mean, spread = float(wav.mean()), float(wav.std()) + 1e-7
        step, reach = SAMPLE_RATE // self.rate_hz, 400
        chunk, hop, margin = (s * self.rate_hz for s in (_CHUNK_S, _CHUNK_S - _OVERLAP_S, _OVERLAP_S // 2))
        count = len(wav) // step
        for start in range(0, max(count - _OVERLAP_S * self.rate_hz, 1), hop):
            stop = min(start + chunk, count)
            # Vector k sees `reach` samples around the middle of its step.
            low, high = start * step - (reach - step) // 2, stop * step + (reach - step) // 2
            part = wav[max(low, 0) : high]
            part = np.pad((part - mean) / spread, (max(0, -low), max(0, high - len(wav))))
            states = self._model(torch.from_numpy(part.astype(np.float32))[None]).last_hidden_state[0]
            keep = len(states) if stop == count else chunk - margin
            yield states[margin if start else 0 : keep].numpy()


@lru_cache(maxsize=1)
def _load(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"extractor 'hf:{name}' needs the transformers library, which is not installed; run: pip install transformers"
        ) from error
    try:
        model = transformers.AutoModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"extractor 'hf:{name}': can't be loaded ({reason}); give a folder with the model's files"
        ) from error
    stride = int(np.prod(getattr(model.config, "conv_stride", [0])))
    if stride != SAMPLE_RATE // HuggingFace.rate_hz:
        raise ConfigError(
            f"extractor 'hf:{name}': {model.config.model_type} is no model of 16 kHz sound at 50 states a second; give a wav2vec2, HuBERT or WavLM model"
        )
    return model.eval().requires_grad_(False)
