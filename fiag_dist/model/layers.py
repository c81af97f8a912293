"""The one kind of network that the fields are made of, and the kinds of its parameters."""

from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fiag_dist.kernels import mlp as kernel


def mlp(*dims: int) -> nn.Sequential:
    """Bias-free linear layers of the given widths with ReLU between them: zero input gives zero output."""
    layers: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(pairwise(dims)):
        if i:
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Linear(width_in, width_out, bias=False))
    return nn.Sequential(*layers)


def ask(net: nn.Sequential, inputs_NK: Tensor, first_HK: Tensor) -> Tensor:
    """The outputs [N, J], float32, of an `mlp` whose first layer has these weights instead of its own.

    Where some inputs are the same for all points, or products of others with what is, that layer needs fewer multiplications than its size says.
    Inside torch.autocast its products are of that type, by torch on any device.
    """
    weights = [first_HK, *(cast(nn.Linear, layer).weight for layer in list(net)[2::2])]
    if inputs_NK.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return kernel.mlp(inputs_NK, *weights)
    outputs_NK = F.linear(inputs_NK, weights[0])
    for weight in weights[1:]:
        outputs_NK = F.linear(F.relu(outputs_NK), weight)
    return outputs_NK.float()


def beside(columns_NK: Tensor, *more_N: Tensor) -> Tensor:
    """Inputs of a network side by side, as they lie in memory: one input after the other, each for all points."""
    return torch.cat([part.T for part in (columns_NK, *more_N)]).T


def first_weight(net: nn.Sequential) -> Tensor:
    """[outputs, inputs] of the first layer."""
    return cast(nn.Linear, net[0]).weight


def kind_of(name: str) -> Literal["grids", "audio", "nets"]:
    """What a motion or identity network's parameter belongs to, by its name: its learning rate depends on this."""
    return "grids" if name.startswith("grid.") else "audio" if name.startswith("audio.") else "nets"
