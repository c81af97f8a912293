"""Scenes that the kernels are measured on: what a head looks like to them, and the extremes."""

import math

import torch
from torch import Tensor

from fiag_dist.types import Camera

NAMES = ("means", "quats", "scales", "opacities", "colors")


def scene(num: int, channels: int = 3, seed: int = 0) -> tuple[list[Tensor], Camera]:
    """A cloud of Gaussians of many sizes and opacities before a camera at an odd image size; a few lie behind it, off the image or are too faint.

    Returns [means, quats, scales, opacities, colors] in float32, and the camera.
    """
    draw = torch.Generator().manual_seed(seed)
    means = torch.randn(num, 3, generator=draw) * torch.tensor([0.1, 0.08, 0.06])
    means[::31, 2] = -2.0  # behind
    means[1::31, 0] += 5.0  # off the image
    quats = torch.randn(num, 4, generator=draw) * 3
    scales = 0.012 * torch.exp(0.8 * torch.randn(num, 3, generator=draw))
    opacities = torch.sigmoid(2 * torch.randn(num, generator=draw))
    opacities[2::31] = 1e-3  # too faint
    opacities[3::31] = 1.0  # clamped at 0.999
    colors = torch.rand(num, channels, generator=draw)
    return [means, quats, scales, opacities, colors], camera(83, 37)


def camera(width: int, height: int) -> Camera:
    """Turned a little, 1 m away; sees the same field whatever its size."""
    angle = 0.3
    viewmat = torch.eye(4)
    viewmat[0, 0] = viewmat[2, 2] = math.cos(angle)
    viewmat[0, 2], viewmat[2, 0] = math.sin(angle), -math.sin(angle)
    viewmat[:3, 3] = torch.tensor([0.01, -0.02, 1.0])
    K = torch.tensor([[2.46 * width, 0, 0.475 * width], [0, 3.11 * height, 0.533 * height], [0, 0, 1]])
    return Camera(viewmat=viewmat, K=K, width=width, height=height)


def mixed() -> tuple[list[Tensor], Camera]:
    return scene(300)


def tiny() -> tuple[list[Tensor], Camera]:
    """Gaussians far below a pixel: the blur decides."""
    values, view = scene(300, seed=1)
    values[2] = 0.01 * values[2]
    return values, view


def dense() -> tuple[list[Tensor], Camera]:
    """Pixels fill up long before the last Gaussian."""
    values, view = scene(1200, seed=2)
    values[2] = 1.5 * values[2]
    values[3] = 0.3 + 0.7 * values[3]
    return values, view


def huge() -> tuple[list[Tensor], Camera]:
    """Gaussians many times the image, some close to the camera, where the frustum clamp acts."""
    values, view = scene(60, seed=3)
    values[0][::3] *= 3
    values[0][::4, 2] -= 0.7
    values[2] = 0.3 + 20 * values[2]
    values[3] = 0.2 * values[3]
    return values, view


def needles() -> tuple[list[Tensor], Camera]:
    """A thousand times longer than wide."""
    values, view = scene(200, seed=4)
    values[2] = torch.tensor([0.1, 1e-4, 1e-4]) * (values[2] / 0.012)
    return values, view


def behind() -> tuple[list[Tensor], Camera]:
    """Most of them behind the camera or before its near plane."""
    values, view = scene(300, seed=5)
    forward = view.viewmat[2, :3]
    values[0][:225] -= 1.5 * forward
    values[0][225:250] -= torch.linspace(0.9, 1.1, 25)[:, None] * forward
    return values, view


def transparent() -> tuple[list[Tensor], Camera]:
    """Opacities about 1/255, below which nothing is drawn."""
    values, view = scene(400, seed=6)
    values[3] = 0.02 * values[3]
    return values, view


SCENES = {make.__name__: make for make in (mixed, tiny, dense, huge, needles, behind, transparent)}


def leaves(values: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [x.to(dtype).clone().requires_grad_() for x in values]


def gradients(parts: list[Tensor]) -> list[Tensor]:
    """What backward left in leaves, all of which must have got something."""
    found = [part.grad for part in parts if part.grad is not None]
    assert len(found) == len(parts)
    return found


def incoming(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Random gradients of these shapes."""
    draw = torch.Generator().manual_seed(9)
    return [torch.randn(shape, generator=draw) for shape in shapes]


def image_gradients(view: Camera, channels: int) -> list[Tensor]:
    """Of an image [D, H, W] and its alpha [1, H, W]."""
    return incoming((channels, view.height, view.width), (1, view.height, view.width))
