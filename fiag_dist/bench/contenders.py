"""What `fiag-dist bench dist` starts on every rank: the same training with each engine, taking turns, so that a busy machine is busy for all."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fiag_dist.bench.turns import Turns
from fiag_dist.config import PretrainConfig
from fiag_dist.configfile import from_yaml
from fiag_dist.dist import process
from fiag_dist.dist.engine import Engine, Group, LocalEngine, ZeroEngine
from fiag_dist.dist.process import Process
from fiag_dist.ending import guarded
from fiag_dist.monitoring.monitor import peak_mib
from fiag_dist.pretrain import build
from fiag_dist.storage import open_storage
from fiag_dist.training.step import Training

APART = "apart"
"""The engine of ranks that never talk: what the machine alone costs them."""
TURN = 5
"""Steps in a row before it is another one's turn."""
COLLECTIVES = 20
"""Of each kind whose median is taken."""


class DdpEngine(LocalEngine):
    """torch's own data parallelism, with the optimiser whole on every rank: what DeepSpeed is compared with."""

    def __init__(self, module: nn.Module, groups: Sequence[Group], grad_clip: float = 0.0) -> None:
        super().__init__(module, groups, grad_clip)
        self._parallel = DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._parallel(*args, **kwargs)


@dataclass(eq=False)
class Contestant:
    """One engine's training and its times."""

    training: Training
    step_ms: list[float]
    talk_ms: list[float]

    def turn(self, steps: int) -> None:
        """Trains, and times each step with its data."""
        for _ in range(steps):
            began = time.perf_counter()
            self.training.learn(self.training.feed.next(self.training.step))
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.step_ms.append(1e3 * (time.perf_counter() - began))
            self.talk_ms.append(1e3 * self.training.engine.talk.take_s())

    def summary(self) -> dict[str, float]:
        """Medians, and the loss of one more step."""
        loss = self.training.learn(self.training.feed.next(self.training.step))["loss/total"]
        times = {"step_ms": median(self.step_ms), "fastest_ms": min(self.step_ms), "talk_ms": median(self.talk_ms)}
        return times | {"loss": loss}


def engine_of(name: str, grad_clip: float) -> Callable[[nn.Module, Sequence[Group]], Engine]:
    """Makes the engine of that name around a module; ranks that are `apart` do the same work and never talk."""
    if name == APART:
        return partial(LocalEngine, grad_clip=grad_clip)
    if name == "ddp":
        return partial(DdpEngine, grad_clip=grad_clip)
    return partial(ZeroEngine, zero_stage=int(name.removeprefix("zero_")), grad_clip=grad_clip)


def all_reduce_ms(elements: int, device: torch.device) -> float:
    """Median time of adding up so many floats over the ranks, which all call it."""
    values, times_ms = torch.zeros(elements, device=device), []
    for _ in range(COLLECTIVES):
        process.barrier()
        began = time.perf_counter()
        process.all_reduce(values)[0].item()
        times_ms.append(1e3 * (time.perf_counter() - began))
    return median(times_ms)


def decode_ms(training: Training) -> float:
    """Median time of reading and decoding a frame."""
    reader, times_ms = training.feed.readers[training.feed.names[0]], []
    for position in reader.train[:COLLECTIVES]:
        began = time.perf_counter()
        reader.frame(int(position))
        times_ms.append(1e3 * (time.perf_counter() - began))
    return median(times_ms)


def about(training: Training, here: Process) -> dict[str, float]:
    """What the model of docs/scaling.md wants to know; all ranks call it."""
    parameters = sum(p.numel() for p in training.head.parameters())
    return {
        "parameters": parameters,
        "personal_mib": max(process.all_gather_object(training.pool.bytes / 2**20)),
        "peak_mib": max(process.all_gather_object(peak_mib())),
        "decode_ms": decode_ms(training),
        "small_all_reduce_ms": all_reduce_ms(1, here.device),
        "shared_all_reduce_ms": all_reduce_ms(parameters, here.device),
    }


def main(argv: list[str]) -> int:
    """CONFIG.yaml OUT.json WARM_UP STEPS PLAYER PLAYERS TURNS ENGINE...: rank 0 writes medians by engine."""
    path, out, *numbers, shared = argv[:7]
    warm_up, steps, player, players = map(int, numbers)
    turns, names = Turns(Path(shared), player, players), argv[7:]
    config, here = from_yaml(PretrainConfig, path), process.start()
    data = open_storage(config.data)
    with turns.mine(here):
        contestants = {
            name: Contestant(build(config, here, data, None, engine_of(name, config.train.optim.grad_clip)), [], [])
            for name in names
        }
        for contestant in contestants.values():
            contestant.turn(warm_up)
            contestant.step_ms.clear()
            contestant.talk_ms.clear()
    for _ in range(steps // TURN):
        with turns.mine(here):
            for contestant in contestants.values():
                contestant.turn(TURN)
    with turns.mine(here):
        found: dict[str, Any] = {"engines": {name: c.summary() for name, c in contestants.items()}}
        found["about"] = about(next(iter(contestants.values())).training, here)
    if here.is_first:
        Path(out).write_text(json.dumps(found))
    for contestant in contestants.values():
        contestant.training.feed.close()
    process.finish()
    return 0


if __name__ == "__main__":
    process.leave(guarded(main))
