"""What a head is rendered over: the clip's own torso and background with the head taken out, and how the head was held meanwhile."""

import io
import itertools
import zipfile
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from fiag_dist.acting.actor import refuse_unreadable
from fiag_dist.errors import DataError
from fiag_dist.ingest.span import spikes
from fiag_dist.media.video import VideoWriter, read_frames
from fiag_dist.types import ACTION_UNITS, EXPRESSION_NAMES, GAZE, STILL, Frame, IdentityMeta

VIDEO, POSES = "backdrop.mp4", "poses.npz"
_HEAD_ABOVE = 2
"""An alpha value from which a pixel may show some of the head, of 255."""
LEAST_JUMP_M = 0.006
"""A head that moves less from one frame to the next does not jump, whatever its neighbours do; metres."""
_CRF = 10
"""Near lossless: the backdrop is encoded a second time in every rendered video."""
_MEMORY_BYTES = 256 * 2**20
"""Decoded frames that a loop keeps, 54 s at 256 x 256: it runs back and forth, so it must reach any of them at once."""
_FILLED_BYTES = 256 * 2**20
"""Of pixels that were filled in: a thousand frames of 512 x 512, in which a head takes a third."""


@dataclass(frozen=True, eq=False)
class Loop:
    """Consecutive frames of a clip to run through back and forth."""

    images: list[UInt8[np.ndarray, "size size 3"]]
    viewmats: Float32[np.ndarray, "frames 4 4"]
    K: Float32[np.ndarray, "3 3"]
    expressions: Float32[np.ndarray, "frames channels"]
    swing: Float32[np.ndarray, "frames 3 4"]
    """Of hair, as in Frame."""

    def __len__(self) -> int:
        return len(self.images)

    def at(self, t: int) -> int:
        """The frame that stands at time t: 0, 1 .. n-1, n-2 .. 1, 0, 1 .. so that neighbours in time are neighbours in the clip."""
        return bounce(t, len(self))


def bounce(t: int, num: int) -> int:
    """0, 1 .. num-1, num-2 .. 1, 0, 1 .. at t = 0, 1, 2 .."""
    phase = t % max(2 * (num - 1), 1)
    return min(phase, 2 * (num - 1) - phase)


