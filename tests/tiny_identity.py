"""A made-up clip of a textured ball that drifts over a striped wall, packed; and an identity folder made of it without training."""

from pathlib import Path

import numpy as np
import torch

from fiag_dist.acting.actor import Actor, IdentityInfo, save_actor
from fiag_dist.acting.backdrop import write_backdrop
from fiag_dist.config import FieldConfig, ModelConfig, MotionConfig, TrainConfig
from fiag_dist.ingest import speech
from fiag_dist.shards.manifest import AudioFormat, EmbeddingFormat, Manifest, read_manifest, write_manifest
from fiag_dist.shards.reader import iter_frames
from fiag_dist.shards.writer import write_identity
from fiag_dist.storage import open_storage
from fiag_dist.training.start import fresh_head
from fiag_dist.types import EXPRESSION_NAMES, NUM_LANDMARKS, STILL, Frame, IdentityMeta, Label, Split

SIZE, FPS, TRAIN, TEST = 64, 25, 40, 4
FOCAL, DEPTH_M, RADIUS_M = 300.0, 1.0, 0.07
FRONT = np.diag([1.0, -1.0, -1.0])
"""The head looks at the camera: y up and z out of the face, against OpenCV's y down and z forward."""


def rest_shape() -> np.ndarray:
    """Landmarks on the disc that a camera sees of the ball, [478, 3] metres, in a sunflower's order."""
    k = np.arange(NUM_LANDMARKS) + 0.5
    radius, angle = RADIUS_M * np.sqrt(k / NUM_LANDMARKS), k * np.pi * (3 - 5**0.5)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * radius], 1).astype(np.float32)


def wall() -> np.ndarray:
    """Background, [SIZE, SIZE, 3] uint8."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.stack([100 + x, 60 + y, 80 + (x + y) // 2], -1).astype(np.uint8)


def viewmat(i: int) -> np.ndarray:
    """The ball drifts to the right, a pixel in four frames."""
    out = np.eye(4, dtype=np.float32)
    out[:3, :3] = FRONT
    out[:3, 3] = (i / 4 - 4) * DEPTH_M / FOCAL, 0.0, DEPTH_M
    return out


def picture(i: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and alpha of frame i."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    x = x - (i / 4 - 4)
    radius = FOCAL * RADIUS_M / DEPTH_M
    alpha = np.clip(radius - np.hypot(x, y) + 0.5, 0, 1)
    ball = np.stack([200 + 30 * np.sin(x / 2), 150 + 40 * np.cos(y / 2), 120 + 0 * x], -1)
    image = ball * alpha[..., None] + wall() * (1 - alpha[..., None])
    return image.round().astype(np.uint8), (alpha * 255).round().astype(np.uint8)


def voice(seconds: float) -> np.ndarray:
    """A rough tone whose loudness comes and goes, 16 kHz."""
    t = np.arange(round(seconds * 16000))
    rough = np.random.default_rng(0).random(len(t))
    return (0.3 * np.sin(t / 12) * rough * np.sin(t / 1500) ** 2).astype(np.float32)


def clip(name: str) -> tuple[IdentityMeta, list[Frame]]:
    num = TRAIN + TEST
    wav = voice(num / FPS)
    track = speech.features(wav, num, FPS, "mel")
    split: list[Split] = ["train" if i < TRAIN else "test" for i in range(num)]
    embedding = np.eye(16, dtype=np.float32)[3]
    K = np.array([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]], np.float32)
    frames = []
    for i in range(num):
        image, alpha = picture(i)
        frames.append(
            Frame(
                identity=name,
                index=i,
                time_s=i / FPS,
                split=split[i],
                image=image,
                alpha=alpha,
                labels=np.where(alpha > 127, np.uint8(Label.FACE), np.uint8(Label.BACKGROUND)),
                audio=speech.windows(track, i),
                embedding=embedding,
                viewmat=viewmat(i),
                K=K,
                swing=STILL,
                expression=np.zeros(len(EXPRESSION_NAMES), np.float32),
                landmarks=rest_shape().astype(np.float16),
                lips_rect=(26, 36, 38, 44),
                mouth_open=0.1,
                blink=0.0,
            )
        )
    meta = IdentityMeta(
        name=name,
        wav=wav,
        plate=wall(),
        embedding=embedding,
        rest_landmarks=rest_shape(),
        viewmats=np.stack([f.viewmat for f in frames]),
        K=K,
        swing=np.stack([f.swing for f in frames]),
        expressions=np.stack([f.expression for f in frames]),
        speech=track,
        silence=np.zeros((5, *track.shape[1:]), np.float16),
        split=split,
        thumbnail=frames[0].image,
    )
    return meta, frames


def pack(folder: Path, *names: str) -> str:
    """Shards with the one clip, under each of the names (none: "ball"); returns where they are."""
    store = open_storage(folder)
    entries = [write_identity(store, *clip(name), 20) for name in names or ("ball",)]
    manifest = Manifest(
        fps=FPS,
        size=SIZE,
        sample_rate=16000,
        audio=AudioFormat(extractor="mel", dim=80, window=4),
        expression=list(EXPRESSION_NAMES),
        id_embedding=EmbeddingFormat(model="none", dim=16),
        identities=entries,
    )
    write_manifest(store, manifest)
    return str(folder)


def tiny_config(motion_scale: float = 0.01) -> TrainConfig:
    """A head of a few Gaussians. motion_scale: at 1, networks that have learnt nothing throw them about."""
    field = FieldConfig(num_face=600, num_mouth=40, capacity_face=600, capacity_mouth=40)
    return TrainConfig(model=ModelConfig(field=field, motion=MotionConfig(output_scale=motion_scale)))


def make_identity(folder: Path, data: str, name: str = "ball", consent: str = "", motion_scale: float = 0.01) -> Path:
    """An identity folder as adaptation leaves it, but of a head that has learnt nothing beyond its first Gaussians."""
    store = open_storage(data)
    meta, _ = clip(name)
    config = tiny_config(motion_scale)
    manifest = read_manifest(store)
    head = fresh_head(config, store, manifest, [name])
    actor = Actor.bake(head, head.universal.new_personal(), torch.from_numpy(meta.embedding))
    write_backdrop(folder, iter_frames(store, manifest.entry(name), "train"), meta, FPS)
    info = IdentityInfo(
        name=name,
        size=SIZE,
        fps=FPS,
        extractor="mel",
        audio_dim=80,
        audio_window=4,
        motion=config.model.motion,
        data=data,
        checkpoint="",
        steps=0,
        consent=consent,
    )
    save_actor(folder, actor, info)
    return folder
