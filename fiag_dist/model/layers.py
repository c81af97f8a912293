"""The one kind of network that the fields are made of, and the kinds of its parameters."""

from itertools import pairwise
from typing import Literal

from torch import nn


def mlp(*dims: int) -> nn.Sequential:
    """Bias-free linear layers of the given widths with ReLU between them: zero input gives zero output."""
    layers: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(pairwise(dims)):
        if i:
            layers.append(nn.ReLU())
        layers.append(nn.Linear(width_in, width_out, bias=False))
    return nn.Sequential(*layers)


def kind_of(name: str) -> Literal["grids", "audio", "nets"]:
    """What a motion or identity network's parameter belongs to, by its name: its learning rate depends on this."""
    return "grids" if name.startswith("grid.") else "audio" if name.startswith("audio.") else "nets"
