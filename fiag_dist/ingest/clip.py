"""One clip file to one identity's samples: the whole way, in the order it happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float32, UInt8

from fiag_dist import video
from fiag_dist.config import PackConfig
from fiag_dist.errors import DataError
from fiag_dist.ingest import backdrop, expression, masks, pose, rest, span, speech, tracks
from fiag_dist.ingest.face import Crop, Face, FaceTracker, find_crop
from fiag_dist.ingest.identity import IdentityEmbedder, nearest_in_time, normalised
from fiag_dist.ingest.masks import PersonMatte
from fiag_dist.types import BOUND_M, Frame, IdentityMeta, Split

WORK_SIZE = 512
"""Landmarks, mattes and embeddings are read from crops of at least this side, pixels."""
SEARCH_STEP = 10
"""Every so many frames are searched for where the head is."""
EMBED_STEP = 10
"""Every so many frames are embedded; the others take the nearest one's."""

Progress = Callable[[str, float], None]


@dataclass(eq=False)
class _Footage:
    """What one pass over the crops leaves in memory, a list entry a frame: uint8 images of the sample's size, never full frames."""

    images: list[UInt8[np.ndarray, "size size 3"]] = field(default_factory=list)
    mattes: list[UInt8[np.ndarray, "size size"]] = field(default_factory=list)
    faces: list[Face | None] = field(default_factory=list)
    """Landmarks in pixels of the sample."""
    differences: list[float] = field(default_factory=list)
    embeddings: dict[int, Float32[np.ndarray, " id_dim"]] = field(default_factory=dict)


