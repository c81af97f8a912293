"""fiag-dist bench step: one training step of the whole model, as pretraining does it, and where its time goes."""

import statistics
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch

from fiag_dist.bench.benchmark import Benchmark, at_least, choose, device_for, say
from fiag_dist.bench.contest import now_s, spread
from fiag_dist.bench.demo import demo_shards
from fiag_dist.bench.parts import watched
from fiag_dist.bench.scene import field_of
from fiag_dist.config import DensityConfig, ModelConfig, StageConfig, TrainConfig
from fiag_dist.dist.engine import LocalEngine
from fiag_dist.dist.ownership import assign
from fiag_dist.dist.pool import PersonalPool
from fiag_dist.errors import ConfigError
from fiag_dist.kernels.launch import use_threads
from fiag_dist.shards.manifest import Manifest, read_manifest
from fiag_dist.stages import Stage
from fiag_dist.storage import Storage, open_storage
from fiag_dist.training.feed import Feed
from fiag_dist.training.start import fresh_head
from fiag_dist.training.step import Training, optimizer_groups

STEPS = 100_000
"""Length of the run that the timed steps are a piece of: rates and weights hardly change within them."""
IDENTITIES = 3


@dataclass(frozen=True, kw_only=True)
class Bench(Benchmark):
    """Trains the whole model in the motion stage, one frame a step in one process: IE-Net, UM-Net, IM-Net, both branches, all losses, AdamW.

    The people are demo heads, made first (up to half a minute), or those of --data. The parts come from as many steps again, with stopwatches
    in them. Example: fiag-dist bench step --num-gaussians 10000 --size 256
    """

    num_gaussians: int = 10_000
    """Of both branches; one in eleven is the mouth's."""
    size: int = 256
    """Side of the demo heads' frames, pixels; with --data, theirs counts."""
    data: str = ""
    """Folder or s3:// prefix of shards to train on; at least two people, so that all losses take part."""
    warm_up: int = 150
    """Steps before the clock starts: by then, Gaussians have shrunk from their first size to about that of trained ones."""
    backend: str = "auto"
    """Of the rasteriser: auto, cpu or gsplat."""
    encoder: str = "auto"
    """Of the tri-planes: auto, cpu, torch or tcnn."""
    ssim: str = "auto"
    """Of the similarity in the losses: auto, cpu or torch."""
    repeat: int = 50

    def measure(self) -> dict[str, Any]:
        at_least(100, num_gaussians=self.num_gaussians)
        at_least(1, warm_up=self.warm_up)
        config = self._config()
        device = device_for(self.backend)
        use_threads(numba.get_num_threads())  # as in training
        with ExitStack() as stack:
            url = self.data or stack.enter_context(
                demo_shards(IDENTITIES, self.size, "or give your own: --data SHARDS")
            )
            data = open_storage(url)
            manifest = read_manifest(data)
            if len(manifest.names) < 2:
                raise ConfigError(
                    f"--data {url}: holds {len(manifest.names)} identity, the rule is at least 2; pack more clips"
                )
            training = build(config, data, manifest, device)
            stack.enter_context(closing(training.feed))
            say(
                f"{self.warm_up} steps to warm up, then {self.repeat}, then {self.repeat} with stopwatches, on {device}"
            )
            return self._timed(training, manifest) | {"data": self.data or "demo", "device": str(device)}

    def _config(self) -> TrainConfig:
        return TrainConfig(
            steps=STEPS,
            frames_per_step=1,
            model=ModelConfig(field=field_of(self.num_gaussians)),
            stages=StageConfig(landmark_steps=0),
            density=DensityConfig(start=2 * STEPS),  # the field neither grows nor shrinks meanwhile
            raster=choose("backend", self.backend, ("auto", "cpu", "gsplat")),
            encoder=choose("encoder", self.encoder, ("auto", "cpu", "torch", "tcnn")),
            ssim=choose("ssim", self.ssim, ("auto", "cpu", "torch")),
        )

    def _timed(self, training: Training, manifest: Manifest) -> dict[str, Any]:
        tags = {}
        for _ in range(self.warm_up):
            tags = training.learn(training.feed.next(training.step))
        first_loss = tags["loss/total"]
        step_ms, losses, terms = [], [], set[str]()
        for _ in range(self.repeat):
            began = now_s()
            tags = training.learn(training.feed.next(training.step))
            step_ms.append(1e3 * (now_s() - began))
            losses.append(tags["loss/total"])
            terms |= {name.removeprefix("loss/") for name in tags if name.startswith("loss/")} - {"total"}
        parts, parts_step_ms = self._parts(training)
        assert training.stage is Stage.MOTION, training.stage
        assert training.engine.refused == 0, f"{training.engine.refused} steps were not finite"
        found = spread(step_ms)
        return {
            "step_ms": found["median"],
            "parts_ms": parts,
            "parts_step_ms": parts_step_ms,
            "frames_per_s": 1e3 / found["median"],
            "statistic": f"medians of {self.repeat} steps each; spread: 1st and 3rd quartile; parts from steps with stopwatches in them, parts_step_ms",
            "minimum": {"step_ms": found["minimum"]},
            "spread": {"step_ms": found["spread"]},
            "stage": training.stage.name.lower(),
            "terms": sorted(terms),
            "loss": {"before": first_loss, "mean": statistics.mean(losses)},
            "num_gaussians": {name: len(field) for name, field in training.head.fields.items()},
            "parameters": sum(p.numel() for p in training.head.parameters()),
            "size": manifest.size,
            "identities": len(manifest.names),
        }

    def _parts(self, training: Training) -> tuple[dict[str, float], float]:
        """Median milliseconds of each part, and of these steps."""
        found, step_ms = [], []
        with watched(training) as watch:
            for _ in range(self.repeat):
                began = now_s()
                with watch.part("data"):
                    lessons = training.feed.next(training.step)
                with watch.part("rest"):
                    training.learn(lessons)
                step_ms.append(1e3 * (now_s() - began))
                found.append(watch.take())
        return {name: float(np.median([parts[name] for parts in found])) for name in found[0]}, statistics.median(
            step_ms
        )


def build(config: TrainConfig, data: Storage, manifest: Manifest, device: torch.device) -> Training:
    """A fresh training of all people in one lane of one process, at a step of its motion stage."""
    names = manifest.names
    ownership = assign(names, {name: manifest.entry(name).split.train for name in names}, config.frames_per_step, 1)
    head = fresh_head(config, data, manifest, sorted(names), config.seed, device)
    pool = PersonalPool({name: head.universal.new_personal().to(device) for name in names})
    engine = LocalEngine(head, optimizer_groups(head), config.optim.grad_clip)
    feed = Feed(config, data, manifest, ownership, 0, device)
    training = Training(config, head, engine, pool, feed)
    training.step = round(config.steps * (config.stages.identity + config.stages.motion) / 2)
    return training
