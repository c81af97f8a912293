"""fiag-dist bench dist: what a step of pretraining costs with several ranks, against one rank alone on one core with the same work a rank."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fiag_dist.bench.benchmark import Benchmark, at_least, say
from fiag_dist.bench.contenders import APART, TURN
from fiag_dist.bench.demo import demo_shards
from fiag_dist.bench.scene import field_of
from fiag_dist.config import DensityConfig, LossConfig, ModelConfig, PretrainConfig, StageConfig, TrainConfig
from fiag_dist.configfile import to_yaml
from fiag_dist.errors import ConfigError, DistributedError
from fiag_dist.pretraining.scaling import Machine, sizes, step_time
from fiag_dist.shards.manifest import read_manifest

World = tuple[int, int]
"""Ranks, and frames a step of all of them."""
OUT, ERRORS = "out.json", "errors.log"
"""Of a launch, in a folder of its own."""
MODELLED = "zero_1"
"""The engine whose constants and steps the model of docs/scaling.md is held against."""


@dataclass(frozen=True, kw_only=True)
class Bench(Benchmark):
    """Pretrains demo heads through torchrun, one frame a rank and step: one rank on one core (or GPU), then several; torch's own data parallelism and
    DeepSpeed's ZeRO stages take turns in the same processes, and so do all launches, a few steps each, so that a slow minute is slow for all.

    With enough cores the ratio is what the ranks' talk and their shared memory cost; ranks `apart` do the same work at the same time and never talk, so
    over_apart is the talk, and waiting for the slower, alone. Constants of the model in docs/scaling.md come out, and what it
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
        engines = [APART, "ddp", *(f"zero_{stage}" for stage in self.stages)]
        worlds = sorted({(1, 1), (1, 2), *((ranks, ranks) for ranks in self.ranks)})
        with demo_shards(2 * max(self.ranks), self.size, "demo people are all that this benchmark knows") as data:
            launched = self._launch(data, worlds, engines)
            manifest = read_manifest(data)
            hears = (manifest.id_embedding.dim, manifest.audio.dim, manifest.audio.window)
            counted = sizes(self._config(data, "", 1).train, *hears)
        alone, twice = launched[1, 1], launched[1, 2]
        together = {ranks: launched[ranks, ranks] for ranks in self.ranks}
        for measured in together.values():
            for name, times in measured["engines"].items():
                times["ratio"] = times["step_ms"] / alone["engines"][name]["step_ms"]
                times |= {f"over_{of}": times["step_ms"] / measured["engines"][of]["step_ms"] for of in (APART, "ddp")}
        found: dict[str, Any] = {"one_rank_two_frames": twice["engines"], "one_rank": alone}
        found["ranks"] = {str(ranks): measured for ranks, measured in together.items()}
        if MODELLED in engines:
            machine = _constants(alone, twice, together)
            found["machine_model"] = asdict(machine)
            for ranks, measured in together.items():
                modelled = step_time(machine, counted, world=ranks, frames_per_step=ranks).total_ms
                taken = measured["engines"][MODELLED]["step_ms"]
                measured["model"] = {"step_ms": modelled, "of_measured": modelled / taken}
        return found | {
            "statistic": f"medians over {self.repeat} turns of {TURN} steps, which all launches take in turn"
        }

    def _launch(self, data: str, worlds: Sequence[World], engines: Sequence[str]) -> dict[World, dict[str, Any]]:
        """What `bench/contenders.py` found in each world. All are there at once and take turns."""
        steps = TURN * self.repeat
        said = ", ".join(f"{ranks} x {frames}" for ranks, frames in worlds)
        say(f"ranks x frames a step: {said}; {', '.join(engines)}; {self.warm_up + steps} steps each")
        with tempfile.TemporaryDirectory(prefix="fiag-bench-") as folder, ExitStack() as stack:
            turns, launches = Path(folder) / "turns", dict[Path, subprocess.Popen[bytes]]()
            turns.write_text("0")
            folders = {(ranks, frames): Path(folder) / f"{ranks}x{frames}" for ranks, frames in worlds}
            for player, ((ranks, frames), own) in enumerate(folders.items()):
                own.mkdir()
                (own / "bench.yaml").write_text(to_yaml(self._config(data, str(own), frames), "fiag-dist bench dist"))
                numbers = map(str, (self.warm_up, steps, player, len(worlds)))
                launches[own] = _started(own, ranks, [*numbers, str(turns), *engines])
                stack.callback(_end, launches[own])
            _wait(launches)
            return {world: json.loads((own / OUT).read_text()) for world, own in folders.items()}

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


def _started(own: Path, ranks: int, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """torchrun with so many ranks, which are `bench/contenders.py`; one rank has one core."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    work = ["-m", "fiag_dist.bench.contenders", str(own / "bench.yaml"), str(own / OUT), *words]
    unasked = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in unasked}
    cores = sorted(os.sched_getaffinity(0))
    mine = cores if ranks > 1 or torch.cuda.is_available() else cores[:1]
    with (own / ERRORS).open("wb") as errors:
        return subprocess.Popen(
            [*launcher, *work],
            stdout=errors,
            stderr=errors,
            env=env,
            preexec_fn=lambda: os.sched_setaffinity(0, mine),
        )


def _wait(launches: Mapping[Path, subprocess.Popen[bytes]]) -> None:
    """Until all have ended. Raises DistributedError for the first that fails, since the others would wait for its turn."""
    while any(launch.poll() is None for launch in launches.values()):
        for own, launch in launches.items():
            if launch.poll():
                raise DistributedError(
                    f"ranks x frames {own.name} ended with {launch.returncode}: {_reason((own / ERRORS).read_text())}"
                )
        time.sleep(0.1)


def _reason(said: str) -> str:
    """The first line of what a launch said that names an error, else its last: torchrun ends with a table of its own."""
    lines = said.strip().splitlines() or [""]
    return next((line for line in lines if "Error" in line or line.startswith(("fiag-dist:", "terminate"))), lines[-1])


def _end(launch: subprocess.Popen[bytes]) -> None:
    if launch.poll() is None:
        launch.terminate()
        launch.wait()


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
