"""fiag-dist bench encoder: features of points on three planes, and the gradients of tables and points."""

from dataclasses import dataclass
from typing import Any

import torch

from fiag_dist.bench.benchmark import Benchmark, at_least, choose, device_for, say
from fiag_dist.bench.contest import Contender, agreement, contest
from fiag_dist.bench.scene import head_scene
from fiag_dist.config import GridConfig
from fiag_dist.model.grid import TriPlane


@dataclass(frozen=True, kw_only=True)
class Bench(Benchmark):
    """Encodes the centres of a head's Gaussians and goes back to the tables and the points, in turns with the torch backend.

    Example: fiag-dist bench encoder --num-gaussians 10000 --levels 12 --features 2
    """

    num_gaussians: int = 10_000
    """Points, spread as a head's Gaussians are."""
    levels: int = 12
    """From the coarsest, 16 cells a side, to the finest."""
    features: int = 1
    """Numbers of one point on one level of one plane."""
    finest: float = 128.0
    """Cells of the finest level."""
    log2_table: int = 17
    """A level with more entries than 2^this is hashed."""
    points_gradient: bool = True
    """Whether points want a gradient, as those that a motion network moved do, or the tables alone."""
    backend: str = "auto"
    """auto, cpu, torch, or tcnn (tiny-cuda-nn, on a CUDA device)."""

    def measure(self) -> dict[str, Any]:
        at_least(1, num_gaussians=self.num_gaussians)
        backend = choose("backend", self.backend, ("auto", "cpu", "torch", "tcnn"))
        device = device_for(backend)
        grid = GridConfig(
            levels=self.levels, features=self.features, finest=self.finest, log2_table=self.log2_table, init=0.1
        )
        torch.manual_seed(0)
        fast, slow = TriPlane(grid, backend).to(device), TriPlane(grid, "torch").to(device)
        slow.load_state_dict(fast.state_dict())
        points = head_scene(self.num_gaussians, 3, 256)[0][0].to(device).requires_grad_(self.points_gradient)
        incoming = {
            "features": torch.randn(len(points), grid.dim, generator=torch.Generator().manual_seed(1)).to(device)
        }

        def contender(encoder: TriPlane) -> Contender:
            leaves = {"table": encoder.table} | ({"points": points} if self.points_gradient else {})
            return Contender(lambda: {"features": encoder(points)}, leaves, incoming)

        say(f"{self.num_gaussians} points, {grid.dim} features each, on {device}")
        difference = agreement(contender(fast), contender(slow), tolerance=1e-4)
        report = contest(contender(fast), contender(slow), self.repeat) | {"difference": difference}
        return report | {"reference": "backend torch", "rows": fast.layout.rows, "device": str(device)}
