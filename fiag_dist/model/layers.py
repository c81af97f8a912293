"""The one kind of network that the fields are made of."""

from itertools import pairwise

from torch import nn


def mlp(*dims: int) -> nn.Sequential:
    """Bias-free linear layers of the given widths with ReLU between them: zero input gives zero output."""
    layers: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(pairwise(dims)):
        if i:
            layers.append(nn.ReLU())
        layers.append(nn.Linear(width_in, width_out, bias=False))
    return nn.Sequential(*layers)
