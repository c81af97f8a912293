"""Sound, by PyAV, a piece at a time: what is heard need never be in memory as a whole."""

from collections.abc import Iterator
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float32

from fiag_dist.container import decoded, opened
from fiag_dist.errors import DataError

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
            if not container.streams.audio:
                raise DataError(f"{source}: no audio track; the mouth is driven by speech, so give a file with sound")
            stream = container.streams.audio[0]
            self.rate, self.channels = stream.rate, stream.channels
            self.seconds = container.duration / av.time_base if container.duration else 0.0
            """As long as the file's headers say, 0 where they are silent; exact for samples."""
            if container.streams.video:
                first = next(decoded(container, container.streams.video[0], source), None)
                self._video_s = None if first is None else first.time

    def pieces(self, rate: int = SAMPLE_RATE, channels: int = 1) -> Iterator[Float32[np.ndarray, "channels samples"]]:
        """The samples, -1..1, resampled and mixed to `channels` (1 or 2), as they are decoded; zeros where packets are missing.

        Raises DataError where a file is damaged, or its track holds nothing.
        """
        given = 0
        for (start_s, _), run in groupby(self._runs(), itemgetter(0)):
            missing = round(start_s * rate) - given  # negative: that much of the run comes before time zero
            for left in range(missing, 0, -_PIECE):
                yield np.zeros((channels, min(left, _PIECE)), np.float32)
            given, skip = given + max(0, missing), max(0, -missing)
            resampler = av.AudioResampler(format="fltp", layout="mono" if channels == 1 else "stereo", rate=rate)
            for frame in chain((frame for _, frame in run), [None]):  # None: what the resampler holds back
                for part in resampler.resample(frame):
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
            yield from decoded(container, container.streams.audio[0], self._source)


def read_audio(path: str | Path) -> Float32[np.ndarray, " samples"]:
    """Mono sound at 16 kHz, -1..1, all of it.

    Raises DataError when the file is unreadable, has no audio track, or the track holds nothing.
    """
    return np.concatenate(list(Sound(path).pieces()), 1)[0].astype(np.float32)
