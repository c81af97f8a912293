"""One folder of prepared frames to one identity's samples: its poses, parsing, plate and action units are kept, brought to our conventions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from fiag_dist.config import PackConfig
from fiag_dist.errors import ConfigError, DataError
from fiag_dist.ingest import expression, footage, masks, pose, prepared, span, speech, summary, sync
from fiag_dist.ingest.assemble import Solved, assemble
from fiag_dist.ingest.face import Crop
from fiag_dist.ingest.face_model import canonical_vertices
from fiag_dist.ingest.footage import Progress, Stopwatch, Tracked
from fiag_dist.ingest.masks import Masks
from fiag_dist.ingest.prepared import Prepared
from fiag_dist.ingest.spool import Spool, handed_on
from fiag_dist.ingest.tracks import POSE_SIZE
from fiag_dist.landmarks import RIGID
from fiag_dist.media.sound import SAMPLE_RATE
from fiag_dist.types import STILL, Frame, IdentityMeta, Label, Split

MOST_FRAMES = 100
"""So many frames, spread over the clip, decide where the head lies in the folder's world."""
_ROBUST_PX = 2.0
_CENTRED = 1e-2
"""Weight that holds the head's origin near the world's where the cameras' motion does not tell, as the layout means it."""
_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
"""OpenGL camera axes (y up, z back) to OpenCV's."""


def pack_prepared(
    path: str | Path, cfg: PackConfig, name: str, progress: Progress | None = None
) -> tuple[IdentityMeta, Iterator[Frame]]:
    """Everything that a shard holds of one prepared folder, as `clip.pack_clip` gives it for a clip.

    Raises DataError, one line, for a folder that can't be used; ConfigError for settings that don't go with it, or when the extractors' libraries
    are missing; WeightsError when their files are.
    """
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if cfg.fps != prepared.FPS:
        raise ConfigError(f"--fps {cfg.fps}: prepared folders have {prepared.FPS} frames a second; leave it out")
    clock = Stopwatch(progress)
    clock.stage("sound", 0.0)
    folder = prepared.read(Path(path))
    wav = speech.heard_in(Path(path) / "aud.wav", folder.folder.name)
    with handed_on(cfg.size) as mattes:
        return _import(folder, cfg, name, wav, mattes, clock)


def head_in_world(
    to_camera: Float64[np.ndarray, "frames 4 4"], landmarks: Float32[np.ndarray, "frames 478 coordinates"],
    matrices: Float64[np.ndarray, "frames 4 4"], K: Float64[np.ndarray, "3 3"],
) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, " 3"], float]:  # fmt: skip
    """R, t, scale with world = scale R head + t: where the head frame of types.py lies in a world of unknown origin, axes and unit.

    to_camera: world to camera, OpenCV; landmarks: pixels of 256-pixel pictures, which K belongs to; matrices: the landmark model's. The average face,
    seen by the cameras, must fall on the landmarks.
    """
    some = np.unique(np.linspace(0, len(landmarks) - 1, min(MOST_FRAMES, len(landmarks))).round().astype(int))
    Rc, tc, seen = to_camera[some, :3, :3], to_camera[some, :3, 3], landmarks[some][:, RIGID, :2]
    R_head, t_head = pose.start_poses(matrices[some], float(K[0, 0]))
    R = Rotation.from_matrix(Rc.transpose(0, 2, 1) @ R_head).mean()
    # scale * t_head = Rc t + tc in each frame: linear in t and the scale.
    rows = np.concatenate([np.concatenate([-Rc, t_head[:, :, None]], 2).reshape(-1, 4), np.eye(3, 4) * _CENTRED])
    x = np.linalg.lstsq(rows, np.concatenate([tc.reshape(-1), np.zeros(3)]), rcond=None)[0]
    shape = canonical_vertices()[list(RIGID)]
    scale = abs(float(x[3]))

    def residuals(p: np.ndarray) -> np.ndarray:
        world = np.exp(p[6]) * scale * shape @ Rotation.from_rotvec(p[:3]).as_matrix().T + p[3:6] * scale
        camera = world @ Rc.transpose(0, 2, 1) + tc[:, None]
        pixels = camera[..., :2] / camera[..., 2:] * K[[0, 1], [0, 1]] + K[:2, 2]
        return np.concatenate([(pixels - seen).ravel(), p[3:6] * _CENTRED])

    start = np.concatenate([R.as_rotvec(), x[:3] / scale, [0.0]])
    best = least_squares(residuals, start, loss="soft_l1", f_scale=_ROBUST_PX, x_scale="jac").x
    return Rotation.from_rotvec(best[:3]).as_matrix(), best[3:6] * scale, float(np.exp(best[6]) * scale)


def viewmats_of(
    to_camera: Float64[np.ndarray, "frames 4 4"], R: np.ndarray, t: np.ndarray, scale: float
) -> Float64[np.ndarray, "frames 4 4"]:
    """Head to camera in metres, from world to camera and where the head lies in the world; the pictures stay the same."""
    viewmats = np.tile(np.eye(4), (len(to_camera), 1, 1))
    viewmats[:, :3, :3] = to_camera[:, :3, :3] @ R
    viewmats[:, :3, 3] = (to_camera[:, :3, :3] @ t + to_camera[:, :3, 3]) / scale
    return viewmats


class _Parsed:
    """The person as the folder's parsing has it, frame after frame."""

    def __init__(self, folder: Prepared) -> None:
        self._folder, self._next = folder, count()

    def segment(self, image: UInt8[np.ndarray, "side side 3"]) -> UInt8[np.ndarray, "side side"]:
        person = (self._folder.parsing(next(self._next)) != 255).any(-1)
        return prepared.resized((person * 255).astype(np.uint8), len(image))


