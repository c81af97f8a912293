"""Frames as a viewer of a video gets them: through H.264, render and truth alike."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import UInt8

from fiag_dist.media.video import VideoWriter, read_frames

Image = UInt8[np.ndarray, "size size 3"]
CRF = 18


class ThroughVideo:
    """Two videos in a temporary folder, written frame by frame, then read back. Use it as a context manager."""

    def __init__(self, size: int, fps: int) -> None:
        self._size, self._fps = size, fps

    def __enter__(self) -> ThroughVideo:
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fiag-encoded-")))
        self._writers = [VideoWriter(path, self._size, self._size, self._fps, crf=CRF) for path in self._paths]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def _paths(self) -> tuple[Path, Path]:
        return self._folder / "render.mp4", self._folder / "truth.mp4"

    def write(self, render: Image, truth: Image) -> None:
        for writer, image in zip(self._writers, (render, truth), strict=True):
            writer.write(image)

    def pairs(self) -> Iterator[tuple[Image, Image]]:
        """Ends the videos and decodes both: render and truth of each frame."""
        while self._writers:
            self._writers.pop().close()
        render, truth = (read_frames(path, self._fps) for path in self._paths)
        yield from zip(render, truth, strict=True)
