"""Two small identities with random contents, for tests that read, carry and damage shards."""

import numpy as np

from fiag_dist.shards.manifest import AudioFormat, EmbeddingFormat, IdentityEntry, Manifest, write_manifest
from fiag_dist.shards.writer import write_identity
from fiag_dist.storage import Storage
from fiag_dist.types import EXPRESSION_NAMES, Frame, IdentityMeta, Split

SIZE, FRAMES, PER_SHARD = 48, 23, 10


def make(name: str, seed: int = 0) -> tuple[IdentityMeta, list[Frame]]:
    rng = np.random.default_rng(seed)
    smooth = np.linspace(0, 255, SIZE).astype(np.uint8)
    speech = rng.normal(size=(FRAMES, 4, 2)).astype(np.float16)
    split: list[Split] = ["test" if i >= FRAMES - 3 else "train" for i in range(FRAMES)]
    frames = [
        Frame(
            identity=name,
            index=i + (i > 5),  # one frame of the clip was dropped
            time_s=i / 25,
            split=split[i],
            image=np.stack([np.roll(smooth, i)[None].repeat(SIZE, 0)] * 3, -1),
            alpha=rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8),
            labels=rng.integers(0, 6, (SIZE, SIZE), dtype=np.uint8),
            audio=rng.normal(size=(8, 4, 2)).astype(np.float16),
            embedding=rng.normal(size=16).astype(np.float32),
            viewmat=rng.normal(size=(4, 4)).astype(np.float32),
            K=rng.normal(size=(3, 3)).astype(np.float32),
            swing=rng.normal(size=(3, 4)).astype(np.float32),
            expression=rng.random(9).astype(np.float32),
            landmarks=rng.normal(size=(478, 3)).astype(np.float16),
            lips_rect=(1, 2, 30, 31),
            mouth_open=float(np.float32(rng.random())),
            blink=float(np.float32(rng.random())),
        )
        for i in range(FRAMES)
    ]
    meta = IdentityMeta(
        name=name,
        wav=np.clip(rng.normal(size=FRAMES * 640) / 4, -1, 1).astype(np.float32),
        plate=rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8),
        embedding=frames[0].embedding,
        rest_landmarks=rng.normal(size=(478, 3)).astype(np.float32),
        viewmats=np.stack([f.viewmat for f in frames]),
        K=frames[0].K,
        swing=np.stack([f.swing for f in frames]),
        expressions=np.stack([f.expression for f in frames]),
        speech=speech,
        silence=speech[:2],
        split=split,
        thumbnail=frames[0].image,
        report={"frames": FRAMES, "notes": ["made up"]},
    )
    return meta, frames


def manifest_of(*entries: IdentityEntry) -> Manifest:
    return Manifest(
        fps=25,
        size=SIZE,
        sample_rate=16000,
        audio=AudioFormat(extractor="mel", dim=4, window=2),
        expression=list(EXPRESSION_NAMES),
        id_embedding=EmbeddingFormat(model="none", dim=16),
        identities=list(entries),
    )


def write_two(store: Storage) -> Manifest:
    """`anna` and `bert`, of three shards each, and their manifest."""
    entries = [write_identity(store, *make(name, seed), PER_SHARD) for seed, name in enumerate(["anna", "bert"])]
    manifest = manifest_of(*entries)
    write_manifest(store, manifest)
    return manifest
