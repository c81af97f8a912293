"""Videos and sounds whose every frame has the time stamp that a test gives it."""

from collections.abc import Container
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer

SIDE = 64


def grey(level: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), level, np.uint8)


def write_at(path: Path, times_s: list[float], audio_at_s: float | None = None, lost: Container[int] = ()) -> None:
    """A video whose frame k has level 10 k and the given time stamp.

    With sound: 2 s, in packets of 20 ms but for those that got lost, with a click of 0.1 s at `audio_at_s` of the file's clock.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.options, stream.time_base = "yuv420p", {"crf": "1", "bf": "0"}, Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("pcm_s16le", rate=16_000, layout="mono") if audio_at_s is not None else None
        for k, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(grey(10 * k), format="rgb24")
            frame.pts, frame.time_base = round(time_s * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            samples = np.zeros(32_000, np.int16)
            start = round(audio_at_s * 16_000)
            samples[start : start + 1600] = 20_000
            mux_sound(container, sound, samples, {k: k / 50 for k in range(100) if k not in lost})


def mux_sound(container: OutputContainer, stream: av.AudioStream, samples: np.ndarray, stamps_s: dict[int, float]):
    """Packets of 20 ms: those numbered, with these time stamps."""
    size = stream.rate // 50
    for k, stamp_s in stamps_s.items():
        part = samples[None, k * size : (k + 1) * size].repeat(stream.channels, 1)
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout=stream.layout.name)
        frame.sample_rate = stream.rate
        frame.pts, frame.time_base = round(stamp_s * stream.rate), Fraction(1, stream.rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
