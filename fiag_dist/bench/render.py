"""fiag-dist bench render: frames a second of a finished identity, in memory and as H.264."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fiag_dist.acting.synthesize import Identity
from fiag_dist.bench.benchmark import Benchmark, at_least, say
from fiag_dist.bench.contest import now_s, spread
from fiag_dist.bench.demo import demo_shards
from fiag_dist.bench.scene import worn
from fiag_dist.config import FieldConfig, ModelConfig, MotionConfig, TrainConfig
from fiag_dist.errors import ConfigError
from fiag_dist.media.sound import SAMPLE_RATE
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.storage import open_storage
from fiag_dist.training.bake import write_identity_folder
from fiag_dist.training.start import fresh_head

STILL = 0.05
"""Output scale of motion networks that have learnt nothing: they are asked as usual, and do not throw the head about."""


@dataclass(frozen=True, kw_only=True)
class Bench(Benchmark):
    """Renders an identity that speaks: motion networks, both branches, over its backdrop, to 8-bit pixels; then the same, with its speech
    features and its sound, into an mp4.

    Without --identity, one is made of a demo head, with random Gaussians and networks that cost what trained ones do.
    Example: fiag-dist bench render --num-gaussians 10000 --size 512
    """

    identity: Path | None = None
    """An identity folder, as `fiag-dist adapt` writes it; its own size and number of Gaussians count then."""
    num_gaussians: int = 10_000
    """Of the face of the identity that is made; the mouth has a tenth of it."""
    size: int = 512
    """Side of its frames, pixels, an even number."""
    frames: int = 50
    """In each of the --repeat videos."""
    repeat: int = 5

    def measure(self) -> dict[str, Any]:
        at_least(2, frames=self.frames)
        at_least(100, num_gaussians=self.num_gaussians)
        if self.size % 2:
            raise ConfigError(f"--size {self.size}: H.264 needs an even side; give {self.size + 1}")
        if self.identity is None:
            with tempfile.TemporaryDirectory(prefix="fiag-bench-") as folder:
                return self._timed(Identity.load(self._made(Path(folder)))) | {"identity": "demo"}
        return self._timed(Identity.load(self.identity)) | {"identity": str(self.identity)}

    def _made(self, folder: Path) -> Path:
        """An identity folder below `folder`."""
        num_mouth = self.num_gaussians // 10
        field = FieldConfig(
            num_face=self.num_gaussians, num_mouth=num_mouth, capacity_face=self.num_gaussians, capacity_mouth=num_mouth
        )
        config = TrainConfig(model=ModelConfig(field=field, motion=MotionConfig(output_scale=STILL)))
        with demo_shards(1, self.size, "or give a finished identity: --identity FOLDER") as url:
            data = open_storage(url)
            manifest = read_manifest(data)
            head = fresh_head(config, data, manifest, manifest.names)
            for branch in head.fields.values():
                worn(branch)
            name = manifest.names[0]
            write_identity_folder(folder / name, head, head.universal.new_personal(), data, manifest, name, "", 0)
        return folder / name

    def _timed(self, identity: Identity) -> dict[str, Any]:
        info, person = identity.info, identity.actor.person
        wav = speechlike(self.frames / info.fps)
        say(f"{self.repeat} times {self.frames} frames of {info.size} x {info.size} without, and as many with encoding")
        frame_ms, plain_s, encoded_s = [], [], []
        with ExitStack() as stack:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fiag-bench-"))) / "video.mp4"
            for turn in range(-1, self.repeat):
                times_ms = list(_frame_times(identity, wav))
                began = now_s()
                identity.write_video(wav, out)
                video_s = now_s() - began
                if turn >= 0:  # the first turn is not counted
                    frame_ms += times_ms
                    plain_s.append(sum(times_ms) / 1e3 / len(times_ms))
                    encoded_s.append(video_s / self.frames)
            mib = out.stat().st_size / 2**20
        plain, encoded = spread(plain_s), spread(encoded_s)
        return {
            "frames_per_s": 1 / plain["median"],
            "frames_per_s_encoded": 1 / encoded["median"],
            "frame_ms": spread(frame_ms)["median"],
            "real_time": 1 / encoded["median"] / info.fps,
            "statistic": f"medians of {self.repeat} videos' means over their frames, in turns; best and spread (1st and 3rd quartile) beside them",
            "best": {"frames_per_s": 1 / plain["minimum"], "frames_per_s_encoded": 1 / encoded["minimum"]},
            "spread": {
                "frames_per_s": [1 / s for s in reversed(plain["spread"])],
                "frames_per_s_encoded": [1 / s for s in reversed(encoded["spread"])],
            },
            "size": info.size,
            "num_gaussians": {"face": len(person.face), "mouth": len(person.mouth)},
            "mib_a_minute": mib / self.frames * info.fps * 60,
            "device": str(next(identity.actor.buffers()).device),
        }


def speechlike(seconds: float) -> Float32[np.ndarray, " samples"]:
    """Noise in syllables, 16 kHz: what is heard does not change what a frame costs."""
    t_s = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    rough = np.random.default_rng(0).normal(size=len(t_s))
    return (0.1 * rough * np.sin(2 * np.pi * 2 * t_s) ** 2).astype(np.float32)


def _frame_times(identity: Identity, wav: np.ndarray) -> Iterator[float]:
    """Milliseconds of each frame but the first, which waits for the speech features of the whole sound."""
    images = identity.frames(wav)
    next(images)
    began = now_s()
    for _ in images:
        yield 1e3 * (now_s() - began)
        began = now_s()
