"""What all benchmarks have in common: arguments, threads, the machine, and the one JSON object they print."""

import dataclasses
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import torch
import tyro

from fiag_dist.bench.machine import machine
from fiag_dist.bench.rounding import rounded
from fiag_dist.errors import ConfigError, meant
from fiag_dist.storage import open_storage


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """Arguments of a benchmark as the fields of a dataclass, and how it measures."""

    threads: int = 0
    """Threads of torch and of the kernels; 0: what OMP_NUM_THREADS and NUMBA_NUM_THREADS say, else all cores."""
    repeat: int = 20
    """How often it is measured; medians are reported."""
    out: Path | None = None
    """Also writes the JSON to this file, e.g. benchmarks/results/2026-11-22_cpu_raster.json."""

    @abstractmethod
    def measure(self) -> dict[str, Any]:
        """The numbers, by name. Raises ConfigError for an argument out of range."""

    @classmethod
    def run(cls, name: str, argv: list[str]) -> int:
        """Measures as `argv` says and prints the JSON; whatever else is printed meanwhile goes to stderr. Returns 0."""
        self = tyro.cli(cls, args=argv, prog=f"fiag-dist bench {name}")
        at_least(1, repeat=self.repeat)
        if self.out is not None and (self.out.suffix != ".json" or self.out.is_dir()):
            raise ConfigError(f"--out {self.out}: the result is a JSON file; give a name that ends in .json")
        with redirect_stdout(sys.stderr), _threads(self.threads):
            load_1_min = os.getloadavg()[0]  # without the benchmark's own
            numbers = self.measure()
            about = machine(load_1_min)
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "out"}
        command = " ".join(["fiag-dist bench", name, *argv])
        report = {"benchmark": name} | numbers | {"settings": settings, "machine": about, "command": command}
        text = json.dumps(rounded(report), indent=1)
        print(text)
        if self.out is not None:
            open_storage(self.out.parent).write(self.out.name, (text + "\n").encode())
        return 0


def say(text: str) -> None:
    """A line of progress for people."""
    print(text, file=sys.stderr, flush=True)


def at_least(low: int, **values: int) -> None:
    """Raises ConfigError for a number below `low`, by the name of its flag."""
    for name, value in values.items():
        if value < low:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: the rule is at least {low}; give a larger one")


def choose(flag: str, value: str, known: Sequence[str]) -> Any:
    """`value`, when it is one of `known`. Raises ConfigError otherwise, and names the nearest."""
    if value not in known:
        raise ConfigError(f"--{flag} {value!r}: no such {flag}; {meant(value, known)}")
    return value


def device_for(backend: str) -> torch.device:
    """Where tensors lie: on a CUDA device where there is one, in host memory for backend `cpu` or without one."""
    return torch.device("cuda" if torch.cuda.is_available() and backend != "cpu" else "cpu")


@contextmanager
def _threads(num: int) -> Iterator[None]:
    """So many threads in the body, 0 for as many as there are. Raises ConfigError for more than the kernels were started with."""
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    if not 0 <= num <= most:
        raise ConfigError(
            f"--threads {num}: the kernels of this process have 1 to {most}; for more, set NUMBA_NUM_THREADS before starting"
        )
    before = torch.get_num_threads(), numba.get_num_threads()
    if num:
        torch.set_num_threads(num)
        numba.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])
