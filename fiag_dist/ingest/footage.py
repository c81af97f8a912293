"""The crops of one clip, decoded anew for each pass over them, and what the first pass finds in every frame: nothing of a clip's length is held as pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from fiag_dist.config import PackConfig
from fiag_dist.errors import DataError
from fiag_dist.ingest import expression, span
from fiag_dist.ingest.face import Crop, Face, FaceTracker
from fiag_dist.ingest.identity import IdentityEmbedder
from fiag_dist.ingest.spool import Spool
from fiag_dist.media import video
from fiag_dist.memory import peak_resident_mib
from fiag_dist.types import ACTION_UNITS, NUM_LANDMARKS

WORK_SIZE = 512
"""Landmarks and embeddings are read from crops of at least this side, pixels."""
EMBED_STEP = 25
"""Every so many frames are embedded; the others take the nearest one's."""

Progress = Callable[[str, float], None]


class Stopwatch:
    """CPU seconds of this process by part of the work; tells which stage is at work and how much of the whole is done."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._part, self._stage = progress, "", ""
        self._since, self._began = time.process_time(), time.perf_counter()
        self.seconds: dict[str, float] = {}

    def stage(self, name: str, share: float) -> None:
        """`share` of the whole work is done when the stage begins; time counts for the part of the same name until another is named."""
        self._stage = name
        self.part(name)
        self.report(share)

    def part(self, name: str) -> str:
        """Time from now on is that of `name`. Returns the part before."""
        now, before = time.process_time(), self._part
        if before:
            self.seconds[before] = self.seconds.get(before, 0.0) + now - self._since
        self._part, self._since = name, now
        return before

    def report(self, share: float) -> None:
        if self._progress is not None:
            self._progress(self._stage, share)

    def timings(self, num_frames: int) -> dict[str, Any]:
        """Milliseconds a frame by part, their sum, the seconds since the start, and the most memory that this process ever held, as plain values."""
        by_part = {part: round(1e3 * seconds / num_frames, 2) for part, seconds in self.seconds.items()}
        return {
            "cpu_ms_per_frame": {part: ms for part, ms in by_part.items() if ms},
            "cpu_ms_per_frame_in_all": round(1e3 * sum(self.seconds.values()) / num_frames, 1),
            "wall_s": round(time.perf_counter() - self._began, 1),
            "worker_peak_mib": round(peak_resident_mib()),
        }


@runtime_checkable
class Pictures(Protocol):
    """Square pictures of one person, in time order."""

    def crops(self, size: int, first: int = 0, stop: int | None = None) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        """Frames first .. stop - 1, size x size; the same bytes at each call."""
        ...


@runtime_checkable
class Matte(Protocol):
    """Says where the person is in one picture after the other."""

    def segment(self, image: UInt8[np.ndarray, "side side 3"]) -> UInt8[np.ndarray, "side side"]:
        """0..255."""
        ...


@dataclass(frozen=True)
class Reel:
    """One clip through its crop."""

    path: Path
    fps: int
    crop: Crop
    seconds: float
    """Used from the clip's start, at most."""

    def crops(self, size: int, first: int = 0, stop: int | None = None) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        """Frames first .. stop - 1, size x size; the same bytes at each call."""
        work = max(WORK_SIZE, size)
        for full in islice(video.read_frames(self.path, self.fps, self.seconds), first, stop):
            yield shrunk(self.crop.cut(full, work), size)