class _Stopwatch:
    """Seconds by stage; reports the stage as it starts."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._stage, self._since = progress, "", 0.0
        self.seconds: dict[str, float] = {}

    def start(self, stage: str, share: float) -> None:
        """`share` of the whole work is done when `stage` begins."""
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + now - self._since, 3)
        self._stage, self._since = stage, now
        self.report(share)

    def report(self, share: float) -> None:
        if self._progress is not None:
            self._progress(self._stage, share)


def pack_clip(
    path: str | Path, cfg: PackConfig, name: str, progress: Progress | None = None
) -> tuple[IdentityMeta, Iterator[Frame]]:
    """Everything that a shard holds of one clip: its identity, and its frames in time order (made as they are asked for).

    progress: called with the stage's name and the share of the work done, 0..1. One thread; about 0.1 s a frame.
    Raises DataError, one line with the clip's name, for a clip that can't be used: unreadable, no sound, no face, two faces of similar size, too short.
    WeightsError or ConfigError when the extractors' files or libraries are missing.
    """
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    path, watch = Path(path), _Stopwatch(progress)
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a video file or a folder of them")
    watch.start("sound", 0.0)
    video.probe(path)
    wav = video.read_audio(path)
    if float(np.abs(wav).max(initial=0.0)) < 1e-4:
        raise DataError(
            f"{path.name}: its audio track is silent; the mouth is driven by speech, so give a clip with sound"
        )
    watch.start("finding the head", 0.02)
    crop = find_crop(islice(video.read_frames(path, cfg.fps, cfg.max_seconds), 0, None, SEARCH_STEP), path.name)
    watch.start("landmarks, matte, embedding", 0.08)
    heard = len(wav) / video.SAMPLE_RATE
    seconds = min(cfg.max_seconds or heard, heard)
    footage = _read(path, cfg, crop, seconds, watch)
    use = span.longest(footage.faces, footage.differences)
    if len(use) / cfg.fps < cfg.min_seconds:
        raise DataError(
            f"{path.name}: {len(use) / cfg.fps:.1f} s usable, {cfg.min_seconds:g} s needed: of {len(footage.faces) / cfg.fps:.1f} s "
            f"{_reasons(use, cfg.fps)}; give a longer clip of one face without cuts"
        )
    used = slice(use.first, use.stop)
    faces = [face for face in footage.faces[used] if face is not None]
    images, mattes = np.stack(footage.images[used]), np.stack(footage.mattes[used])
    embedded = {i - use.first: e for i, e in footage.embeddings.items() if use.first <= i < use.stop}
    del footage
    watch.start("speech features", 0.45)
    speech_track = speech.features(wav, use.stop, cfg.fps, cfg.extractor)[use.first :]
    return _assemble(path, cfg, name, crop, use, faces, images, mattes, embedded, speech_track, wav, watch)


def _read(path: Path, cfg: PackConfig, crop: Crop, seconds: float, watch: _Stopwatch) -> _Footage:
    """One pass over the clip: crop, landmarks, person matte, now and then an embedding."""
    footage, expected = _Footage(), max(1, round(min(seconds, video.probe(path).seconds) * cfg.fps))
    work = max(WORK_SIZE, cfg.size)
    embedder = IdentityEmbedder()
    with FaceTracker() as tracker, PersonMatte() as matte:
        for i, full in enumerate(video.read_frames(path, cfg.fps, seconds)):
            large = crop.cut(full, work)
            small = _shrunk(large, cfg.size)
            face = tracker.track(large, round(1000 / cfg.fps))
            if face is not None and len(footage.images) % EMBED_STEP == 0:
                footage.embeddings[i] = embedder.embed(large, face.landmarks)
            footage.faces.append(None if face is None else _scaled(face, cfg.size / work))
            footage.mattes.append(_shrunk(matte.segment(large), cfg.size))
            footage.differences.append(span.difference(small, footage.images[-1] if footage.images else None))
            footage.images.append(small)
            if i % 25 == 24:
                watch.report(0.08 + 0.37 * min(1.0, i / expected))
    return footage


def _assemble(
    path: Path, cfg: PackConfig, name: str, crop: Crop, use: span.Span, faces: list[Face], images: np.ndarray, mattes: np.ndarray,
    embedded: dict[int, np.ndarray], speech_track: np.ndarray, wav: np.ndarray, watch: _Stopwatch,
) -> tuple[IdentityMeta, Iterator[Frame]]:  # fmt: skip
    """From tracked crops to poses, channels, plate and samples."""
    num_frames = len(faces)
    num_train = num_frames - max(1, round(num_frames * cfg.test_share))
    split: list[Split] = ["train" if i < num_train else "test" for i in range(num_frames)]
    landmarks = np.stack([face.landmarks for face in faces])
    watch.start("flow tracks", 0.5)
    scale = tracks.POSE_SIZE / cfg.size
    grey = np.stack([_shrunk(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), tracks.POSE_SIZE) for image in images])
    matte_small = mattes if scale == 1 else np.stack([_shrunk(matte, tracks.POSE_SIZE) for matte in mattes])
    followed = tracks.follow(grey, landmarks * scale, matte_small)
    del grey, matte_small
    watch.start("head poses", 0.8)
    poses = pose.solve(
        landmarks * scale, np.stack([f.matrix for f in faces]), followed, cfg.focal_ratio * tracks.POSE_SIZE
    )
    K = np.array(
        [[cfg.focal_ratio * cfg.size, 0, cfg.size / 2], [0, cfg.focal_ratio * cfg.size, cfg.size / 2], [0, 0, 1]]
    )
    rest_landmarks, landmarks_3d = rest.unproject(landmarks, poses.viewmats, K, num_train)
    if not embedded:  # the span lies between two sampled frames
        raise DataError(
            f"{path.name}: no frame of its {num_frames} usable ones could be embedded; give a longer clip of one face"
        )
    embeddings = nearest_in_time(embedded, num_frames)
    expressions = expression.channels([face.blendshapes for face in faces], num_train)
    watch.start("background plate", 0.95)
    plate = backdrop.plate(images, mattes)
    watch.start("", 1.0)
    first_sample = round(use.first / cfg.fps * video.SAMPLE_RATE)
    meta = IdentityMeta(
        name=name,
        wav=wav[first_sample : first_sample + round(num_frames / cfg.fps * video.SAMPLE_RATE)],
        plate=plate,
        embedding=normalised(embeddings[:num_train].mean(0)),
        rest_landmarks=rest_landmarks,
        viewmats=poses.viewmats.astype(np.float32),
        K=K.astype(np.float32),
        expressions=expressions,
        speech=speech_track,
        split=split,
        thumbnail=images[num_frames // 2],
        report=_report(path, cfg, crop, use, poses, landmarks, mattes, watch),
    )

    def frames() -> Iterator[Frame]:
        for i in range(num_frames):
            built = masks.build(landmarks[i], mattes[i])
            yield Frame(
                identity=name,
                index=i,
                time_s=i / cfg.fps,
                split=split[i],
                image=images[i],
                alpha=built.alpha,
                labels=built.labels,
                audio=speech.windows(speech_track, i),
                embedding=embeddings[i],
                viewmat=meta.viewmats[i],
                K=meta.K,
                expression=expressions[i],
                landmarks=landmarks_3d[i].astype(np.float16),
                lips_rect=built.lips_rect,
                mouth_open=expression.mouth_open(landmarks[i]),
                blink=expression.blink(faces[i].blendshapes),
            )

    return meta, frames()


def _report(
    path: Path, cfg: PackConfig, crop: Crop, use: span.Span, poses: pose.Poses, landmarks: np.ndarray, mattes: np.ndarray, watch: _Stopwatch
) -> dict:  # fmt: skip
    """Plain values for report.json: what was used, what was left out, how well the head was tracked, where the time went."""
    heights = np.linalg.norm(landmarks[:, 10, :2] - landmarks[:, 152, :2], axis=1)
    return {
        "clip": path.name,
        "seconds_used": round(len(use) / cfg.fps, 2),
        "seconds_left_out": {reason: round(count / cfg.fps, 2) for reason, count in use.left_out.items()},
        "start_s": round(use.first / cfg.fps, 2),
        "crop_px": {"x": crop.x, "y": crop.y, "side": crop.side},
        "face_height_px": round(float(np.median(heights)), 1),
        "pose": {
            "landmark_rms_px_at_256": round(poses.landmark_rms_px, 3),
            "track_median_px_at_256": round(poses.track_median_px, 3),
            "tracks": poses.num_tracks,
            "jitter": pose.jitter(poses.viewmats, cfg.focal_ratio * tracks.POSE_SIZE),
        },
        "head_inside_bound": round(_inside_bound(cfg, poses, landmarks, mattes), 4),
        "seconds_by_stage": watch.seconds,
        "ms_per_frame": round(1e3 * sum(watch.seconds.values()) / max(1, use.stop), 1),
    }


def _inside_bound(cfg: PackConfig, poses: pose.Poses, landmarks: np.ndarray, mattes: np.ndarray) -> float:
    """Share of the head's pixels whose rays pass the head's middle inside the cube of types.BOUND_M, over a few frames."""
    shares = []
    for i in np.linspace(0, len(landmarks) - 1, 9).round().astype(int):
        rows, columns = np.nonzero(masks.build(landmarks[i], mattes[i]).alpha > 127)
        R, t = poses.viewmats[i, :3, :3], poses.viewmats[i, :3, 3]
        centred = np.column_stack([columns + 0.5, rows + 0.5]) - cfg.size / 2
        rays = np.column_stack([centred / (cfg.focal_ratio * cfg.size), np.ones(len(rows))]) @ R
        eye = -t @ R
        at_middle = eye + rays * (-eye[2] / rays[:, 2])[:, None]
        shares.append(float((np.abs(at_middle).max(1) <= BOUND_M).mean()))
    return float(np.mean(shares))


def _reasons(use: span.Span, fps: float) -> str:
    return ", ".join(f"{count / fps:.1f} s {reason}" for reason, count in use.left_out.items()) or "that is all of it"


def _scaled(face: Face, scale: float) -> Face:
    return Face((face.landmarks * scale).astype(np.float32), face.blendshapes, face.matrix)


def _shrunk(image: np.ndarray, size: int) -> np.ndarray:
    return image if len(image) == size else cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
