"""Small random frames to draw."""

import torch
from torch import Tensor

from fiag_dist.images.raster import Splats
from fiag_dist.types import Camera


def frame(seed: int, num: int = 40, channels: int = 3, side: int = 33) -> tuple[Splats, Camera]:
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw)

    parts = [0.2 * rand(num, 3) - 0.1, rand(num, 4) - 0.5, 0.01 + 0.02 * rand(num, 3), rand(num), rand(num, channels)]
    viewmat = torch.eye(4)
    viewmat[:3, 3] = torch.tensor([0.01 * seed, 0, 1])
    K = torch.tensor([[100.0, 0, side / 2], [0, 90, side / 2], [0, 0, 1]])
    return Splats(*(p.requires_grad_() for p in parts)), Camera(viewmat, K, side, side - 4)