def _import(
    folder: Prepared, cfg: PackConfig, name: str, wav: np.ndarray, mattes: Spool, clock: Stopwatch
) -> tuple[IdentityMeta, Iterator[Frame]]:
    found = footage.watch(folder, cfg, _Parsed(folder), mattes, len(folder.numbers), clock, (0.02, 0.7))
    use = span.longest(_without_gaps(found.looks, folder.numbers))
    missing = folder.numbers[use.first] - use.first  # of the frames that were filmed before them
    _, heard_stop = sync.covered(wav, 0.0, SAMPLE_RATE, cfg.fps)
    use = span.within(use, 0, heard_stop - missing, "without their sound")
    span.check(use, len(found.looks), cfg.fps, cfg.min_seconds, folder.folder.name)
    tracked = footage.select(found, use, folder.folder.name)
    del found
    split = _split(folder, use)
    used = slice(use.first, use.stop)
    clock.stage("head poses", 0.7)
    to_camera = np.linalg.inv(folder.to_world[used] @ _FLIP)
    small = np.diag([POSE_SIZE / folder.side, POSE_SIZE / folder.side, 1.0]) @ folder.K
    landmarks = tracked.landmarks * np.float32(POSE_SIZE / cfg.size)
    place = head_in_world(to_camera, landmarks, tracked.matrices, small)
    viewmats = viewmats_of(to_camera, *place)
    clock.stage("speech features", 0.75)
    first_frame = folder.numbers[use.first]
    wav = wav[round(first_frame / cfg.fps * SAMPLE_RATE) :][: round(len(use) / cfg.fps * SAMPLE_RATE)]
    heard, silence = speech.of_clip(cfg.extractor, wav, len(use), cfg.fps, folder.folder, first_frame)
    units = folder.action_units()
    if units is not None:
        tracked.units = units[used]
        tracked.blinks = np.clip(units[used, -1] * prepared.MOST_AU / prepared.MOST_BLINK, 0, 1).tolist()
    clock.stage("", 0.9)
    K = np.diag([cfg.size / folder.side, cfg.size / folder.side, 1.0]) @ folder.K
    solved = Solved(
        viewmats=viewmats,
        K=K,
        swing=np.tile(STILL, (len(viewmats), 1, 1)),
        split=split,
        expressions=expression.channels(tracked.units, tracked.landmarks, tracked.blinks, split.count("train")),
        plate=prepared.resized(folder.plate(), cfg.size),
        thumbnail=next(iter(folder.crops(cfg.size, use.first + len(use) // 2))),
        wav=np.ascontiguousarray(wav),
        speech=heard,
        silence=silence,
        report=summary.imported(
            folder.folder, Crop(0, 0, folder.side), cfg, use, first_frame, tracked, viewmats, K, place[2]
        ),
    )
    return assemble(name, cfg, folder, tracked, solved, clock, lambda i: _masks(folder, use.first + i, tracked, i))


def _split(folder: Prepared, use: span.Span) -> list[Split]:
    """Of the used frames. Raises DataError when none is left to train with, or none to test with, or they alternate: the first are trained on."""
    split = folder.split[use.first : use.stop]
    for wanted, file in prepared.TRANSFORMS:
        if wanted not in split:
            raise DataError(
                f"{folder.folder.name}: none of the {len(use)} used frames, {folder.numbers[use.first]} to {folder.numbers[use.stop - 1]}, is in {file}, "
                f"at least one for {wanted} needed; name some of them there"
            )
    if sorted(split, key=("train", "test").index) != split:
        raise DataError(
            f"{folder.folder.name}: frames of {prepared.TRANSFORMS[1][1]} lie between those of {prepared.TRANSFORMS[0][1]}, whose neighbours give them "
            "away; name the last ones of the clip there"
        )
    return split


def _without_gaps(looks: list[span.Look], numbers: list[int]) -> list[span.Look]:
    """A frame after a missing one begins anew, as after a cut."""
    follows = [True, *(b == a + 1 for a, b in pairwise(numbers))]
    return [
        look if ok else span.Look(look.reason, look.x, look.y, look.height, 255.0, 255.0)
        for look, ok in zip(looks, follows, strict=True)
    ]


def _masks(folder: Prepared, index: int, tracked: Tracked, used: int) -> Masks:
    """Head and parts by the folder's parsing; the lips, which it does not tell from the face, by landmarks."""
    colours, size = folder.parsing(index), len(tracked[used])
    drawn = masks.build(tracked.landmarks[used], tracked[used])

    def part(*colour: int) -> np.ndarray:
        exact = (np.abs(colours.astype(np.int16) - colour).max(-1) < 40).astype(np.float32)
        return prepared.resized(exact, size).clip(0, 1)

    face, hair, mouth, torso = part(0, 0, 255), part(0, 0, 0), part(100, 100, 100), part(0, 255, 0) + part(255, 0, 0)
    head = face + hair + mouth
    labels = np.full((size, size), Label.BACKGROUND, np.uint8)
    labels[torso > 0.5] = Label.TORSO
    labels[head > 0.5] = Label.HAIR
    labels[(face + mouth > hair) & (head > 0.5)] = Label.FACE
    for label in (Label.LIPS, Label.MOUTH):
        labels[(drawn.labels == label) & (head > 0.5)] = label
    return Masks(np.round(head.clip(0, 1) * 255).astype(np.uint8), labels, drawn.lips_rect)
