"""One clip file to one identity's samples: the whole way, in the order it happens.

Three passes decode the clip: landmarks and mattes; flow tracks and the background; the samples. Memory grows with the clip's length by
landmarks and sound only, some 20 KB a frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float32, UInt8

from fiag_dist import weights
from fiag_dist.config import PackConfig
from fiag_dist.errors import DataError
from fiag_dist.ingest import backdrop, expression, footage, pose, span, speech, summary, sync, tracks
from fiag_dist.ingest.assemble import Solved, assemble
from fiag_dist.ingest.face import find_crop
from fiag_dist.ingest.footage import Progress, Reel, Stopwatch, Tracked, shrunk
from fiag_dist.ingest.masks import PersonMatte
from fiag_dist.ingest.spool import Spool, handed_on
from fiag_dist.ingest.whisper import WHISPER
from fiag_dist.media import video
from fiag_dist.media.sound import SAMPLE_RATE
from fiag_dist.types import Frame, IdentityMeta

SEARCH_STEP = 10
"""Every so many frames are searched for where the head is."""
LEAST_FPS = 12.0
"""Slower clips miss most of what lips do between their frames."""
LEAST_SIDE = 64
"""Smaller pictures hold no face that could be tracked, pixels."""
SOUND_MARGIN_S = 1.0
"""Sound is read so much longer than frames are: it may have to move to its lips, by sync.MOST_S at most."""
SYNC_S = 60
"""So much of a clip decides on the offset of its sound, seconds."""


@dataclass(eq=False)
class _Seen:
    """What the pass over flow tracks and background leaves."""

    poses: pose.Poses
    plate: UInt8[np.ndarray, "size size 3"]
    thumbnail: UInt8[np.ndarray, "size size 3"]


def pack_clip(
    path: str | Path, cfg: PackConfig, name: str, progress: Progress | None = None
) -> tuple[IdentityMeta, Iterator[Frame]]:
    """Everything that a shard holds of one clip: its identity, and its frames in time order (made as they are asked for).

    progress: called with the stage's name and the share of the work done, 0..1. One thread; 0.07 to 0.2 s a frame.
    Raises DataError, one line with the clip's name, for a clip that can't be used: unreadable, too small or slow, no sound, no face, two faces of similar
    size, too short. WeightsError or ConfigError when the extractors' files or libraries are missing.
    """
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    path, clock = Path(path), Stopwatch(progress)
    clock.stage("sound", 0.0)
    wav = _sound(path, cfg.max_seconds)
    if _is_movable(cfg):
        weights.path(WHISPER)  # is missed before the work, not in the middle of it
    clock.stage("finding the head", 0.02)
    heard_s = len(wav) / SAMPLE_RATE
    used_s = min(cfg.max_seconds or heard_s, heard_s)
    crop = find_crop(video.read_frames(path, cfg.fps, used_s, SEARCH_STEP), path.name)
    reel = Reel(path, cfg.fps, crop, used_s)
    with handed_on(cfg.size) as mattes:
        return _watch_and_solve(reel, cfg, name, wav, mattes, clock)


def _watch_and_solve(
    reel: Reel, cfg: PackConfig, name: str, wav: np.ndarray, mattes: Spool, clock: Stopwatch
) -> tuple[IdentityMeta, Iterator[Frame]]:
    """The first two passes."""
    expected = round(min(reel.seconds, video.probe(reel.path).seconds) * cfg.fps)
    with PersonMatte() as person:
        found = footage.watch(reel, cfg, person, mattes, expected, clock, (0.05, 0.5))
    use = span.longest(found.looks)
    span.check(use, len(found.looks), cfg.fps, cfg.min_seconds, reel.path.name)
    tracked = footage.select(found, use, reel.path.name)
    clock.stage("speech features", 0.5)
    offset = _offset(wav, cfg, use.first, tracked.landmarks[: _num_train(use, cfg)])
    fixed = _is_movable(cfg) and offset is not None and offset.sure and abs(offset.late_s) > sync.WORTH_S
    if fixed and offset is not None:
        wav = sync.corrected(wav, offset.late_s, SAMPLE_RATE)
        use = span.within(use, *sync.covered(wav, offset.late_s, SAMPLE_RATE, cfg.fps), reason="without their sound")
        span.check(use, len(found.looks), cfg.fps, cfg.min_seconds, reel.path.name)
        tracked = footage.select(found, use, reel.path.name)
    del found
    num_train = _num_train(use, cfg)
    wav = _heard(wav, cfg, use.first, len(use))
    heard, silence = speech.of_clip(cfg.extractor, wav, len(use), cfg.fps, reel.path, use.first)
    seen = _poses(reel, cfg, use, tracked, clock)
    solved = Solved(
        viewmats=seen.poses.viewmats,
        K=intrinsics(cfg),
        swing=seen.poses.swing,
        split=["train" if i < num_train else "test" for i in range(len(use))],
        expressions=expression.channels(tracked.units, tracked.landmarks, tracked.blinks, num_train),
        plate=seen.plate,
        thumbnail=seen.thumbnail,
        wav=np.ascontiguousarray(wav),
        speech=heard,
        silence=silence,
        report=summary.report(reel.path, reel.crop, cfg, use, tracked, seen.poses, offset, fixed),
    )
    return assemble(name, cfg, reel, tracked, solved, clock)


def _num_train(use: span.Span, cfg: PackConfig) -> int:
    """Of the used frames, the first that are trained on."""
    return max(1, len(use) - max(1, round(len(use) * cfg.test_share)))


def _is_movable(cfg: PackConfig) -> bool:
    """Whether sound may be moved: what another program heard in it stays where it is."""
    return cfg.fix_sync and not cfg.extractor.startswith(speech.FROM_FILE)


def _heard(wav: np.ndarray, cfg: PackConfig, first: int, num: int) -> np.ndarray:
    """The sound of `num` frames from `first` on."""
    return wav[round(first / cfg.fps * SAMPLE_RATE) :][: round(num / cfg.fps * SAMPLE_RATE)]


def _offset(
    wav: np.ndarray, cfg: PackConfig, first: int, landmarks: Float32[np.ndarray, "frames 478 coordinates"]
) -> sync.Offset | None:
    """Sound against lips in training frames, the first of them `first`, over a minute in the middle at most; None where there is too little to tell by.

    Where sound stays as it is the offset is for the report alone, and None without Whisper's file.
    """
    if not _is_movable(cfg) and not weights.present(WHISPER):
        return None
    low = max(0, (len(landmarks) - SYNC_S * cfg.fps) // 2)
    opening = [expression.mouth_open(points) for points in landmarks[low : low + SYNC_S * cfg.fps]]
    return sync.estimate(np.array(opening), _heard(wav, cfg, first + low, len(opening)), cfg.fps)


def intrinsics(cfg: PackConfig) -> np.ndarray:
    """K [3 3] of every sample, pixels."""
    focal, centre = cfg.focal_ratio * cfg.size, cfg.size / 2
    return np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1]])


def _sound(path: Path, max_seconds: float) -> Float32[np.ndarray, " samples"]:
    """The clip's wav, as much as `max_seconds` of frames can need; 0: all. Raises DataError for a clip that its headers or its sound rule out."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a video file or a folder of them")
    info = video.probe(path)
    if min(info.width, info.height) < LEAST_SIDE:
        raise DataError(
            f"{path.name}: {info.width}x{info.height} pixels, {LEAST_SIDE} needed on the shorter side; give the clip in its full size"
        )
    if info.fps < LEAST_FPS:
        raise DataError(
            f"{path.name}: {info.fps:.3g} frames a second, {LEAST_FPS:g} needed to see the lips move; give the clip at its full rate"
        )
    return speech.heard_in(path, path.name, max_seconds + SOUND_MARGIN_S if max_seconds else 0.0)


