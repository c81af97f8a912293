"""Fills the cache of compiled kernels: every kernel once on a handful of numbers. About half a minute on a core, once for a machine."""

import torch

from fiag_dist.kernels.colors import shown_colors
from fiag_dist.kernels.compositing import compare
from fiag_dist.kernels.grid import encode, layout
from fiag_dist.kernels.mlp import mlp
from fiag_dist.kernels.projection import project
from fiag_dist.kernels.raster import blend
from fiag_dist.kernels.ssim import ssim

CHANNELS = (3, 5)
"""Colour, and colour with the two attention maps."""


def warm() -> None:
    """Runs all kernels forward and backward."""
    viewmat = torch.eye(4)
    viewmat[2, 3] = 1.0
    K = torch.tensor([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]])
    for channels in CHANNELS:
        means, quats, scales = torch.zeros(1, 3), torch.ones(1, 4), torch.full((1, 3), 0.1)
        opacities, colors = torch.full((1,), 0.5), torch.ones(1, channels)
        for leaf in (means, quats, scales, opacities, colors):
            leaf.requires_grad_()
        means2d, conics, depths, radii = project(means, quats, scales, opacities, viewmat, K, 16, 16)
        image, alpha = blend(means2d, conics, colors, opacities, radii, depths, torch.zeros(channels), 16, 16)
        (image.sum() + alpha.sum()).backward()
    grid = layout(2, 4, 8.0, 17)
    table = torch.ones(3, int(grid.offsets[-1]), 1, requires_grad=True)
    encode(torch.full((2, 3), 0.5, requires_grad=True), table, grid).sum().backward()
    mlp(torch.ones(1, 2, requires_grad=True), torch.ones(3, 2), torch.ones(1, 3)).sum().backward()
    shown_colors(
        torch.zeros(1, 3, requires_grad=True), torch.zeros(1, 3, 3), torch.ones(1, 3), torch.zeros(3)
    ).sum().backward()
    picture = torch.rand(3, 16, 16, requires_grad=True)
    layer, alpha = torch.rand(3, 16, 16, requires_grad=True), torch.rand(16, 16, requires_grad=True)
    frame, mask = torch.rand(3, 16, 16), torch.rand(16, 16)
    image, _, error, uncovered = compare(layer, alpha, frame, mask, mask, torch.rand(3, 16, 16))
    (image.sum() + error + uncovered).backward()
    ssim(picture, torch.rand(3, 16, 16)).backward()
    with torch.no_grad():
        ssim(picture, torch.rand(3, 16, 16))
