"""Procedural talking heads, straight to shards: no footage, no weights, no face detector.

python shards/make_demo.py --out shards/local/demo --identities 4 --seconds 6 --size 256

Geometry, poses, masks, expressions and landmarks are known exactly, and a synthesised voice moves the mouth. The same arguments give the same
frames; identities that are there already are kept.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from demo_act import perform, still
from demo_head import Landmarks, make_person, mouth_open
from demo_paint import backdrop, build
from demo_raster import Painter
from demo_voice import SAMPLE_RATE, speak

from fiag_dist.config import PackConfig
from fiag_dist.errors import ConfigError, DataError, FiagError
from fiag_dist.ingest.speech import features, windows, with_silence
from fiag_dist.landmarks import LIPS_OUTER
from fiag_dist.shards.manifest import (
    FILE,
    AudioFormat,
    EmbeddingFormat,
    IdentityEntry,
    Manifest,
    SourceEntry,
    check_sizes,
    read_manifest,
    write_manifest,
)
from fiag_dist.shards.writer import wav_bytes, write_identity
from fiag_dist.storage import open_storage
from fiag_dist.types import EXPRESSION_NAMES, STILL, Frame, IdentityMeta, Split

RECIPE = 1
"""Raised whenever the same arguments give other frames."""
EXTRACTOR = "mel"
ID_DIM = 128


@dataclass(frozen=True)
class Demo:
    """What is asked for."""

    seconds: float
    size: int
    seed: int
    fps: int = 25
    frames_per_shard: int = PackConfig().frames_per_shard

    @property
    def num_frames(self) -> int:
        return round(self.seconds * self.fps)

    def source(self, number: int) -> SourceEntry:
        """Identifies the frames that this demo gives for an identity."""
        recipe = hashlib.sha256(json.dumps([RECIPE, number, dataclasses.asdict(self)]).encode()).hexdigest()
        return SourceEntry(file=f"make_demo.py:{number}", bytes=0, sha256=recipe, settings=recipe[:16])


def make_demo(out: str, identities: int, demo: Demo, jobs: int = 0) -> Manifest:
    """Writes `identities` people to a folder or s3:// prefix and returns the manifest; people who are there already are kept.

    Raises ConfigError for numbers out of range, DataError when the folder holds shards that are not from here.
    """
    if identities < 1 or demo.num_frames < 22 or not 32 <= demo.size <= 2048:
        raise ConfigError(
            f"{identities} identities of {demo.seconds} s at {demo.size} px: need at least 1 identity, 0.9 s and 32 to 2048 px"
        )
    storage = open_storage(out)
    kept = _kept(out)
    work = [(out, n, demo) for n in range(identities) if _settings(kept.get(n)) != demo.source(n).settings]
    workers = min(jobs or os.cpu_count() or 1, len(work))
    if workers > 1:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            made = list(pool.map(_make_identity, work))
    else:
        made = [_make_identity(w) for w in work]
    entries = kept | {w[1]: entry for w, entry in zip(work, made, strict=True)}
    dim, window = features(np.zeros(1600, np.float32), 2, demo.fps, EXTRACTOR).shape[1:]
    manifest = Manifest(
        fps=demo.fps,
        size=demo.size,
        sample_rate=SAMPLE_RATE,
        audio=AudioFormat(extractor=EXTRACTOR, dim=dim, window=window),
        expression=list(EXPRESSION_NAMES),
        id_embedding=EmbeddingFormat(model="demo", dim=ID_DIM),
        identities=[entries[n] for n in range(identities)],
    )
    write_manifest(storage, manifest)
    return manifest


def perform_identity(number: int, demo: Demo) -> tuple[IdentityMeta, Iterator[Frame]]:
    """A person's clip as packing would give it: the frames are rendered as they are taken."""
    person = make_person(number, demo.seed)
    name = f"demo_{number:02d}"
    act = perform(person, np.random.default_rng((demo.seed, number, 1)), demo.num_frames, demo.fps)
    landmarks_of = Landmarks(person)
    landmarks = np.stack([landmarks_of(m) for m in act.motions]).astype(np.float32)
    speech, silence = with_silence(act.speech.wav, demo.num_frames, demo.fps, EXTRACTOR)
    num_train = demo.num_frames - max(1, round(demo.num_frames * PackConfig().test_share))
    split: list[Split] = ["train" if i < num_train else "test" for i in range(demo.num_frames)]
    rng = np.random.default_rng((demo.seed, number, 2))
    embedding = _unit(rng.normal(size=ID_DIM))
    embeddings = np.stack([_unit(embedding + 0.02 * rng.normal(size=ID_DIM)) for _ in split]).astype(np.float32)
    focal = PackConfig().focal_ratio * demo.size
    K = np.array([[focal, 0, demo.size / 2], [0, focal, demo.size / 2], [0, 0, 1]], np.float32)
    wall = backdrop(person, demo.size, number + 1000 * demo.seed)
    paint = Painter(build(person, number), wall, demo.size)

    def frame(i: int) -> Frame:
        image, alpha, labels = paint(act.motions[i], act.viewmats[i], still(), K)
        return Frame(
            identity=name,
            index=i,
            time_s=i / demo.fps,
            split=split[i],
            image=image,
            alpha=alpha,
            labels=labels,
            audio=windows(speech, i),
            embedding=embeddings[i],
            viewmat=act.viewmats[i].astype(np.float32),
            K=K,
            swing=STILL,
            expression=act.expressions[i],
            landmarks=landmarks[i].astype(np.float16),
            lips_rect=_lips_rect(landmarks[i], act.viewmats[i], K, demo.size),
            mouth_open=mouth_open(landmarks[i]),
            blink=float(act.expressions[i, -1]),
        )

    meta = IdentityMeta(
        name=name,
        wav=act.speech.wav,
        plate=np.round(wall * 255).astype(np.uint8),
        embedding=_unit(embeddings[:num_train].mean(0)).astype(np.float32),
        rest_landmarks=np.median(landmarks[:num_train], 0).astype(np.float32),
        viewmats=act.viewmats.astype(np.float32),
        K=K,
        swing=np.tile(STILL, (demo.num_frames, 1, 1)),
        expressions=act.expressions,
        speech=speech,
        silence=silence,
        split=split,
        thumbnail=frame(0).image,
        report={"clip": name, "kind": "procedural", "frames": demo.num_frames, "person": dataclasses.asdict(person)},
    )
    return meta, (frame(i) for i in range(demo.num_frames))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; prints where the shards are and how fast they were made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="shards/local/demo", help="folder or s3:// prefix (default: %(default)s)")
    parser.add_argument("--identities", type=int, default=4, help="how many people (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each clip (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side of the frames, pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other people (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=0, help="people made at the same time; 0: one a core")
    parser.add_argument("--wav", type=Path, help="also write a sentence that no identity says, to drive a rendering")
    args = parser.parse_args(argv)
    began = time.perf_counter()
    try:
        demo = Demo(args.seconds, args.size, args.seed)
        manifest = make_demo(args.out, args.identities, demo, args.jobs)
        if args.wav:
            person = make_person(args.identities, args.seed)
            voice = speak(
                np.random.default_rng((args.seed, 999)), demo.num_frames, demo.fps, person.pitch_hz, person.tract
            )
            args.wav.parent.mkdir(parents=True, exist_ok=True)
            args.wav.write_bytes(wav_bytes(voice.wav))
    except FiagError as error:
        print(f"make_demo.py: {error}", file=sys.stderr)
        return 2
    seconds = time.perf_counter() - began
    frames = sum(i.num_frames for i in manifest.identities)
    print(
        f"{args.out}: {len(manifest.identities)} identities, {frames} frames of {demo.size}x{demo.size}; took {seconds:.1f} s"
    )
    return 0


def _make_identity(work: tuple[str, int, Demo]) -> IdentityEntry:
    out, number, demo = work
    cv2.setNumThreads(1)
    meta, frames = perform_identity(number, demo)
    entry = write_identity(open_storage(out), meta, frames, demo.frames_per_shard)
    return dataclasses.replace(entry, source=demo.source(number))


def _kept(out: str) -> dict[int, IdentityEntry]:
    """Whole identities from an earlier run, by number."""
    storage = open_storage(out)
    if not storage.exists(FILE):
        return {}
    kept = {}
    for entry in read_manifest(storage, check=False).identities:
        if entry.source is None or not entry.source.file.startswith("make_demo.py:"):
            raise DataError(f"{out}: holds {entry.name}, which is not from make_demo.py; give another --out")
        try:
            check_sizes(storage, [entry])
        except DataError:
            continue
        kept[int(entry.source.file.split(":")[1])] = entry
    return kept


def _settings(entry: IdentityEntry | None) -> str | None:
    return entry.source.settings if entry and entry.source else None


def _lips_rect(landmarks: np.ndarray, viewmat: np.ndarray, K: np.ndarray, size: int) -> tuple[int, int, int, int]:
    """Pixels around the lips with a margin of a fifth of their width, half open."""
    camera = landmarks[list(LIPS_OUTER)] @ viewmat[:3, :3].T + viewmat[:3, 3]
    pixels = camera[:, :2] / camera[:, 2:] * K[0, 0] + K[:2, 2]
    margin = 0.2 * np.ptp(pixels[:, 0])
    x0, y0 = np.floor(pixels.min(0) - margin).clip(0, size - 1).astype(int)
    x1, y1 = np.ceil(pixels.max(0) + margin).clip(1, size).astype(int)
    return int(x0), int(y0), int(x1), int(y1)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


if __name__ == "__main__":
    sys.exit(main())
