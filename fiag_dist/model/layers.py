"""The one kind of network that the fields are made of, and the kinds of its parameters."""

from itertools import pairwise
from typing import Literal, cast

from torch import Tensor, nn


def mlp(*dims: int) -> nn.Sequential:
    """Bias-free linear layers of the given widths with ReLU between them: zero input gives zero output."""
    layers: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(pairwise(dims)):
        if i:
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Linear(width_in, width_out, bias=False))
    return nn.Sequential(*layers)


def after_first(net: nn.Sequential, outputs_NH: Tensor) -> Tensor:
    """The rest of a network, from the outputs of its first layer on.

    Where some inputs are the same for all points, or products of others with what is, that layer needs fewer multiplications than its size says.
    """
    for layer in list(net)[1:]:
        outputs_NH = layer(outputs_NH)
    return outputs_NH


def first_weight(net: nn.Sequential) -> Tensor:
    """[outputs, inputs] of the first layer."""
    return cast(nn.Linear, net[0]).weight


def kind_of(name: str) -> Literal["grids", "audio", "nets"]:
    """What a motion or identity network's parameter belongs to, by its name: its learning rate depends on this."""
    return "grids" if name.startswith("grid.") else "audio" if name.startswith("audio.") else "nets"