def behind(
    image: UInt8[np.ndarray, "height width 3"], alpha: UInt8[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The frame with its head taken out and filled in from around it (Telea, 2004), so that a head may turn over it without a hole.

    alpha: 255 where the head is; the fringe is taken out with it.
    """
    return cv2.inpaint(image, _hole(alpha), 3, cv2.INPAINT_TELEA)


class Filled:
    """`behind` of frames that come again and again: what was once filled in stays, up to `room` bytes, of each frame the pixels of its hole.

    Whoever comes first stays: frames that come in turns would drive one another out, and none would be found.
    """

    def __init__(self, room: int = _FILLED_BYTES) -> None:
        self._room = room
        self._kept: dict[Hashable, np.ndarray] = {}

    def behind(
        self, key: Hashable, image: UInt8[np.ndarray, "height width 3"], alpha: UInt8[np.ndarray, "height width"]
    ) -> UInt8[np.ndarray, "height width 3"]:
        """What `behind` gives. key: stands for this image and alpha for ever."""
        hole = _hole(alpha) > 0
        if key in self._kept:
            filled = image.copy()
            filled[hole] = self._kept[key]
            return filled
        filled = behind(image, alpha)
        pixels = filled[hole]
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[key] = pixels
        return filled


def surroundings(
    image: UInt8[np.ndarray, "height width 3"], alpha: UInt8[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The frame with its head taken out and each of its pixels filled with the nearest around it; arguments as for `behind`.

    Along the head's outline, where a render may show any of it, this is much like `behind`, in a tenth of the time. Black where nothing is around.
    """
    hole = _hole(alpha)
    if hole.all():
        return np.zeros_like(image)
    _, found = cv2.distanceTransformWithLabels(hole, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    nearest, around = found.astype(np.int64), np.flatnonzero(hole == 0)
    pixel_of = np.zeros(int(nearest.max()) + 1, np.int64)
    pixel_of[nearest.ravel()[around]] = around
    return image.reshape(-1, 3)[pixel_of[nearest]]


def _hole(alpha: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """1 where a head and its fringe are."""
    spread = 2 * max(1, round(len(alpha) / 256)) + 1
    return cv2.dilate((alpha > _HEAD_ABOVE).astype(np.uint8), np.ones((spread, spread), np.uint8))


def write_backdrop(folder: Path, frames: Iterable[Frame], meta: IdentityMeta, fps: int) -> None:
    """Writes backdrop.mp4 and poses.npz of `frames`, in time order, into an identity folder; one frame is in memory at a time.

    Raises DataError when there are no frames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index, viewmats, expressions, swing = [], [], [], []
    size = len(meta.plate)
    with VideoWriter(folder / VIDEO, size, size, fps, crf=_CRF) as video:
        for frame in frames:
            video.write(behind(frame.image, frame.alpha))
            index.append(frame.index)
            viewmats.append(frame.viewmat)
            expressions.append(frame.expression)
            swing.append(frame.swing)
        if not index:
            raise DataError(
                f"identity {meta.name}: no training frames, so there is nothing to render over; pack a longer clip"
            )
    stream = io.BytesIO()
    arrays = {
        "index": np.array(index, np.int32),
        "viewmats": np.array(viewmats, np.float32),
        "K": np.asarray(meta.K, np.float32),
        "expressions": np.array(expressions, np.float32),
        "swing": np.array(swing, np.float32),
    }
    np.savez(stream, allow_pickle=False, **arrays)
    part = folder / f"{POSES}.part"
    part.write_bytes(stream.getvalue())
    part.replace(folder / POSES)


def read_backdrop(folder: Path, size: int, fps: int) -> Loop:
    """The longest run of frames without a gap in time or a splice, as much of it as memory may hold.

    size, fps: of the identity. Raises DataError when a file is missing, damaged or of another size.
    """
    again = "adapt the clip again"
    refuse_unreadable(folder, VIDEO, POSES)
    for name in (VIDEO, POSES):
        if not (folder / name).is_file():
            raise DataError(f"identity {folder}: no {name} in it, and heads are rendered over it; {again}")
    try:
        with np.load(io.BytesIO((folder / POSES).read_bytes()), allow_pickle=False) as stored:
            poses = {name: stored[name] for name in stored.files}
            num = poses["index"].size
            poses = _up_to_date(poses, num)
            found = {name: poses[name].shape for name in ("index", "viewmats", "K", "expressions", "swing")}
            for name in found:
                if not np.isfinite(poses[name]).all():
                    raise ValueError(f"{name}: not all numbers are finite")
    except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"identity {folder}: {POSES} is damaged ({error}); {again}") from error
    shapes = {
        "index": (num,),
        "viewmats": (num, 4, 4),
        "K": (3, 3),
        "expressions": (num, len(EXPRESSION_NAMES)),
        "swing": (num, 3, 4),
    }
    if num == 0 or found != shapes:
        raise DataError(
            f"identity {folder}: {POSES} has shapes {found}, the rule for {num} frames is {shapes}; {again}"
        )
    runs = np.split(np.arange(num), np.flatnonzero(np.diff(poses["index"]) != 1) + 1)
    longest = max(runs, key=len)[: max(1, _MEMORY_BYTES // (size * size * 3))]
    first, last = int(longest[0]), int(longest[-1])
    try:
        images = [
            image for i, image in enumerate(read_frames(folder / VIDEO, fps, (last + 1) / fps)) if first <= i <= last
        ]
    except DataError as error:
        raise DataError(f"identity {folder}: {VIDEO} is damaged ({error}); {again}") from error
    if len(images) != len(longest) or images[0].shape != (size, size, 3):
        found = f"{len(images)} frames of {images[0].shape if images else None}"
        raise DataError(
            f"identity {folder}: {VIDEO} has {found}, {POSES} asks for {len(longest)} of {(size, size, 3)}; {again}"
        )
    take = longest_take(poses["viewmats"][longest], images)
    chosen = longest[take]
    tracks = {name: poses[name][chosen] for name in ("viewmats", "expressions", "swing")}
    return Loop(images[take], K=poses["K"], **tracks)


def _up_to_date(poses: dict[str, np.ndarray], num: int) -> dict[str, np.ndarray]:
    """Tracks as this version has them: there was no swing once, and no gaze."""
    expressions = poses["expressions"]
    if expressions.shape == (num, len(ACTION_UNITS)):
        expressions = np.insert(expressions, [len(ACTION_UNITS) - 1] * len(GAZE), 0, axis=1)
    return {"swing": np.tile(STILL, (num, 1, 1)), **poses, "expressions": expressions}


def longest_take(
    viewmats: Float32[np.ndarray, "frames 4 4"], images: Sequence[UInt8[np.ndarray, "size size 3"]] = ()
) -> slice:
    """The longest run of consecutive frames in which neither the head nor, where images are given, the picture is suddenly elsewhere.

    Where it is, seconds were taken out of the clip (a splice).
    """
    moved_m = np.linalg.norm(np.diff(viewmats[:, :3, 3], axis=0), axis=1)
    jumps = spikes(np.array([0.0, *moved_m]), LEAST_JUMP_M)
    if images:
        jumps |= spikes(np.array([0.0, *(float(cv2.absdiff(a, b).mean()) for a, b in itertools.pairwise(images))]))
    edges = [0, *(int(i) for i in np.flatnonzero(jumps)), len(viewmats)]
    return slice(*max(itertools.pairwise(edges), key=lambda edge: edge[1] - edge[0]))
