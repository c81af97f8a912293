"""fiag-dist bench dist: what a step of pretraining costs with several ranks, against one rank alone on one core with the same work a rank."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fiag_dist.bench.benchmark import Benchmark, at_least, say
from fiag_dist.bench.contenders import TURN
from fiag_dist.bench.demo import demo_shards
from fiag_dist.bench.scene import field_of
from fiag_dist.config import DensityConfig, LossConfig, ModelConfig, PretrainConfig, StageConfig, TrainConfig
from fiag_dist.configfile import to_yaml
from fiag_dist.errors import ConfigError, DistributedError
from fiag_dist.scaling import Machine, sizes, step_time
from fiag_dist.shards.manifest import read_manifest

MODELLED = "zero_1"
"""The engine whose constants and steps the model of docs/scaling.md is held against."""


@dataclass(frozen=True, kw_only=True)
class Bench(Benchmark):
    """Pretrains demo heads through torchrun, one frame a rank and step: one rank on one core (or GPU), then several; torch's own data parallelism and
    DeepSpeed's ZeRO stages take turns in the same processes.

    With enough cores the ratio is what the ranks' talk and their shared memory cost. Constants of the model in docs/scaling.md come out, and what it
    predicts for these ranks stands beside what they took. Example: fiag-dist bench dist --ranks 2 (or --ranks 1 2 4 --stages 1)
    """

    ranks: tuple[int, ...] = (2,)
    num_gaussians: int = 10_000
    """Of both branches; one in eleven is the mouth's."""
    size: int = 256
    """Side of the demo heads' frames, pixels."""
    stages: tuple[int, ...] = (0, 1)
    """Of ZeRO; at stage 0 DeepSpeed does what torch's data parallelism does."""
    repeat: int = 10
    """Turns of 5 steps of each engine, over all of which medians are taken."""
    warm_up: int = 50
    """Steps of each engine before them."""

    def measure(self) -> dict[str, Any]:
        at_least(1, ranks=min(self.ranks, default=0), warm_up=self.warm_up)
        if self.threads:
            raise ConfigError(f"--threads {self.threads}: ranks share the cores among themselves; leave it out")
        at_least(100, num_gaussians=self.num_gaussians)
        if not set(self.stages) <= {0, 1, 2} or not self.stages:
            raise ConfigError(f"--stages {self.stages}: the choices are 0, 1 and 2; give one or more of them")
        engines = ["ddp", *(f"zero_{stage}" for stage in self.stages)]
        with demo_shards(2 * max(self.ranks), self.size, "demo people are all that this benchmark knows") as data:
            alone, twice = self._run(data, 1, 1, engines), self._run(data, 1, 2, engines)
            together = {ranks: self._run(data, ranks, ranks, engines) for ranks in self.ranks}
            manifest = read_manifest(data)
            hears = (manifest.id_embedding.dim, manifest.audio.dim, manifest.audio.window)
            counted = sizes(self._config(data, "", 1).train, *hears)
        found: dict[str, Any] = {"one_rank": alone, "one_rank_two_frames": twice["engines"], "ranks": {}}
        for ranks, measured in together.items():
            for name, times in measured["engines"].items():
                times["ratio"] = times["step_ms"] / alone["engines"][name]["step_ms"]
                times["over_ddp"] = times["step_ms"] / measured["engines"]["ddp"]["step_ms"]
            found["ranks"][str(ranks)] = measured
        if MODELLED in engines:
            machine = _constants(alone, twice, together)
            found["machine_model"] = asdict(machine)
            for ranks, measured in together.items():
                modelled = step_time(machine, counted, world=ranks, frames_per_step=ranks).total_ms
                taken = measured["engines"][MODELLED]["step_ms"]
                measured["model"] = {"step_ms": modelled, "of_measured": modelled / taken}
        return found | {"statistic": f"medians over {self.repeat} turns of {TURN} steps"}

    def _run(self, data: str, ranks: int, frames: int, engines: list[str]) -> dict[str, Any]:
        """What `bench/contenders.py` found with so many ranks and frames a step."""
        steps = TURN * self.repeat
        say(
            f"{ranks} rank{'s' if ranks > 1 else ''}, {frames} frames a step: {', '.join(engines)}, {self.warm_up + steps} steps each"
        )
        with tempfile.TemporaryDirectory(prefix="fiag-bench-") as folder:
            config, out = Path(folder) / "bench.yaml", Path(folder) / "out.json"
            config.write_text(to_yaml(self._config(data, folder, frames), "fiag-dist bench dist"))
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            work = ["-m", "fiag_dist.bench.contenders", str(config), str(self.warm_up), str(steps), str(out), *engines]
            unasked = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
            env = {name: value for name, value in os.environ.items() if name not in unasked}
            cores = sorted(os.sched_getaffinity(0))
            mine = cores if ranks > 1 or torch.cuda.is_available() else cores[:1]
            done = subprocess.run(
                [*launcher, *work],
                capture_output=True,
                text=True,
                env=env,
                preexec_fn=lambda: os.sched_setaffinity(0, mine),
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or [""])[-1]
                raise DistributedError(f"{ranks} ranks ended with {done.returncode}: {last}")
            return json.loads(out.read_text())

    def _config(self, data: str, runs: str, frames: int) -> PretrainConfig:
        """The motion stage alone; the field neither grows nor shrinks."""
        steps = 10 * (self.warm_up + TURN * self.repeat)
        train = TrainConfig(
            steps=steps,
            frames_per_step=frames,
            loss=LossConfig(lpips=0.0),
            stages=StageConfig(warm_up=0.0, identity=0.0, motion=1.0, landmark_steps=0),
            density=DensityConfig(start=2 * steps),
            model=ModelConfig(field=field_of(self.num_gaussians)),
        )
        return PretrainConfig(data=data, runs=runs, name="run", train=train)


def _constants(alone: dict[str, Any], twice: dict[str, Any], together: dict[int, dict[str, Any]]) -> Machine:
    """The time model's constants from one rank with one and with two frames, and from the collectives of the fewest ranks that talk."""
    one_ms, two_ms = (run["engines"][MODELLED]["step_ms"] for run in (alone, twice))
    talkers = [ranks for ranks in together if ranks > 1]
    about = together[min(talkers)]["about"] if talkers else alone["about"]
    ranks = min(talkers, default=1)
    sent_bytes = 2 * (ranks - 1) / ranks * 4 * about["parameters"]
    rate = sent_bytes / 1e6 / max(about["shared_all_reduce_ms"] - about["small_all_reduce_ms"], 1e-3)
    return Machine(
        frame_ms=two_ms - one_ms,
        fixed_ms=2 * one_ms - two_ms,
        decode_ms=alone["about"]["decode_ms"],
        latency_us=1e3 * about["small_all_reduce_ms"],
        gb_per_s=rate,
        gb_per_s_between=rate,
        ranks_per_node=max(together),
        cores_per_node=0 if torch.cuda.is_available() else len(os.sched_getaffinity(0)),
    )