def _poses(reel: Reel, cfg: PackConfig, use: span.Span, tracked: Tracked, clock: Stopwatch) -> _Seen:
    """One pass over the used frames: flow tracks as they come, head poses window by window, and pictures for the background plate."""
    clock.stage("flow tracks and head poses", 0.53)
    chosen = set(backdrop.choose(len(use)).tolist()) | {len(use) // 2}
    kept: dict[int, np.ndarray] = {}

    def grey() -> Iterator[UInt8[np.ndarray, "256 256"]]:
        before = clock.part("decoding")
        for i, image in enumerate(reel.crops(cfg.size, use.first, use.stop)):
            if i in chosen:
                kept[i] = image
            small = shrunk(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), tracks.POSE_SIZE)
            clock.part(before)
            yield small
            if i % 25 == 24:
                clock.report(0.53 + 0.35 * i / len(use))
            before = clock.part("decoding")

    def timed(source: Iterator[tracks.Tracks]) -> Iterator[tracks.Tracks]:
        while True:
            before = clock.part("flow tracks")
            found = next(source, None)
            clock.part(before)
            if found is None:
                return
            yield found

    scale = tracks.POSE_SIZE / cfg.size
    landmarks = tracked.landmarks if scale == 1 else tracked.landmarks * np.float32(scale)
    clock.part("head poses")
    focal_px = cfg.focal_ratio * tracks.POSE_SIZE
    if cfg.poses == "detected":
        for _ in grey():
            pass
        poses = pose.detected(landmarks, tracked.matrices, focal_px)
    else:
        followed = timed(tracks.follow(grey(), landmarks, _Shrunk(tracked)))
        poses = pose.solve(landmarks, tracked.matrices, followed, focal_px, [i - use.first for i in use.splices])
    clock.stage("background plate", 0.88)
    numbers = sorted(kept)
    plate = backdrop.plate(np.stack([kept[i] for i in numbers]), np.stack([tracked[i] for i in numbers]))
    clock.stage("", 0.9)
    return _Seen(poses, plate, kept[len(use) // 2])


@dataclass(frozen=True)
class _Shrunk:
    """Mattes at the size that poses are solved at."""

    mattes: Tracked

    def __getitem__(self, index: int, /) -> np.ndarray:
        return shrunk(self.mattes[index], tracks.POSE_SIZE)
