"""A small model with what matters of the real one: a field of fixed capacity, nets, groups, and nets that live outside."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fiag_dist.dist.engine import Engine, Group, LocalEngine, StepReport, ZeroEngine
from fiag_dist.dist.process import Process
from fiag_dist.dist.state import State

LANES = 4
CAPACITY = 37
"""Odd on purpose: partitions then cut through rows and tensors."""


@dataclass(frozen=True, eq=False)
class Answer:
    """Outputs of the real model are dataclasses too."""

    value: Tensor


class Toy(nn.Module):
    """field rows -> MLP; `extra` is used in some lanes only; `spare` never."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.field = nn.Parameter(torch.randn(CAPACITY, 5, generator=generator))
        self.first = nn.Parameter(torch.randn(5, 8, generator=generator) / 2)
        self.last = nn.Parameter(torch.randn(8, 3, generator=generator) / 2)
        self.extra = nn.Parameter(torch.randn(3, generator=generator))
        self.spare = nn.Parameter(torch.ones(7))
        self.empty = nn.Parameter(torch.zeros(CAPACITY, 0))

    def forward(self, rows_B: Tensor, with_extra: bool = False, outside: nn.Module | None = None) -> Answer:
        hidden_BH = torch.tanh(self.field[rows_B] @ self.first)
        if outside is not None:
            hidden_BH = hidden_BH + outside(hidden_BH)
        out_B3 = hidden_BH @ self.last
        return Answer(out_B3 + self.extra if with_extra else out_B3)


def groups(toy: Toy) -> list[Group]:
    common = {"betas": (0.9, 0.99), "eps": 1e-15}
    return [
        Group(name="field", params=[toy.field, toy.empty], lr=1e-2, weight_decay=0.0, **common),
        Group(name="nets", params=[toy.first, toy.last, toy.extra], lr=3e-3, weight_decay=1e-2, **common),
        Group(name="spare", params=[toy.spare], lr=1e-2, weight_decay=1e-1, **common),
        Group(name="nothing", params=[], lr=1e-2, weight_decay=0.0, **common),
    ]


def make(stage: int | None, grad_clip: float = 0.0) -> Engine:
    """stage None: the one-process reference."""
    toy = Toy()
    return LocalEngine(toy, groups(toy), grad_clip) if stage is None else ZeroEngine(toy, groups(toy), stage, grad_clip)


def lanes_of(me: Process | None) -> range:
    return range(LANES) if me is None else range(me.rank * LANES // me.world, (me.rank + 1) * LANES // me.world)


def lane_loss(engine: Engine, step: int, lane: int, live: int = CAPACITY, outside: nn.Module | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + lane)
    rows_B = torch.randint(0, live, (9,), generator=generator)
    goal_B3 = torch.sin(rows_B[:, None] * torch.tensor([0.3, 0.5, 0.7]))
    # extra is used in odd lanes alone, and the order in which lanes enter the graph differs
    return (engine.forward(rows_B, with_extra=lane == 3, outside=outside).value - goal_B3).square().mean()


def loss_at(
    engine: Engine, me: Process | None, step: int, live: int = CAPACITY, outside: nn.Module | None = None
) -> Tensor:
    """Loss of this rank's lanes: its mean over ranks is the mean over lanes."""
    return torch.stack([lane_loss(engine, step, lane, live, outside) for lane in lanes_of(me)]).mean()


def train(engine: Engine, me: Process | None, begin: int, end: int) -> list[StepReport]:
    return [engine.backward_and_step(loss_at(engine, me, step)) for step in range(begin, end)]


def same(a: State, b: State) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[n][k], b[n][k]) for n in a for k in a[n])


def largest_difference(a: State, b: State) -> float:
    assert a.keys() == b.keys()
    return max((a[n][k] - b[n][k]).abs().max().item() for n in a for k in a[n])
