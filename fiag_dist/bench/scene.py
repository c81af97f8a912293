"""A head made of random Gaussians, as large, as dense and as opaque as those of trained heads."""

import torch
from torch import Tensor

from fiag_dist.config import FieldConfig
from fiag_dist.model.field import GaussianField
from fiag_dist.types import Camera

SEMI_AXES_M = torch.tensor([0.105, 0.135, 0.080])
SCALE_M = 2.0e-3
"""Median scale of 9000 trained Gaussians; it falls with the square root of their number."""
SHRUNK = 0.35
"""How much smaller a trained Gaussian is than a fresh one, in the median: logarithm."""
FOCAL_RATIO, DISTANCE_M = 4.7, 1.6


def field_of(num: int) -> FieldConfig:
    """A field of `num` Gaussians in all, one in eleven of them the mouth's, without room to grow."""
    mouth = num // 11
    face = num - mouth
    return FieldConfig(num_face=face, num_mouth=mouth, capacity_face=face, capacity_mouth=mouth)


def head_scene(num: int, channels: int, size: int, seed: int = 0) -> tuple[list[Tensor], Camera]:
    """[means, quats, scales, opacities, colors] of `num` Gaussians that cover nearly half of a square image, and its camera.

    Most lie near the skin, some inside. Scales spread by a factor of e from one Gaussian to the next and along each one's axes, and
    opacities over all of 0..1, as heads trained on real clips have them.
    """
    draw = torch.Generator().manual_seed(seed)
    direction_N3 = torch.nn.functional.normalize(torch.randn(num, 3, generator=draw), dim=1)
    depth_N1 = 1 - 0.25 * torch.randn(num, 1, generator=draw).abs()
    means_N3 = direction_N3 * SEMI_AXES_M * depth_N1
    scales_N3 = SCALE_M * (9000 / num) ** 0.5 * torch.exp(_spread(num, draw))
    quats_N4 = torch.randn(num, 4, generator=draw)
    opacities_N = torch.sigmoid(2.2 * torch.randn(num, generator=draw) - 0.5)
    colors_ND = torch.rand(num, channels, generator=draw)
    viewmat = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))  # the head looks at the camera
    viewmat[2, 3] = DISTANCE_M
    focal = FOCAL_RATIO * size
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return [means_N3, quats_N4, scales_N3, opacities_N, colors_ND], Camera(viewmat, K, size, size)


def _spread(num: int, draw: torch.Generator) -> Tensor:
    """Logarithms of scales about their middle, [num, 3]: from Gaussian to Gaussian and along each one's axes; the largest are rare."""
    return (torch.randn(num, 1, generator=draw) + torch.randn(num, 3, generator=draw)).clamp(-3, 1.4)


@torch.no_grad()
def worn(field: GaussianField, seed: int = 0) -> None:
    """Gives a fresh field, whose Gaussians are round and alike, the spread of scales and opacities that training leaves behind."""
    draw, num = torch.Generator().manual_seed(seed), len(field)
    middle = field.log_scales[:num].median() - SHRUNK
    field.log_scales[:num] = middle + _spread(num, draw).to(middle)
    field.quats[:num] = torch.randn(num, 4, generator=draw).to(field.quats)
    field.opacities[:num] = (2.2 * torch.randn(num, generator=draw) - 0.5).to(field.opacities)
