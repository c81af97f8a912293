"""SyncNet's Sync-C and Sync-E, by the published network and its authors' measure, for who has its weights.

Chung and Zisserman, "Out of time: automated lip sync in the wild", 2016; the network is that of the file syncnet_v2.model, the measure that of the
program published with it: embeddings of 0.2 s of picture and of sound, how far apart they are on average when the sound is moved by up to 15 frames.
Sync-E (LSE-D elsewhere) is the least such distance, Sync-C (LSE-C) the median less the least. Here the face's box is that of the landmarks, not of
the detector S3FD.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from scipy.ndimage import median_filter
from torch import Tensor, nn

from fiag_dist.errors import ConfigError, WeightsError
from fiag_dist.media.sound import SAMPLE_RATE
from fiag_dist.metrics.faces import Seen

Image = UInt8[np.ndarray, "height width 3"]

FPS = 25
"""The only rate that the network knows."""
WINDOW = 5
"""Frames of a window."""
SHIFT = 15
"""Frames by which sound is moved at most."""
FEWEST, MOST = 50, 300
"""Frames: of fewer the distances of far shifts say nothing, and more are not judged, so that a long clip is not in memory as a whole."""
_CEPSTRA = 4
"""A frame's, 10 ms apart."""
_SIDE = 224
_MARGIN = 0.4
"""Of half the face's box: room to its sides; twice that below, none above."""
_GREY = 110
"""What lies beyond the picture."""
_SMOOTHED = 13
"""Frames over which the box's place and size are the median."""
_BATCH = 10


@dataclass(frozen=True)
class Sync:
    """How lips and voice go together."""

    confidence: float
    """Sync-C: higher is better; that of the true video is what to compare with."""
    distance: float
    """Sync-E: lower is better."""
    offset_ms: float
    """Where the distance is least; above 0 when the mouth is late."""

    def numbers(self, prefix: str = "") -> dict[str, float]:
        """By the keys of metrics.json."""
        return {
            f"{prefix}sync_c": self.confidence,
            f"{prefix}sync_e": self.distance,
            f"{prefix}sync_offset_ms": self.offset_ms,
        }


