"""fiag-dist bench adapt: identities an hour, adapted in parallel trials, against one after another with one core each, and with two."""

import csv
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from fiag_dist.adaptation.results import CSV
from fiag_dist.bench.benchmark import Benchmark, at_least, say
from fiag_dist.errors import ConfigError, DistributedError

OTHERS_SAY = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "RAY_ADDRESS")
"""What would change the cores that a command takes."""


@dataclass(frozen=True)
class Way:
    """One way to get through all identities: on how many cores, and how many of them an identity has."""

    cores: int
    cores_each: int


@dataclass(frozen=True, kw_only=True)
class Bench(Benchmark):
    """Runs `fiag-dist adapt` on the same identities three times, whole commands: on all cores in parallel trials, one after another with one core each,
    and one after another with two cores each. Example: fiag-dist bench adapt --from runs/NAME --data shards/local --names anna ben --steps 300
    """

    checkpoint: Annotated[str, tyro.conf.arg(name="from")]
    """Run folder of a pretraining."""
    data: str
    """Folder of packed shards."""
    names: tuple[str, ...] = ()
    """Identities to adapt; none: all of the shards."""
    steps: int = 300
    """With images, of each identity; landmark steps come before them."""
    config: str = "configs/adapt_fast.yaml"
    """Their other settings."""
    cores: int = 0
    """For the parallel way; 0: all."""
    repeat: int = 1
    """How often each way is taken; the fastest counts."""

    def measure(self) -> dict[str, Any]:
        at_least(1, steps=self.steps)
        if self.threads:
            raise ConfigError(
                f"--threads {self.threads}: trials share the cores among themselves; give --cores, or leave it out"
            )
        here = len(os.sched_getaffinity(0))
        if not 0 <= self.cores <= here:
            raise ConfigError(f"--cores {self.cores}: this process may use 1 to {here}; give fewer")
        cores = self.cores or here
        ways = {"parallel": Way(cores, 0), "one_after_another_one_core": Way(1, 1)}
        if here >= 2:
            ways["one_after_another_two_cores"] = Way(2, 2)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        num = 0
        for _ in range(self.repeat):
            for name, way in ways.items():
                took, num = self._run(way)
                seconds[name].append(took)
                say(f"{name}: {num} identities in {took:.0f} s")
        best = {name: min(times) for name, times in seconds.items()}
        found: dict[str, Any] = {
            name: {"seconds": best[name], "identities_per_hour": 3600 * num / best[name], "cores": way.cores}
            for name, way in ways.items()
        }
        ratios = {
            f"parallel_against_{name}": took / best["parallel"] for name, took in best.items() if name != "parallel"
        }
        return found | ratios | {"identities": num, "statistic": "the fastest of --repeat runs of the whole command"}

    def _run(self, way: Way) -> tuple[float, int]:
        """Seconds of the whole command, and how many identities it adapted. Raises DistributedError when it failed."""
        mine = sorted(os.sched_getaffinity(0))[: way.cores]
        environment = {name: value for name, value in os.environ.items() if name not in OTHERS_SAY}
        with tempfile.TemporaryDirectory(prefix="fiag-bench-") as out:
            words = ["adapt", self.data, "--from", self.checkpoint, "--out", out, "--config", self.config]
            words += ["--train.steps", str(self.steps), "--cpus-per-trial", str(way.cores_each)]
            words += ["--names", *self.names] if self.names else []
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "fiag_dist.cli", *words],
                capture_output=True,
                text=True,
                env=environment,
                preexec_fn=lambda: os.sched_setaffinity(0, mine),
            )
            took = time.monotonic() - began
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no word"])[-1]
                raise DistributedError(
                    f"fiag-dist {' '.join(words)}: ended with {done.returncode}: {last}; run it by hand"
                )
            with (Path(out) / CSV).open() as stream:
                return took, sum(row["state"] == "done" for row in csv.DictReader(stream))
