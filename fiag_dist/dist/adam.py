"""AdamW over pieces of parameters: each group keeps its own settings, however an engine flattens and shards what is trained.

DeepSpeed sees one group, hence one flat tensor, one reduction and one gathering a step; rates, decay and counters go by piece.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from fiag_dist.dist.state import MOMENTS


class Group(TypedDict):
    """Parameters with their settings of AdamW; rates change by the group's name."""

    name: str
    params: list[nn.Parameter]
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


@dataclass(frozen=True, eq=False)
class Piece:
    """A parameter, or the part of one that this rank updates: views of the numbers themselves."""

    group: str
    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    whole: Tensor
    """The tensor that the piece was cut from, whose `.grad` holds the gradient."""
    start: int | None = None
    """Where in the flat `whole` the piece begins; None: it is all of it."""

    @property
    def grad(self) -> Tensor | None:
        grad = self.whole.grad
        return grad if grad is None or self.start is None else grad.narrow(0, self.start, self.param.numel())


class PiecewiseAdamW(torch.optim.Optimizer):
    """torch's fused AdamW, group by group. A group with rate 0 stands still: parameters, moments and counter."""

    def __init__(self, groups: Sequence[Group]) -> None:
        super().__init__([param for group in groups for param in group["params"]], {"lr": 0.0})
        self.settings = {group["name"]: group for group in groups}
        self.rates = {group["name"]: group["lr"] for group in groups}
        self.steps = dict.fromkeys(self.settings, 0.0)
        """Updates of each group so far."""
        self._pieces: dict[str, list[Piece]] = {}

    def make_state(self) -> None:
        """Moments exist before the first step, of whatever tensors an engine has made of the parameters."""
        for param in (p for group in self.param_groups for p in group["params"]):
            self.state[param] = {key: torch.zeros_like(param) for key in MOMENTS}

    def cut(self, pieces: Iterable[Piece]) -> None:
        """Says what is updated."""
        self._pieces = {name: [] for name in self.settings}
        for piece in pieces:
            self._pieces[piece.group].append(piece)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for name, settings in self.settings.items():
            if not self.rates[name]:
                continue
            self.steps[name] += 1
            pieces = [(p, grad) for p in self._pieces[name] if (grad := p.grad) is not None]
            if not pieces:
                continue
            counters = torch.full(
                (len(pieces),), self.steps[name] - 1, device=pieces[0][0].param.device
            )  # counted on inside
            adamw(
                [p.param for p, _ in pieces],
                [grad for _, grad in pieces],
                [p.exp_avg for p, _ in pieces],
                [p.exp_avg_sq for p, _ in pieces],
                [],
                list(counters.unbind()),
                fused=True,
                amsgrad=False,
                beta1=settings["betas"][0],
                beta2=settings["betas"][1],
                lr=self.rates[name],
                weight_decay=settings["weight_decay"],
                eps=settings["eps"],
                maximize=False,
            )
