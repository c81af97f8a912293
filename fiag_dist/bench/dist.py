"""fiag-dist bench dist: what a step of pretraining costs with several ranks, against one rank alone on one core with the same work a rank."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fiag_dist.bench.benchmark import Benchmark, at_least, say
from fiag_dist.bench.demo import demo_shards
from fiag_dist.bench.scene import field_of
from fiag_dist.config import DensityConfig, LossConfig, ModelConfig, PretrainConfig, StageConfig, TrainConfig
from fiag_dist.configfile import to_yaml
from fiag_dist.errors import ConfigError, DistributedError

LOG_EVERY = 10
RUN = "run"


@dataclass(frozen=True, kw_only=True)
class Bench(Benchmark):
    """Pretrains demo heads through torchrun, one frame a rank and step: one rank on one core (or GPU), then all, for each ZeRO stage.

    With enough cores the ratio is what the ranks' talk and their shared memory cost. Example: fiag-dist bench dist --ranks 2
    """

    ranks: int = 2
    num_gaussians: int = 10_000
    """Of both branches; one in eleven is the mouth's."""
    size: int = 256
    """Side of the demo heads' frames, pixels."""
    stages: tuple[int, ...] = (0, 1)
    """Of ZeRO; stage 0 is plain data parallelism."""
    repeat: int = 10
    """Reports of 10 steps each whose median counts."""
    warm_up: int = 100
    """Steps before them."""

    def measure(self) -> dict[str, Any]:
        at_least(1, ranks=self.ranks, warm_up=self.warm_up)
        if self.threads:
            raise ConfigError(f"--threads {self.threads}: ranks share the cores among themselves; leave it out")
        at_least(100, num_gaussians=self.num_gaussians)
        if not set(self.stages) <= {0, 1, 2} or not self.stages:
            raise ConfigError(f"--stages {self.stages}: the choices are 0, 1 and 2; give one or more of them")
        found: dict[str, Any] = {}
        with demo_shards(2 * self.ranks, self.size, "demo people are all that this benchmark knows") as data:
            for stage in self.stages:
                alone, together = self._run(data, 1, stage), self._run(data, self.ranks, stage)
                found[f"zero_{stage}"] = {"one_rank_ms": alone, "step_ms": together, "ratio": together / alone}
        return found | {"statistic": "medians over reports of 10 steps", "ranks": self.ranks}

    def _run(self, data: str, ranks: int, stage: int) -> float:
        """Median milliseconds of a step."""
        say(
            f"ZeRO stage {stage}: {ranks} rank{'s' if ranks > 1 else ''}, {self.warm_up + LOG_EVERY * self.repeat} steps"
        )
        with tempfile.TemporaryDirectory(prefix="fiag-bench-") as runs:
            config = Path(runs) / "bench.yaml"
            config.write_text(to_yaml(self._config(data, runs, ranks, stage), "fiag-dist bench dist"))
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            env = {
                name: value
                for name, value in os.environ.items()
                if name not in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
            }
            cores = sorted(os.sched_getaffinity(0))
            mine = cores if ranks > 1 or torch.cuda.is_available() else cores[:1]
            done = subprocess.run(
                [*launcher, "-m", "fiag_dist.pretrain", str(config)],
                capture_output=True,
                text=True,
                env=env,
                preexec_fn=lambda: os.sched_setaffinity(0, mine),
            )
            if done.returncode:
                raise DistributedError(
                    f"{ranks} ranks at ZeRO stage {stage} ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}"
                )
            lines = [json.loads(line) for line in (Path(runs) / RUN / "metrics.jsonl").read_text().splitlines()]
        return statistics.median(
            line["time/step_ms"] for line in lines if line["step"] > self.warm_up and "time/step_ms" in line
        )

    def _config(self, data: str, runs: str, ranks: int, stage: int) -> PretrainConfig:
        """The motion stage alone, one frame a rank; the field neither grows nor shrinks, and nothing is looked at or saved before the end."""
        steps = self.warm_up + LOG_EVERY * self.repeat
        train = TrainConfig(
            steps=steps,
            frames_per_step=ranks,
            log_every=LOG_EVERY,
            images_every=0,
            checkpoint_every=0,
            loss=LossConfig(lpips=0.0),
            stages=StageConfig(warm_up=0.0, identity=0.0, motion=1.0, landmark_steps=0),
            density=DensityConfig(start=2 * steps),
            model=ModelConfig(field=field_of(self.num_gaussians)),
        )
        zero_stage: Any = stage
        return PretrainConfig(data=data, runs=runs, name=RUN, zero_stage=zero_stage, train=train)
