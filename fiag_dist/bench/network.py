"""fiag-dist bench network: a small network asked at many points, and the gradients of its weights and inputs."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F

from fiag_dist.bench.benchmark import Benchmark, at_least, say
from fiag_dist.bench.contest import Contender, agreement, contest
from fiag_dist.errors import ConfigError
from fiag_dist.kernels.mlp import mlp


@dataclass(frozen=True, kw_only=True)
class Bench(Benchmark):
    """Asks a network without biases, with ReLU between its layers, and goes back to weights and inputs, in turns with torch's own layers. On the CPU.

    Example: fiag-dist bench network --num-gaussians 10000 --widths 36 64 64 23
    """

    num_gaussians: int = 10_000
    """Points that it is asked at."""
    widths: tuple[int, ...] = (36, 64, 64, 23)
    """Inputs, hidden layers and outputs: by default IE-Net's."""

    def measure(self) -> dict[str, Any]:
        at_least(1, num_gaussians=self.num_gaussians)
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ConfigError(f"--widths {self.widths}: the rule is two or more, each at least 1; e.g. 36 64 64 23")
        draw = torch.Generator().manual_seed(0)
        inputs = torch.randn(self.widths[0], self.num_gaussians, generator=draw).T.requires_grad_()
        weights = [torch.randn(b, a, generator=draw).mul(a**-0.5).requires_grad_() for a, b in pairwise(self.widths)]
        incoming = {"outputs": torch.randn(self.widths[-1], self.num_gaussians, generator=draw).T}
        leaves = {"inputs": inputs} | {f"weights {k}": weight for k, weight in enumerate(weights)}

        def by_torch() -> torch.Tensor:
            outputs = F.linear(inputs, weights[0])
            for weight in weights[1:]:
                outputs = F.linear(F.relu(outputs), weight)
            return outputs

        ours = Contender(lambda: {"outputs": mlp(inputs, *weights)}, leaves, incoming)
        reference = Contender(lambda: {"outputs": by_torch()}, leaves, incoming)
        say(f"{self.num_gaussians} points through {' > '.join(map(str, self.widths))}")
        difference = agreement(ours, reference, tolerance=1e-4)
        report = contest(ours, reference, self.repeat) | {"difference": difference}
        return report | {"reference": "torch's own layers", "device": "cpu"}