class SyncNet:
    """The network with its weights.

    file: syncnet_v2.model. Raises WeightsError when it is missing or another network's, ConfigError when the library for the sound is not installed.
    """

    def __init__(self, file: Path) -> None:
        try:
            import python_speech_features
        except ImportError:
            raise ConfigError("SyncNet needs one more library; run: bash launch/install.sh ingest,syncnet") from None
        self._mfcc = python_speech_features.mfcc
        self._network = _Network().eval()
        _load(self._network, file)

    @torch.no_grad()
    def judge(
        self, pictures: Sequence[Image], faces: Sequence[Seen | None], wav: Float32[np.ndarray, " samples"], fps: int
    ) -> Sync | None:
        """Pictures of one who speaks, the face in each, and what is heard meanwhile, 16 kHz. 0.1 s a picture on one core.

        None when there are fewer than FEWEST pictures, no face in any, or not FPS of them a second.
        """
        num = min(len(pictures), len(wav) * FPS // SAMPLE_RATE, MOST)
        crops = _crops(pictures[:num], faces[:num]) if num >= FEWEST and fps == FPS else None
        if crops is None:
            return None
        sound = np.clip(np.round(wav[: num * SAMPLE_RATE // FPS] * 32768), -32768, 32767).astype(np.int16)
        cepstra_NC = torch.from_numpy(self._mfcc(sound, SAMPLE_RATE)).float()
        lips, voice = [], []
        for windows in _batches(num - WINDOW):
            frames = [torch.from_numpy(crops[i : i + WINDOW]).permute(3, 0, 1, 2).float() for i in windows]
            lips.append(self._network.of_lips(torch.stack(frames)))
            heard = [cepstra_NC[i * _CEPSTRA : (i + WINDOW) * _CEPSTRA].T[None] for i in windows]
            voice.append(self._network.of_voice(torch.stack(heard)))
        return agreement(torch.cat(lips), torch.cat(voice))


def agreement(lips: Float[Tensor, "windows dim"], voice: Float[Tensor, "windows dim"]) -> Sync:
    """The measure, from a window's embeddings each; beyond the ends of the sound there is an embedding of zeros."""
    around = F.pad(voice, (0, 0, SHIFT, SHIFT))
    distances = torch.stack(
        [F.pairwise_distance(lips, around[shift : shift + len(lips)]).mean() for shift in range(2 * SHIFT + 1)]
    )
    least, at = distances.min(0)
    return Sync(float(distances.median() - least), float(least), 1000 * (SHIFT - int(at)) / FPS)


class _Network(nn.Module):
    """Two stacks of convolutions into one space. Names and order are those of the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_layer(nn.Conv2d(1, 64, 3, padding=1)),
            nn.MaxPool2d(1),
            *_layer(nn.Conv2d(64, 192, 3, padding=1)),
            nn.MaxPool2d(3, stride=(1, 2)),
            *_layer(nn.Conv2d(192, 384, 3, padding=1)),
            *_layer(nn.Conv2d(384, 256, 3, padding=1)),
            *_layer(nn.Conv2d(256, 256, 3, padding=1)),
            nn.MaxPool2d(3, stride=2),
            *_layer(nn.Conv2d(256, 512, (5, 4))),
        )
        self.netcnnlip = nn.Sequential(
            *_layer(nn.Conv3d(3, 96, (WINDOW, 7, 7), stride=(1, 2, 2))),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_layer(nn.Conv3d(96, 256, (1, 5, 5), stride=(1, 2, 2), padding=(0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            *_layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_layer(nn.Conv3d(256, 512, (1, 6, 6))),
        )
        self.netfcaud, self.netfclip = (
            nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024)) for _ in range(2)
        )

    def of_voice(self, cepstra: Float[Tensor, "batch 1 13 20"]) -> Float[Tensor, "batch 1024"]:
        return self.netfcaud(self.netcnnaud(cepstra).flatten(1))

    def of_lips(self, pictures: Float[Tensor, "batch 3 5 224 224"]) -> Float[Tensor, "batch 1024"]:
        """Blue, green, red; 0..255."""
        return self.netfclip(self.netcnnlip(pictures).flatten(1))


def _layer(convolution: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, nn.Module, nn.Module]:
    norm = nn.BatchNorm2d if isinstance(convolution, nn.Conv2d) else nn.BatchNorm3d
    return convolution, norm(convolution.out_channels), nn.ReLU()


def _load(network: nn.Module, file: Path) -> None:
    """The file's tensors into the network. Those of torch before 0.4.1 lack the counters of batches."""
    if not file.is_file():
        raise WeightsError(
            f"SyncNet's weights {file}: no such file; name syncnet_v2.model, which its authors give away"
        )
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        missing, unknown = network.load_state_dict(tensors, strict=False)
    except (RuntimeError, OSError, EOFError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"SyncNet's weights {file}: no tensors of that network ({str(error).splitlines()[0]}); name syncnet_v2.model"
        ) from error
    wrong = [name for name in missing if not name.endswith("num_batches_tracked")] + unknown
    if wrong:
        raise WeightsError(
            f"SyncNet's weights {file}: {wrong[0]} is in the file or in the network alone; name syncnet_v2.model"
        )


def _batches(num: int) -> Iterator[range]:
    for first in range(0, num, _BATCH):
        yield range(first, min(first + _BATCH, num))


def _crops(pictures: Sequence[Image], faces: Sequence[Seen | None]) -> UInt8[np.ndarray, "frames 224 224 3"] | None:
    """The lower face, upright, as the network was shown it: blue, green, red. A frame without a face takes its neighbours' box; None without any face."""
    known = [i for i, face in enumerate(faces) if face is not None]
    if not known:
        return None
    boxes = np.array([_box(face) for face in faces if face is not None])
    x, y, half = (
        median_filter(np.interp(np.arange(len(pictures)), known, track), _SMOOTHED, mode="constant")
        for track in np.transpose(boxes)
    )
    return np.stack([_crop(*frame) for frame in zip(pictures, x, y, half, strict=True)])


def _box(face: Seen) -> tuple[float, float, float]:
    """Centre and half the longer side of the landmarks' box, pixels."""
    low, high = face.landmarks.min(0), face.landmarks.max(0)
    x, y = (low + high) / 2
    return x, y, float((high - low).max()) / 2


def _crop(picture: Image, x: float, y: float, half: float) -> UInt8[np.ndarray, "224 224 3"]:
    pad = int(half * (1 + 2 * _MARGIN))
    wide = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)), constant_values=_GREY)
    x, y, reach = x + pad, y + pad, half * (1 + _MARGIN)
    face = wide[int(y - half) : int(y + half * (1 + 2 * _MARGIN)), int(x - reach) : int(x + reach)]
    return np.ascontiguousarray(cv2.resize(face, (_SIDE, _SIDE))[..., ::-1])
