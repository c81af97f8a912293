"""Growth and pruning of a field that many identities share (model.md 5)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fiag_dist.config import DensityConfig
from fiag_dist.model.field import PARAMETERS, GaussianField
from fiag_dist.types import BOUND_M, Gaussians, Rendering, axes

FAR_M = 0.02
"""A Gaussian displaced further than this has its child where it is seen, not where it rests."""
CHILD_SHRINK = math.log(1.5)
MIN_LIVE = 64


@dataclass(frozen=True, eq=False)
class Regrowth:
    """The rows of a field after an update: same for all its parameters."""

    source: Tensor
    """[live] row that each new row copies."""
    fresh: Tensor
    """[live] rows that start without moments: children and their parents."""
    values: dict[str, Tensor]
    """New rows of each parameter [live, ...]."""
    pruned: int
    grown: int


UNIT = 2.0**40
"""Sums are kept in fixed point: integer addition has no order, so any number of ranks adds up to the same bit."""


class Statistics:
    """What was seen of one branch's Gaussians since the last update, over whichever identities were rendered."""

    def __init__(self, capacity: int, device: torch.device | str = "cpu"):
        self.sums = torch.zeros(capacity, 12, dtype=torch.int64, device=device)
        """Screen-space gradient, displacement x, y, z (all x UNIT), views, and log scales and quaternion (x UNIT), which IE-Net makes others than the
        canonical ones."""
        self.opacity = torch.zeros(capacity, device=device)
        """Maximum over who was rendered since Gaussians were last pruned, which waits until everybody was: what one person needs survives."""

    @torch.no_grad()
    def observe(self, rendering: Rendering, canonical: Gaussians, person: Gaussians, scale: float) -> None:
        """Adds one rendered frame after its backward pass. `scale` undoes the frame's share in the loss."""
        n = len(canonical)
        self.opacity[:n] = torch.maximum(self.opacity[:n], torch.sigmoid(person.opacities))
        gradient = rendering.means2d.grad
        if gradient is None:
            return
        half_image = rendering.image.shape[-1] / 2
        seen = rendering.radii[:, :1] > 0
        values = torch.cat(
            [gradient.norm(dim=1, keepdim=True) * (scale * half_image), person.means - canonical.means], 1
        )
        self.sums[:n, :4] += (values.double() * seen * UNIT).round().long()
        self.sums[:n, 4] += seen[:, 0].long()
        shape = torch.cat([person.log_scales, person.quats], 1)
        self.sums[:n, 5:] += (shape.double() * seen * UNIT).round().long()

    def means(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean gradient [n], half images, mean displacement [n, 3], metres, and mean axes [n, 3, 3], as `types.axes`, of the first n rows."""
        sums = self.sums[:n].cpu()
        mean = (sums.double() / UNIT / sums[:, 4:5].clamp(min=1)).float()
        return mean[:, 0], mean[:, 1:4], axes(mean[:, 5:8], mean[:, 8:])

    def clear(self, kept: Tensor | None = None) -> None:
        """Begins anew, where rows are now those that `kept` [live] names; without it opacities begin anew as well."""
        self.sums.zero_()
        opacity = self.opacity[:0] if kept is None else self.opacity[kept.to(self.opacity.device)]
        self.opacity.zero_()
        self.opacity[: len(opacity)] = opacity


def everybody_had_a_turn(since: int, until: int, lanes: Iterable[int]) -> bool:
    """Whether steps since .. until - 1 hold a whole round of each of the lanes of so many people: each has one turn in it, in any order."""
    return all(math.ceil(since / people) * people + people <= until for people in lanes)


@torch.no_grad()
def regrow(
    field: GaussianField,
    seen: Statistics,
    config: DensityConfig,
    grad_threshold: float,
    prune_below: float,
    generator: torch.Generator,
) -> Regrowth:
    """Which rows go, which have children, and what the field looks like then. The same inputs give the same answer on every rank.

    Removed: opacity below `prune_below` (0: whatever it is) for all who were seen, or outside the cube, where no identity could move or fade it.
    """
    n = len(field)
    old = {name: getattr(field, name)[:n].detach().cpu().clone() for name in PARAMETERS}
    opacity = seen.opacity[:n].cpu()
    keep = (opacity >= prune_below) | (opacity == 0)  # 0: nobody was rendered
    keep &= old["means"].abs().amax(1) <= BOUND_M
    if int(keep.sum()) < MIN_LIVE:
        keep = torch.ones(n, dtype=torch.bool)
    gradient, displacement, seen_axes = seen.means(n)
    room = min(int(config.grow * n), field.capacity - int(keep.sum()))
    wanting = int((keep & (gradient > grad_threshold)).sum())
    parents = torch.topk(torch.where(keep, gradient, -1.0), min(room, wanting)).indices.sort().values

    old["log_scales"][parents] -= CHILD_SHRINK
    children = {name: value[parents].clone() for name, value in old.items()}
    shift = displacement[parents]
    far = shift.norm(dim=1, keepdim=True) > FAR_M
    draws = torch.randn(len(parents), 3, 1, generator=generator) / math.exp(CHILD_SHRINK)
    children["means"] += torch.where(far, shift, (seen_axes[parents] @ draws)[:, :, 0])

    kept = keep.nonzero()[:, 0]
    is_parent = torch.zeros(n, dtype=torch.bool)
    is_parent[parents] = True
    return Regrowth(
        source=torch.cat([kept, parents]),
        fresh=torch.cat([is_parent[kept], torch.ones(len(parents), dtype=torch.bool)]),
        values={name: torch.cat([old[name][kept], children[name]]) for name in PARAMETERS},
        pruned=n - len(kept),
        grown=len(parents),
    )
