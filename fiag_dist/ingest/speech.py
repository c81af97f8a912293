"""Speech features of a wav, one window for each video frame, by any of these extractors:

- `whisper:3`: Whisper tiny.en's encoder after its third layer, the default; `whisper` is its second, as shards of before have it;
- `mel`: log-mel energies, no weights needed;
- `hf:PATH_OR_NAME`: wav2vec2, HuBERT or WavLM through the transformers library;
- `file:PATTERN`: arrays that another program made (DeepSpeech, AVE ...), one a clip; such features can't be had of new sound.

All but the last work through a wav in overlapping chunks: beside the features themselves an hour needs no more memory than a minute.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float16, Float32

from fiag_dist.errors import ConfigError, DataError
from fiag_dist.ingest import precomputed
from fiag_dist.ingest.huggingface import HuggingFace
from fiag_dist.ingest.logmel import LogMel
from fiag_dist.ingest.whisper import LAYERS, Whisper
from fiag_dist.media.sound import SAMPLE_RATE, read_audio
from fiag_dist.types import AUDIO_FRAMES

FROM_LIBRARY, FROM_FILE = "hf:", "file:"
_WHISPER = {f"whisper:{layer}": layer for layer in range(1, LAYERS + 1)} | {"whisper": 2}
SILENCE = 1e-4
"""The largest sample of a silent track."""


@runtime_checkable
class Extractor(Protocol):
    """Vectors of `dim` channels, `rate_hz` a second, of which each video frame takes `window`."""

    dim: int
    window: int
    rate_hz: int

    def vectors(self, wav: Float32[np.ndarray, " samples"]) -> Iterator[Float32[np.ndarray, "vectors dim"]]:
        """All vectors of a wav (16 kHz) in order, a piece at a time; vector k is that of the sound around k / rate_hz."""
        ...


def heard_in(path: Path, name: str, max_seconds: float = 0.0) -> Float32[np.ndarray, " samples"]:
    """The sound of a file, mono at 16 kHz, -1..1. name: whose it is; max_seconds: so much of it, 0 for all.

    Raises DataError where there is none, or silence alone.
    """
    wav = read_audio(path, max_seconds)
    if max(float(wav.max(initial=0.0)), -float(wav.min(initial=0.0))) < SILENCE:
        raise DataError(
            f"{name}: its audio track is silent; the mouth is driven by speech, so give a clip with sound; of several tracks the first is heard"
        )
    return wav


def extractor(name: str) -> Extractor:
    """The extractor that works on sound by this name. Raises ConfigError for an unknown one, and for precomputed features."""
    if name == "mel":
        return LogMel()
    if name in _WHISPER:
        return Whisper(_WHISPER[name])
    if name.startswith(FROM_LIBRARY):
        return HuggingFace(name.removeprefix(FROM_LIBRARY))
    if name.startswith(FROM_FILE):
        raise ConfigError(
            f"extractor {name!r}: these features were read from files, and can't be had of other sound; pack with another extractor"
        )
    raise ConfigError(
        f"extractor {name!r}: unknown; use whisper:1 .. whisper:{LAYERS}, mel, hf:PATH_OR_NAME or file:PATTERN"
    )


def dims(name: str, clip: Path | None = None) -> tuple[int, int]:
    """Channels of one feature vector and vectors in the window of one video frame. clip: whose features a `file:` pattern stands for.

    Raises ConfigError for an unknown extractor, DataError for a precomputed array that is missing or of another shape.
    """
    if name.startswith(FROM_FILE) and clip is not None:
        return precomputed.dims(name.removeprefix(FROM_FILE), clip)
    heard = extractor(name)
    return heard.dim, heard.window


def features(
    wav: Float32[np.ndarray, " samples"], num_frames: int, fps: float, name: str
) -> Float16[np.ndarray, "frames dim window"]:
    """Speech features of every video frame: window vectors spread evenly over the frame's time, the first at its start.

    wav: mono at 16 kHz, -1..1, its first sample at the time of frame 0; frames after its end hear silence. Raises ConfigError for an unknown
    extractor, WeightsError when its file is missing.
    """
    heard = extractor(name)
    wanted = round(num_frames / fps * SAMPLE_RATE) + SAMPLE_RATE // 10
    samples = np.pad(wav[:wanted], (0, max(0, wanted - len(wav)))).astype(np.float32)
    times_s = (np.arange(num_frames)[:, None] + np.arange(heard.window)[None] / heard.window) / fps
    index = np.floor(times_s * heard.rate_hz + 0.5).astype(np.int64).ravel()
    track = np.zeros((num_frames * heard.window, heard.dim), np.float16)
    done, filled = 0, 0
    for piece in heard.vectors(samples):
        stop = int(np.searchsorted(index, done + len(piece)))
        track[filled:stop] = piece[index[filled:stop] - done]
        done, filled = done + len(piece), stop
    track[filled:] = track[filled - 1]  # a vector or two beyond the last
    return np.ascontiguousarray(track.reshape(num_frames, heard.window, heard.dim).transpose(0, 2, 1))


def with_silence(
    wav: Float32[np.ndarray, " samples"], num_frames: int, fps: float, name: str
) -> tuple[Float16[np.ndarray, "frames dim window"], Float16[np.ndarray, "silent dim window"]]:
    """The features of every video frame, and those of a second of digital silence, half a second after the last frame's sound."""
    pause, second = round(fps / 2), round(fps)
    spoken = wav[: round(num_frames / fps * SAMPLE_RATE)]
    track = features(spoken, num_frames + pause + second, fps, name)
    return track[:num_frames], track[-second:]


def stored(name: str, clip: Path, first: int, num_frames: int) -> Float16[np.ndarray, "frames dim window"]:
    """Precomputed features of a clip's frames from `first` on, for an extractor `file:PATTERN`. Raises DataError when they don't fit."""
    return precomputed.read(name.removeprefix(FROM_FILE), clip, first, num_frames)


def of_clip(
    name: str, wav: Float32[np.ndarray, " samples"], num_frames: int, fps: float, clip: Path, first: int
) -> tuple[Float16[np.ndarray, "frames dim window"], Float16[np.ndarray, "silent dim window"]]:
    """What is heard in a clip's frames, from `first` on, and when its sound has ended: by an extractor in `wav`, or from files, which say nothing of silence.

    Raises what `features` and `stored` raise.
    """
    if name.startswith(FROM_FILE):
        track = stored(name, clip, first, num_frames)
        return track, track[:0]
    return with_silence(wav, num_frames, fps, name)


def in_manifest(name: str) -> str:
    """The extractor as manifests and checkpoints name it: where precomputed files lay on one machine says nothing about them."""
    return FROM_FILE + Path(name.removeprefix(FROM_FILE)).name if name.startswith(FROM_FILE) else name


def windows(track: Float16[np.ndarray, "frames dim window"], t: int) -> Float16[np.ndarray, "8 dim window"]:
    """What frame t hears: the features of frames t-4 .. t+3, zeros before the first and after the last."""
    out = np.zeros((AUDIO_FRAMES, *track.shape[1:]), track.dtype)
    first = t - AUDIO_FRAMES // 2
    lo, hi = max(first, 0), min(first + AUDIO_FRAMES, len(track))
    if lo < hi:
        out[lo - first : hi - first] = track[lo:hi]
    return out
