"""Video files in and out, by PyAV, with their sound. Time zero of a clip is its first video frame."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from jaxtyping import Float32, UInt8

from fiag_dist.errors import DataError
from fiag_dist.media.container import decoded, opened, refuse_jump, video_track, writing
from fiag_dist.media.sound import Sound

_ASPECT_CHANGE = 0.05
"""By this share the shape of the picture may change within a clip: its size is a whole number of pixels, or of blocks of them."""
_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
"""By its quick path swscale reads colours 1.2 levels too dark (docs/decisions.md, 48)."""
_HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
"""PQ and HLG, as phones record: pictures whose white is a third or half of the signal."""
_AAC_FRAME = 1024
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file's headers and first frame say. `width` and `height` are as shown: of square pixels, after rotation."""

    width: int
    height: int
    fps: float
    """Mean rate, frames a second; the clip's own rate may vary."""
    seconds: float


def probe(path: str | Path) -> VideoInfo:
    """Reads headers and one frame. Raises DataError when the file is unreadable or holds no video."""
    with opened(path) as container:
        stream = _video_stream(container, path)
        frame = next(decoded(container, stream, path), None)
        if frame is None:
            raise DataError(f"{path}: no video frame can be decoded; convert the file with ffmpeg and try again")
        image = _upright(frame, _shown_size(frame, stream), path)
        fps = float(stream.average_rate or stream.guessed_rate or 25)
        seconds = container.duration / av.time_base if container.duration else stream.frames / fps
        return VideoInfo(
            width=image.shape[1],
            height=image.shape[0],
            fps=fps,
            seconds=seconds,
        )


def tags_of(path: str | Path) -> dict[str, str]:
    """Tags of a file (title, comment, description ...); none where it can't be read."""
    try:
        with opened(path) as container:
            return dict(container.metadata)
    except DataError:
        return {}


