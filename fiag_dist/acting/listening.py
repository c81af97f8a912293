"""What each frame of a video hears, from sound of any length in bounded memory."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from jaxtyping import Float16, Float32

from fiag_dist.ingest import loudness, speech
from fiag_dist.media.sound import SAMPLE_RATE
from fiag_dist.types import AUDIO_FRAMES

PIECE_S, BLEND_S = 29, 2
"""Speech features are computed over pieces of so many seconds, which overlap and are blended there: memory does not grow with the sound. A piece and
a little more is what Whisper's encoder sees at once."""
PAUSE_S = 0.3
"""Silence that is nearer to speech than this belongs to it: lips that meet for a p are silent, too."""
FAINT_DB = -45.0
"""A sound's loud frames count as so loud at least, against full scale: where nobody speaks at all the loudest hiss is no voice."""


def num_frames(num_samples: int, fps: int) -> int:
    """Video frames that a sound at 16 kHz lasts, at least one."""
    return max(1, round(num_samples / SAMPLE_RATE * fps))


def listen(
    pieces: Iterable[Float32[np.ndarray, "1 samples"]],
    fps: int,
    extractor: str,
    hush: Float32[np.ndarray, " dim"] | None = None,
) -> Iterator[Float16[np.ndarray, "8 dim window"]]:
    """Speech features of frames t-4 .. t+3 for every video frame t that a sound lasts, zeros beyond the ends, as in packed samples.

    pieces: mono at 16 kHz, one after the other, of any lengths. hush: what a listener hears no voice in, and gets to hear where the sound is silent: what
    an extractor makes of a long silence no clip has shown it. Raises ConfigError for an unknown extractor, WeightsError when its file is missing.
    """
    silence = np.zeros(speech.dims(extractor), np.float16)
    before, after = AUDIO_FRAMES // 2, AUDIO_FRAMES - AUDIO_FRAMES // 2 - 1
    around: deque[np.ndarray] = deque(maxlen=AUDIO_FRAMES)
    for window in chain([silence] * before, _features(iter(pieces), fps, extractor, hush), [silence] * after):
        around.append(window)
        if len(around) == AUDIO_FRAMES:
            yield np.stack(around)


def _features(
    source: Iterator[Float32[np.ndarray, "1 samples"]],
    fps: int,
    extractor: str,
    hush: Float32[np.ndarray, " dim"] | None,
) -> Iterator[Float16[np.ndarray, "dim window"]]:
    """Speech features frame by frame, computed a piece at a time; the overlap passes gradually from one piece to the next."""
    piece, blend = PIECE_S * fps, BLEND_S * fps
    enough = (PIECE_S + 1) * SAMPLE_RATE
    wav, start, left, loud = np.zeros(0, np.float32), 0, None, FAINT_DB
    while True:
        parts, there = [wav], len(wav)
        while there < enough and (part := next(source, None)) is not None:
            parts.append(part[0])
            there += len(part[0])
        wav = np.concatenate(parts)
        first_sample = start * SAMPLE_RATE // fps
        last = there < enough and num_frames(first_sample + there, fps) <= start + piece
        stop = num_frames(first_sample + there, fps) if last else start + piece
        track = speech.features(wav, stop - start, fps, extractor)
        if hush is not None:
            found = loudness.loudness_db(wav, stop - start, fps)
            loud = max(loud, loudness.loud_db(found))
            there = _around(loudness.audible(found, loud), round(PAUSE_S * fps))[:, None, None]
            track = (track * there + hush[:, None] * (1 - there)).astype(track.dtype)
        if left is not None:
            share = np.linspace(0, 1, blend, dtype=np.float32)[:, None, None]
            track[:blend] = left * (1 - share) + track[:blend] * share
        if last:
            yield from track
            return
        yield from track[:-blend]
        left = track[-blend:].astype(np.float32)
        start += piece - blend
        wav = wav[start * SAMPLE_RATE // fps - first_sample :]


def _around(values: Float32[np.ndarray, " frames"], reach: int) -> Float32[np.ndarray, " frames"]:
    """The largest of each value and its neighbours up to `reach` away."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(values, reach), 2 * reach + 1).max(1)
