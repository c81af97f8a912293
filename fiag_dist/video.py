"""Video and audio files in and out, by PyAV. Time zero of a clip is its first video frame; audio is cut or padded to start there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container import InputContainer
from jaxtyping import Float32, UInt8

from fiag_dist.errors import DataError

SAMPLE_RATE = 16_000
_AAC_FRAME = 1024


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file's headers and first frame say. `width` and `height` are as shown, after rotation."""

    width: int
    height: int
    fps: float
    """Mean rate, frames a second; the clip's own rate may vary."""
    seconds: float
    has_audio: bool


def probe(path: str | Path) -> VideoInfo:
    """Reads headers and one frame. Raises DataError when the file is unreadable or holds no video."""
    with _opened(path) as container:
        stream = _video_stream(container, path)
        frame = next(_decoded(container, stream, path), None)
        if frame is None:
            raise DataError(f"{path}: no video frame can be decoded; convert the file with ffmpeg and try again")
        image = _upright(frame)
        fps = float(stream.average_rate or stream.guessed_rate or 25)
        seconds = container.duration / av.time_base if container.duration else stream.frames / fps
        return VideoInfo(
            width=image.shape[1],
            height=image.shape[0],
            fps=fps,
            seconds=seconds,
            has_audio=bool(container.streams.audio),
        )


def read_frames(
    path: str | Path, fps: float, max_seconds: float = 0.0
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Upright RGB frames at a fixed rate: frame i is the source frame nearest in time to i / fps, whatever the clip's own rate.

    max_seconds: stop there; 0 reads all. Frames are decoded as they are asked for. Raises DataError as `probe` does.
    """
    limit = int(max_seconds * fps + 1e-6) if max_seconds else sys.maxsize
    with _opened(path) as container:
        stream = _video_stream(container, path)
        index, before, before_s, start_s, gap_s = 0, None, 0.0, None, 1.0 / fps
        for frame in _decoded(container, stream, path):
            if frame.pts is None:
                continue
            stamp_s = float(frame.pts * (frame.time_base or stream.time_base))
            start_s = stamp_s if start_s is None else start_s
            now_s = stamp_s - start_s
            if before is not None:
                if now_s <= before_s:
                    continue  # a stamp that runs backwards carries no new time
                gap_s = now_s - before_s
                middle_s, image = (before_s + now_s) / 2, None
                while index / fps < middle_s:
                    if index >= limit:
                        return
                    image = _upright(before) if image is None else image
                    yield image
                    index += 1
            before, before_s = frame, now_s
        if before is None:
            raise DataError(f"{path}: no video frame can be decoded; convert the file with ffmpeg and try again")
        while index / fps < before_s + gap_s - 0.5 / fps and index < limit:  # the last frame stays on for its own time
            yield _upright(before)
            index += 1


def read_audio(path: str | Path) -> Float32[np.ndarray, " samples"]:
    """Mono sound at 16 kHz, -1..1, its first sample at the first video frame's time (or the sound's own start in a file without video).

    Raises DataError when the file is unreadable, has no audio track, or the track holds nothing.
    """
    with _opened(path) as container:
        if not container.streams.audio:
            raise DataError(f"{path}: no audio track; the mouth is driven by speech, so give a file with sound")
        video_s = None
        if container.streams.video:
            first = next(_decoded(container, container.streams.video[0], path), None)
            video_s = None if first is None or first.time is None else first.time
    with _opened(path) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
        pieces, audio_s = [], None
        for frame in _decoded(container, container.streams.audio[0], path):
            if audio_s is None:
                audio_s = 0.0 if frame.time is None else frame.time
            pieces += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        pieces += [part.to_ndarray()[0] for part in resampler.resample(None)]
    if not pieces or audio_s is None:
        raise DataError(f"{path}: the audio track is empty; the mouth is driven by speech, so give a file with sound")
    wav = np.concatenate(pieces).astype(np.float32)
    late = 0 if video_s is None else round((audio_s - video_s) * SAMPLE_RATE)
    return np.pad(wav, (late, 0)) if late > 0 else wav[-late:]


class VideoWriter:
    """Writes H.264 (yuv420p) and AAC into an mp4, which appears under its name only when complete.

    Use as a context manager: leaving it by an exception leaves no file. audio: mono, -1..1, from the first frame on; what is longer than the video
    is cut. Raises DataError for odd sizes or a frame of another size.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: float,
        audio: Float32[np.ndarray, " samples"] | None = None,
        sample_rate: int = SAMPLE_RATE,
        crf: int = 18,
    ) -> None:
        if width % 2 or height % 2:
            raise DataError(f"{path}: {width}x{height} pixels; H.264 needs an even width and height")
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self._path.with_name(f".{self._path.stem}.{os.getpid()}.partial.mp4")
        self._fps, self._shape, self._count = fps, (height, width, 3), 0
        self._container = av.open(str(self._partial), "w", options={"movflags": "+faststart"})
        self._video = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        self._video.options = {"crf": str(crf), "preset": "veryfast"}
        self._video.thread_count = 1
        self._audio_samples, self._audio_done, self._sample_rate = audio, 0, sample_rate
        self._audio = None
        if audio is not None:
            self._audio = self._container.add_stream("aac", rate=sample_rate, layout="mono")

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._container.close()
            self._partial.unlink(missing_ok=True)

    def write(self, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Adds one RGB frame."""
        if image.shape != self._shape:
            raise DataError(f"{self._path}: frame {self._count} is {image.shape}, the video is {self._shape}")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        self._container.mux(self._video.encode(frame))
        self._count += 1
        self._write_audio(_AAC_FRAME)

    def close(self) -> None:
        """Writes what is left and puts the file in place."""
        self._container.mux(self._video.encode(None))
        if self._audio is not None:
            self._write_audio(1)
            self._container.mux(self._audio.encode(None))
        self._container.close()
        self._partial.replace(self._path)

    def _write_audio(self, at_least: int) -> None:
        """Sound up to the time of the last frame, in whole AAC frames but at the end (`at_least` samples a time)."""
        if self._audio is None or self._audio_samples is None:
            return
        until = min(round(self._count / self._fps * self._sample_rate), len(self._audio_samples))
        while until - self._audio_done >= at_least:
            piece = self._audio_samples[self._audio_done : min(self._audio_done + _AAC_FRAME, until)]
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(piece[None], np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = self._sample_rate, self._audio_done
            frame.time_base = Fraction(1, self._sample_rate)
            self._container.mux(self._audio.encode(frame))
            self._audio_done += len(piece)


def _opened(path: str | Path) -> InputContainer:
    try:
        return av.open(str(path), "r")
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{path}: can't be read as video or audio ({reason}); give an mp4, mov, mkv, webm or wav file"
        ) from error


def _video_stream(container: InputContainer, path: str | Path) -> av.VideoStream:
    if not container.streams.video:
        raise DataError(f"{path}: no video track; give a clip that shows a face")
    return container.streams.video[0]


def _decoded(container: InputContainer, stream: av.VideoStream | av.AudioStream, path: str | Path) -> Iterator:
    """Frames of one stream, decoded by one thread. Raises DataError where the data is damaged."""
    stream.codec_context.thread_count = 1
    try:
        yield from container.decode(stream)
    except (av.FFmpegError, OSError) as error:
        raise DataError(
            f"{path}: damaged data in the {stream.type} track ({error.strerror}); convert the file with ffmpeg and try again"
        ) from error


def _upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
    """RGB as a player shows it: phones store the rotation beside the pixels."""
    image = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns))  # PyAV pads rows: wide strides even without a turn
