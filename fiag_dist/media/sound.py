"""Sound, by PyAV, a piece at a time: what is heard need never be in memory as a whole."""

import sys
from collections.abc import Iterator
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from jaxtyping import Float32

from fiag_dist.errors import DataError
from fiag_dist.media.container import audio_track, decoded, opened, refuse_jump, video_tracks

SAMPLE_RATE = 16_000
_PIECE = SAMPLE_RATE
"""Samples at a time of a sound that is in memory already, or of silence."""
_JITTER_S = 0.02
"""By so much time stamps may run ahead of the samples before packets are missing: containers round them, recorders stamp unevenly."""


class Sound:
    """A file's sound track, or samples, to be read from its start as often as asked.

    In a file with video, time zero is that of the first video frame: the sound is cut or padded to start there.
    """

    def __init__(self, source: str | Path | Float32[np.ndarray, " samples"]):
        """source: a file, or mono samples at 16 kHz, -1..1. Raises DataError for a file that is unreadable or has no audio track."""
        self._source = source
        self._video_s: float | None = None
        if isinstance(source, np.ndarray):
            self.rate, self.channels, self.seconds = SAMPLE_RATE, 1, len(source) / SAMPLE_RATE
            return
        with opened(source) as container:
            stream = audio_track(container, source)
            if stream is None:
                raise DataError(f"{source}: no audio track; the mouth is driven by speech, so give a file with sound")
            self.rate, self.channels = stream.rate, stream.channels
            self.seconds = container.duration / av.time_base if container.duration else 0.0
            """As long as the file's headers say, 0 where they are silent; exact for samples."""
            self._video_s = _first_picture_s(container, source)

    def pieces(self, rate: int = SAMPLE_RATE, channels: int = 1) -> Iterator[Float32[np.ndarray, "channels samples"]]:
        """The samples, -1..1, resampled and mixed to `channels` (1 or 2), as they are decoded; zeros where packets are missing.

        Raises DataError where a file is damaged, its track holds nothing, or time stamps leave a hole of more than an hour.
        """
        given = 0
        for (start_s, _), run in groupby(self._runs(), itemgetter(0)):
            missing = round(start_s * rate) - given  # negative: that much of the run comes before time zero
            refuse_jump(self._source, "its sound jumps from", given / rate, start_s)
            for left in range(missing, 0, -_PIECE):
                yield np.zeros((channels, min(left, _PIECE)), np.float32)
            given, skip = given + max(0, missing), max(0, -missing)
            resampler = av.AudioResampler(format="fltp", layout="mono" if channels == 1 else "stereo", rate=rate)
            for frame in chain((frame for _, frame in run), [None]):  # None: what the resampler holds back
                for part in self._resampled(resampler, frame):
                    samples = part.to_ndarray()[:, skip:]
                    skip = max(0, skip - part.samples)
                    given += samples.shape[1]
                    if samples.size:
                        yield samples
        if not given and not isinstance(self._source, np.ndarray):
            raise DataError(
                f"{self._source}: the audio track is empty, or ends before the video begins; "
                "the mouth is driven by speech, so give a file with sound"
            )

    def _resampled(self, resampler: av.AudioResampler, frame: av.AudioFrame | None) -> list[av.AudioFrame]:
        try:
            return resampler.resample(frame)
        except (av.FFmpegError, ValueError) as error:
            raise DataError(
                f"{self._source}: its {self.channels} channels of sound can't be mixed ({error}); convert the file with ffmpeg -ac 2 and try again"
            ) from error

    def _runs(self) -> Iterator[tuple[tuple[float, tuple], av.AudioFrame]]:
        """Frames, each with the run that it belongs to: when that starts, and its format. Within a run there is no hole and one format."""
        zero_s, start_s, until_s, before = self._video_s, 0.0, 0.0, None
        for frame in self._frames():
            zero_s = frame.time or 0.0 if zero_s is None else zero_s
            at_s = until_s if frame.time is None else frame.time - zero_s
            form = frame.format.name, frame.layout.name, frame.sample_rate
            if before is None or at_s - until_s > _JITTER_S:
                start_s = until_s = at_s
            elif form != before:
                start_s = until_s
            before = form
            yield (start_s, form), frame
            until_s += frame.samples / frame.sample_rate

    def _frames(self) -> Iterator[av.AudioFrame]:
        if isinstance(self._source, np.ndarray):
            for start in range(0, len(self._source), _PIECE):
                samples = np.ascontiguousarray(self._source[None, start : start + _PIECE], np.float32)
                frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                frame.sample_rate = SAMPLE_RATE
                yield frame
            return
        with opened(self._source) as container:
            stream = audio_track(container, self._source)
            assert stream is not None, "there was one a moment ago"
            yield from decoded(container, stream, self._source)


def _first_picture_s(container: InputContainer, path: str | Path) -> float | None:
    """When the first picture is shown, by the file's clock, seconds; by its headers where nothing here decodes it. None without pictures."""
    tracks = video_tracks(container)
    known = [track for track in tracks if track.codec_context is not None]
    if known:
        first = next(decoded(container, known[0], path), None)
        return None if first is None else first.time
    starts = [
        track.start_time * track.time_base for track in tracks if track.start_time is not None and track.time_base
    ]
    return float(starts[0]) if starts else None


def read_audio(path: str | Path, max_seconds: float = 0.0) -> Float32[np.ndarray, " samples"]:
    """Mono sound at 16 kHz, -1..1. max_seconds: no more than this of it, from its start; 0 reads all.

    Raises DataError when the file is unreadable, has no audio track, or the track holds nothing.
    """
    limit = round(max_seconds * SAMPLE_RATE) if max_seconds else sys.maxsize
    samples = bytearray()  # grows in place: an hour of sound is held once
    for piece in Sound(path).pieces():
        samples += piece[0, : limit - len(samples) // 4].tobytes()
        if len(samples) // 4 >= limit:
            break
    return np.frombuffer(samples, np.float32)
