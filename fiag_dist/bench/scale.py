"""fiag-dist bench scale: the model of docs/scaling.md as a table: step time and memory of a rank for few and many GPUs and people."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiag_dist.bench.benchmark import Benchmark, at_least, choose, say
from fiag_dist.config import PretrainConfig
from fiag_dist.configfile import from_yaml
from fiag_dist.errors import ConfigError
from fiag_dist.pretraining.scaling import Machine, Sizes, memory, sizes, step_time, traffic

MIB = 2**20
HEARD = {"id_dim": 128, "audio_dim": 384, "audio_window": 2}
"""Shapes of dlib's embedding and of Whisper's speech features, as packing has them by default."""
MACHINES = {
    # 2 cores (AMD EPYC), 256x256, 10 000 Gaussians: benchmarks/results/2026-11-22_cpu_dist.json.
    "cpu": Machine(
        frame_ms=65.5,
        fixed_ms=12.5,
        decode_ms=1.6,
        latency_us=187,
        gb_per_s=0.37,
        gb_per_s_between=0.37,
        ranks_per_node=2,
        cores_per_node=2,
    ),
    # Assumed, not measured: eight H100 a node, NVLink inside, 200 Gbit/s a GPU between nodes, 512x512.
    "gpu": Machine(
        frame_ms=15, fixed_ms=10, decode_ms=5, latency_us=20, gb_per_s=200, gb_per_s_between=20, ranks_per_node=8
    ),
}


@dataclass(frozen=True, kw_only=True)
class Bench(Benchmark):
    """Nothing is measured: constants are put into the model. --measured takes them from what `fiag-dist bench dist --out FILE.json` wrote.

    Example: fiag-dist bench scale --config configs/pretrain_multinode.yaml --machine gpu
    """

    config: Path = Path("configs/pretrain.yaml")
    """Whose networks are counted."""
    machine: str = "gpu"
    """Constants: `gpu` (assumed) or `cpu` (measured)."""
    measured: Path | None = None
    """A result of `bench dist` instead."""
    gpus: tuple[int, ...] = (1, 8, 64, 256)
    """Ranks, one frame a step each."""
    people: tuple[int, ...] = (10, 100, 1000, 10_000)

    def measure(self) -> dict[str, Any]:
        at_least(1, gpus=min(self.gpus, default=0), people=min(self.people, default=0))
        config = from_yaml(PretrainConfig, self.config)
        machine = self._machine()
        found = sizes(config.train, **HEARD)
        rows = [_row(config, machine, found, world, people) for people in self.people for world in self.gpus]
        say(_markdown(rows))
        return {"sizes": vars(found) | {"shared": found.shared}, "machine_model": vars(machine), "rows": rows}

    def _machine(self) -> Machine:
        if self.measured is None:
            return MACHINES[choose("machine", self.machine, [*MACHINES])]
        try:
            return Machine(**json.loads(self.measured.read_text())["machine_model"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--measured {self.measured}: no machine_model in it ({type(error).__name__}); make it: fiag-dist bench dist --out FILE.json"
            ) from error


def _row(config: PretrainConfig, machine: Machine, found: Sizes, world: int, people: int) -> dict[str, Any]:
    """One frame a rank and step; who would be refused has numbers of memory and time that are None."""
    row: dict[str, Any] = {"people": people, "gpus": world}
    if world > people:
        return row | {"refused": "more ranks than identities"}
    owned = math.ceil(people / world)
    held = memory(found, zero_stage=config.zero_stage, world=world, owned=owned, lanes=1, alone=int(owned == 1 < world))
    step = step_time(machine, found, world=world, frames_per_step=world)
    return row | {
        "step_ms": step.total_ms,
        "compute_ms": step.compute_ms,
        "talk_ms": step.gradients_ms + step.agreement_ms,
        "frames_per_s": 1e3 * world / step.total_ms,
        "efficiency": step.compute_ms / step.total_ms,
        "sent_mib_a_step": traffic(found, world) / MIB,
        "shared_mib": (held.total - held.personal) / MIB,
        "people_a_gpu": owned,
        "personal_mib": held.personal / MIB,
    }


def _markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    heads = (
        "people",
        "GPUs",
        "step ms",
        "frames/s",
        "efficiency",
        "sent MiB",
        "shared MiB",
        "people a GPU",
        "their nets MiB",
    )
    lines = ["| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
    for row in rows:
        cells = [str(row["people"]), str(row["gpus"])]
        if "refused" in row:
            cells += ["refused", *[""] * 6]
        else:
            cells += [f"{row['step_ms']:.1f}", f"{row['frames_per_s']:.0f}", f"{row['efficiency']:.2f}"]
            cells += [f"{row[key]:.1f}" for key in ("sent_mib_a_step", "shared_mib")]
            cells += [str(row["people_a_gpu"]), f"{row['personal_mib']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