def read_frames(
    path: str | Path, fps: float, max_seconds: float = 0.0, every: int = 1
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Upright RGB frames of square pixels at a fixed rate: frame i is the source frame nearest in time to i / fps, whatever the clip's own rate.

    max_seconds: stop there; 0 reads all. every: only each so-many-th. Frames are decoded as they are asked for. All have the size of the first: a recording
    of a call may change its size on the way. Raises DataError as `probe` does, and where the picture changes its shape or time stamps make no sense.
    """
    limit = int(max_seconds * fps + 1e-6) if max_seconds else sys.maxsize
    with opened(path) as container:
        stream = _video_stream(container, path)
        index = 0
        for frame, size, until_s in _shown(container, stream, path, fps):
            image = None
            while index / fps < until_s:
                if index >= limit:
                    return
                if index % every == 0:
                    image = _upright(frame, size, path) if image is None else image
                    yield image
                index += 1


class VideoWriter:
    """Writes H.264 (yuv420p, BT.709, and says so) and AAC into an mp4, which appears under its name only when complete.

    Use as a context manager: leaving it by an exception leaves no file. audio: a sound, or mono samples at 16 kHz; heard from the first frame on, and cut
    where it is longer than the video. metadata: tags of the mp4 container (title, comment, description ...). Raises DataError for odd sizes, a frame of
    another size, a full disk or a place that takes no files.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: float,
        audio: Sound | Float32[np.ndarray, " samples"] | None = None,
        crf: int = 18,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if width % 2 or height % 2:
            raise DataError(f"{path}: {width}x{height} pixels; H.264 needs an even width and height")
        self._path = Path(path)
        self._partial = self._path.with_name(f".{uuid.uuid4().hex}.partial.mp4")
        self._fps, self._shape, self._count = fps, (height, width, 3), 0
        with writing(path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                self._path.lstat()  # a name that is too long is refused now, and not when all is rendered
            self._container = av.open(str(self._partial.absolute()), "w", options={"movflags": "+faststart"})
        self._container.metadata.update(metadata or {})
        self._video = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        context = self._video.codec_context  # without these, players guess the colours: most as BT.709, some as BT.601
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self._reformatter = VideoReformatter()
        self._video.options = {"crf": str(crf), "preset": "veryfast"}
        self._video.thread_count = 1
        sound = Sound(audio) if isinstance(audio, np.ndarray) else audio
        self._audio = _Track(self._container, sound) if sound else None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def write(self, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Adds one RGB frame."""
        if image.shape != self._shape:
            raise DataError(f"{self._path}: frame {self._count} is {image.shape}, the video is {self._shape}")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = self._reformatter.reformat(
            frame,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=_EXACT,
        )
        self._count += 1
        with writing(self._path):
            self._container.mux(self._video.encode(frame))
            if self._audio:
                self._audio.write_until(self._count / self._fps)

    def close(self) -> None:
        """Writes what is left and puts the file in place; where that fails there is no file."""
        try:
            with writing(self._path):
                self._container.mux(self._video.encode(None))
                if self._audio:
                    self._audio.write_until(self._count / self._fps, last=True)
                self._container.close()
                self._partial.replace(self._path)
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Takes away what is there; what ended the writing is told by others."""
        try:
            with suppress(av.FFmpegError, OSError):  # on a full disk the end can't be written either
                self._container.close()
        finally:
            with suppress(OSError):
                self._partial.unlink(missing_ok=True)


class _Track:
    """The AAC track of a video that is being written, fed from a sound as the video grows."""

    def __init__(self, container: OutputContainer, sound: Sound):
        self._rate = sound.rate if sound.rate in _AAC_RATES else 48_000
        channels = min(sound.channels, 2)
        self._layout = "mono" if channels == 1 else "stereo"
        self._container, self._stream = container, container.add_stream("aac", rate=self._rate, layout=self._layout)
        self._source = sound.pieces(self._rate, channels)
        self._waiting = np.zeros((channels, 0), np.float32)
        self._done = 0

    def write_until(self, time_s: float, last: bool = False) -> None:
        """Sound up to this time of the video, in whole AAC frames but at the end."""
        until = round(time_s * self._rate)
        while until - self._done >= (1 if last else _AAC_FRAME):
            samples = self._take(min(_AAC_FRAME, until - self._done))
            if not samples.size:
                break
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self._layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._done, Fraction(1, self._rate)
            self._container.mux(self._stream.encode(frame))
            self._done += samples.shape[1]
        if last:
            self._container.mux(self._stream.encode(None))

    def _take(self, count: int) -> Float32[np.ndarray, "channels samples"]:
        """The next `count` samples; fewer where the sound ends."""
        parts, there = [self._waiting], self._waiting.shape[1]
        while there < count and (piece := next(self._source, None)) is not None:
            parts.append(piece)
            there += piece.shape[1]
        joined = np.concatenate(parts, 1)
        self._waiting = joined[:, count:]
        return np.ascontiguousarray(joined[:, :count], np.float32)


def _video_stream(container: InputContainer, path: str | Path) -> av.VideoStream:
    stream = video_track(container, path)
    if stream is None:
        raise DataError(f"{path}: no video track; give a clip that shows a face")
    return stream


def _shown(
    container: InputContainer, stream: av.VideoStream, path: str | Path, fps: float
) -> Iterator[tuple[av.VideoFrame, tuple[int, int], float]]:
    """Frames, the size of all, and until when each is the nearest, seconds; the last one stays on for its own time."""
    before, size, before_s, gap_s = None, (0, 0), 0.0, 1.0 / fps
    for frame, size, now_s in _timed(container, stream, path, gap_s):
        if before is not None:
            gap_s = now_s - before_s
            yield before, size, (before_s + now_s) / 2
        before, before_s = frame, now_s
    if before is not None:
        yield before, size, before_s + gap_s - 0.5 / fps


def _timed(
    container: InputContainer, stream: av.VideoStream, path: str | Path, gap_s: float
) -> Iterator[tuple[av.VideoFrame, tuple[int, int], float]]:
    """Frames, the size of the first, and the time since it, seconds, which rises: a stamp that runs backwards carries no new time.

    gap_s: after a frame comes one that has no stamp. Raises DataError where there is no frame, or stamps make no sense.
    """
    size, start_s, before_s, timeless = None, None, 0.0, 0
    for frame in decoded(container, stream, path):
        stamp_s = _stamp_s(frame, stream, container)
        if stamp_s is None:
            if start_s is None:
                continue
            stamp_s = start_s + before_s + gap_s
        size = _one_size(size, frame, stream, path)
        if start_s is None:
            start_s = stamp_s
            yield frame, size, 0.0
            continue
        now_s = stamp_s - start_s
        if now_s <= before_s:
            timeless += 1
            continue
        refuse_jump(path, "its pictures jump from", before_s, now_s)
        gap_s, before_s = now_s - before_s, now_s
        yield frame, size, now_s
    if start_s is None:
        raise DataError(f"{path}: no video frame can be decoded; convert the file with ffmpeg and try again")
    if timeless and not before_s:
        raise DataError(
            f"{path}: none of its {timeless + 1} frames comes later than the first, by their time stamps; give them new ones with "
            "ffmpeg -i OLD -vf setpts=N/25/TB NEW, where 25 is the frame rate"
        )


def _stamp_s(frame: av.VideoFrame, stream: av.VideoStream, container: InputContainer) -> float | None:
    """When a frame is shown, seconds; None where the file does not say.

    AVI says only in which order frames are decoded. They leave the decoder in the order of showing, and at the same rate: when one was decoded is as good.
    """
    stamp, base = frame.dts if container.format.name == "avi" else frame.pts, frame.time_base or stream.time_base
    return None if stamp is None or base is None else float(stamp * base)


def _shown_size(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """Width and height of square pixels, before the picture is turned: those of camcorders and DVDs are not square."""
    return round(frame.width * (stream.sample_aspect_ratio or 1)), frame.height


def _one_size(
    size: tuple[int, int] | None, frame: av.VideoFrame, stream: av.VideoStream, path: str | Path
) -> tuple[int, int]:
    """`size`, the first frame's, where there is one. Raises DataError when this frame is of another shape."""
    width, height = _shown_size(frame, stream)
    if size is None:
        return width, height
    if abs(width * size[1] / (height * size[0]) - 1) > _ASPECT_CHANGE:
        raise DataError(
            f"{path}: the picture changes from {size[0]}x{size[1]} to {width}x{height} pixels, which is another shape; cut the clip there"
        )
    return size


def _upright(frame: av.VideoFrame, size: tuple[int, int], path: str | Path) -> UInt8[np.ndarray, "height width 3"]:
    """RGB as a player shows it, of this width and height before it is turned: phones store beside the pixels how they are turned or mirrored.

    What is lighter than white, in HDR, is white.
    """
    is_hdr = frame.color_trc in _HDR
    shown: dict[str, Any] = (
        {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709} if is_hdr else {}
    )
    try:
        # To planes, which PyAV puts side by side: the same pixels as to rgb24, in a third of the time.
        image = frame.to_ndarray(format="gbrp", width=size[0], height=size[1], interpolation=_EXACT, **shown)
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{path}: its colours can't be converted to RGB ({reason}); convert the file with ffmpeg to BT.709 and try again"
        ) from error
    stored: Any = frame.side_data.get("DISPLAYMATRIX")
    if stored:
        a, b, _, c, d = np.frombuffer(stored, np.int32)[:5].astype(float)  # x = a x + c y, y = b x + d y
        if abs(b) > abs(a):
            image, a, d = image.swapaxes(0, 1), c, b
        image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image)  # PyAV pads rows: wide strides even without a turn
