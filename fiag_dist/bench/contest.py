"""Two ways to compute the same thing, in turns: their times, so that noise hits both, and how far their results differ."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiag_dist.bench.benchmark import say

WARM_UP = 2
"""Rounds that are not counted: compilation, caches, memory of the right size."""
OURS_A_ROUND = 3
"""Runs of ours for each run of the reference, which is many times slower."""


@dataclass(frozen=True, eq=False)
class Contender:
    """One way: what it computes, from what, and the gradient that comes back."""

    forward: Callable[[], dict[str, Tensor]]
    leaves: Mapping[str, Tensor]
    """Tensors that want a gradient."""
    incoming: Mapping[str, Tensor]
    """The gradient of each output, by its name."""

    def once(self) -> tuple[dict[str, Tensor], float, float]:
        """Forward and backward: the outputs, and the milliseconds of each. Gradients are left in the leaves."""
        for leaf in self.leaves.values():
            leaf.grad = None
        began = now_s()
        outputs = self.forward()
        middle = now_s()
        torch.autograd.backward([outputs[name] for name in self.incoming], list(self.incoming.values()))
        return outputs, 1e3 * (middle - began), 1e3 * (now_s() - middle)


def now_s() -> float:
    """The time when all work of a CUDA device is done, seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def contest(ours: Contender, reference: Contender, repeat: int) -> dict[str, Any]:
    """Times both in turns. Milliseconds are medians; `ratio` is how many times longer the reference takes, forward and backward together."""
    say(f"{repeat} rounds, and {WARM_UP} to warm up")
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "reference": []}
    for turn in range(-WARM_UP, repeat):
        for name, contender, runs in (("ours", ours, OURS_A_ROUND), ("reference", reference, 1)):
            found_ms = [contender.once()[1:] for _ in range(runs)]
            if turn >= 0:
                times[name] += found_ms
    ours_ms, reference_ms = (_summary(np.array(found).T) for found in times.values())
    report: dict[str, Any] = {name: found["median"] for name, found in ours_ms.items()}
    return report | {
        "reference_ms": reference_ms["total_ms"]["median"],
        "ratio": reference_ms["total_ms"]["median"] / ours_ms["total_ms"]["median"],
        "reference_forward_ms": reference_ms["forward_ms"]["median"],
        "reference_backward_ms": reference_ms["backward_ms"]["median"],
        "statistic": f"median of {OURS_A_ROUND * repeat} runs, of the reference {repeat}, in turns; spread: 1st and 3rd quartile",
        "minimum": {name: ours_ms[name]["minimum"] for name in ours_ms},
        "spread": {name: ours_ms[name]["spread"] for name in ours_ms},
        "reference_minimum_ms": reference_ms["total_ms"]["minimum"],
        "reference_spread_ms": reference_ms["total_ms"]["spread"],
    }


def _summary(forward_backward_2R: np.ndarray) -> dict[str, dict[str, Any]]:
    """Median, minimum and spread of the forward, backward and whole times of R runs."""
    forward_R, backward_R = forward_backward_2R
    named = {"forward_ms": forward_R, "backward_ms": backward_R, "total_ms": forward_R + backward_R}
    return {name: spread(times_R.tolist()) for name, times_R in named.items()}


def spread(times: list[float]) -> dict[str, Any]:
    """Median, minimum, and first and third quartile."""
    quartiles = [float(q) for q in np.quantile(times, (0.25, 0.75))]
    return {"median": float(statistics.median(times)), "minimum": float(min(times)), "spread": quartiles}


def agreement(ours: Contender, reference: Contender, tolerance: float) -> dict[str, dict[str, float]]:
    """Largest and mean absolute difference of each output and gradient, and the relative error in norm, which is at most `tolerance`.

    A Gaussian's edge that falls on the other side of a pixel moves the largest difference much, and the norm hardly.
    """
    say("comparing with the reference")
    got, wanted = _results(ours), _results(reference)
    difference = {}
    for name, value in wanted.items():
        error = (got[name] - value).abs()
        relative = float(error.norm() / value.norm().clamp(min=1e-30))
        assert relative <= tolerance, (
            f"{name} differs from the reference's by {relative:.1e} of its norm, {tolerance:.0e} is allowed"
        )
        difference[name] = {"max": float(error.max()), "mean": float(error.mean()), "relative": relative}
    return difference


def _results(contender: Contender) -> dict[str, Tensor]:
    """Outputs and gradients by name, float64."""
    outputs, _, _ = contender.once()
    gradients = {f"gradient of {name}": leaf.grad for name, leaf in contender.leaves.items()}
    found = {}
    for name, value in (outputs | gradients).items():
        assert value is not None, f"no {name}"
        found[name] = value.detach().double()
    return found