@dataclass(eq=False)
class Footage:
    """What the first pass leaves, a list entry a frame; zeros where there was no face."""

    mattes: Spool
    looks: list[span.Look] = field(default_factory=list)
    landmarks: bytearray = field(default_factory=bytearray)
    """Float32 [frames 478 2], pixels of the sample: most of what grows with the clip, so never held twice."""
    matrices: list[Float64[np.ndarray, "4 4"]] = field(default_factory=list)
    units: list[Float32[np.ndarray, " units"]] = field(default_factory=list)
    blinks: list[float] = field(default_factory=list)
    embeddings: dict[int, Float32[np.ndarray, " id_dim"]] = field(default_factory=dict)

    def add(self, look: span.Look, face: Face | None, scale: float) -> None:
        """One more frame. scale: from the face's pixels to the sample's."""
        self.looks.append(look)
        self.landmarks += (_NOWHERE if face is None else face.landmarks[:, :2] * scale).astype(np.float32).tobytes()
        self.matrices.append(np.zeros((4, 4)) if face is None else face.matrix)
        self.units.append(_STILL if face is None else expression.raw(face.blendshapes))
        self.blinks.append(0.0 if face is None else expression.blink(face.blendshapes))


_NOWHERE = np.zeros((NUM_LANDMARKS, 2), np.float32)
_STILL = np.zeros(len(ACTION_UNITS), np.float32)


@dataclass(eq=False)
class Tracked:
    """The frames of a clip that are used, from its frame `first` on. Indexing gives the person matte of a used frame."""

    first: int
    landmarks: Float32[np.ndarray, "frames 478 2"]
    """Pixels of the sample."""
    matrices: Float64[np.ndarray, "frames 4 4"]
    units: Float32[np.ndarray, "frames units"]
    """Raw ACTION_UNITS, 0..1."""
    blinks: list[float]
    embeddings: dict[int, Float32[np.ndarray, " id_dim"]]
    """By frame number among the used ones."""
    mattes: Spool

    def __len__(self) -> int:
        return len(self.landmarks)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "size size"]:
        return self.mattes[self.first + index]


def watch(
    pictures: Pictures,
    cfg: PackConfig,
    person: Matte,
    mattes: Spool,
    expected: int,
    clock: Stopwatch,
    shares: tuple[float, float],
) -> Footage:
    """One pass over the pictures: landmarks, person matte, now and then an embedding.

    mattes: an empty spool that is filled; expected: frames, about; shares: of the whole work, done before and after.
    """
    footage, work = Footage(mattes), max(WORK_SIZE, cfg.size)
    embedder, before = IdentityEmbedder(), None
    with FaceTracker() as tracker:
        clock.stage("landmarks, matte, embedding", shares[0])
        clock.part("decoding")
        for i, large in enumerate(pictures.crops(work)):
            clock.part("landmarks")
            face = tracker.track(large, round(1000 / cfg.fps))
            clock.part("person matte")
            small = shrunk(large, cfg.size)
            matte = person.segment(small)
            mattes.append(matte)
            if face is not None and i % EMBED_STEP == 0:
                clock.part("identity embedding")
                footage.embeddings[i] = embedder.embed(large, face.landmarks)
            clock.part("cuts")
            footage.add(span.look(face, small, matte, before), face, cfg.size / work)
            before = small, matte
            if i % 25 == 24:
                clock.report(shares[0] + (shares[1] - shares[0]) * min(1.0, i / max(1, expected)))
            clock.part("decoding")
    return footage


def select(footage: Footage, use: span.Span, name: str) -> Tracked:
    """The arrays of the used frames. Raises DataError when none of them was embedded: the span lies between two that were."""
    used = slice(use.first, use.stop)
    embedded = {i - use.first: e for i, e in footage.embeddings.items() if use.first <= i < use.stop}
    if not embedded:
        raise DataError(
            f"{name}: no frame of its {len(use)} usable ones could be embedded; give a longer clip of one face"
        )
    return Tracked(
        first=use.first,
        landmarks=np.frombuffer(footage.landmarks, np.float32).reshape(-1, NUM_LANDMARKS, 2)[used],
        matrices=np.stack(footage.matrices[used]),
        units=np.stack(footage.units[used]),
        blinks=footage.blinks[used],
        embeddings=embedded,
        mattes=footage.mattes,
    )


def shrunk(image: np.ndarray, size: int) -> np.ndarray:
    """The square image at size x size, by area."""
    return image if len(image) == size else cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
