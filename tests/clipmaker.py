"""Clips that a user might have by mistake, cut from a real one (tests marked `clips`) or drawn."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np

from fiag_dist.media import video
from fiag_dist.media.sound import read_audio

RATE = 16_000


def frames_of(clip: Path, seconds: float, size: int = 256) -> tuple[list[np.ndarray], np.ndarray]:
    """The first seconds of a clip at 25 fps, size x size, with their sound."""
    images = [
        cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        for image in islice(video.read_frames(clip, 25), round(seconds * 25))
    ]
    return images, read_audio(clip)[: round(seconds * RATE)]


def write(path: Path, images: list[np.ndarray], wav: np.ndarray | None, fps: float = 25) -> Path:
    """An mp4 (fast and rough)."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.options, stream.thread_count = "yuv420p", {"preset": "ultrafast", "crf": "20"}, 1
        sound = None
        if wav is not None:
            sound = container.add_stream("aac", rate=RATE, layout="mono")
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))
        if sound is not None and wav is not None:
            _encode_sound(container, sound, wav)
    return path


def write_sound(path: Path, wav: np.ndarray) -> Path:
    """A file with a sound track alone, whatever its name says."""
    with av.open(str(path), "w", format="mp4") as container:
        _encode_sound(container, container.add_stream("aac", rate=RATE, layout="mono"), wav)
    return path


def turn(path: Path, degrees: int) -> Path:
    """Writes a rotation into the track's header, as phones do, and leaves the pixels alone."""
    c, s = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    return place(path, (c, s, -s, c))


def place(path: Path, matrix: tuple[int, ...]) -> Path:
    """Writes into the track's header that the pixel x, y is shown at a x + c y, b x + d y, for a matrix a, b, c, d."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix is 40 bytes after the flags
    a, b, c, d = (value * 65536 for value in matrix)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    path.write_bytes(data)
    return path


def _encode_sound(container, stream, wav: np.ndarray) -> None:
    for start in range(0, len(wav), 1024):
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(wav[None, start : start + 1024], np.float32), "fltp", "mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def scene(size: int = 96) -> Iterator[np.ndarray]:
    """Noise without a face, endlessly."""
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
