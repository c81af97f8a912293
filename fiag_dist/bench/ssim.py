"""fiag-dist bench ssim: structural similarity of two images, and the gradient of one."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fiag_dist.bench.benchmark import Benchmark, at_least, choose, device_for, say
from fiag_dist.bench.contest import Contender, agreement, contest
from fiag_dist.images.ssim import ssim
from fiag_dist.kernels.ssim import WINDOW

LIBRARY = "pytorch-msssim"


@dataclass(frozen=True, kw_only=True)
class Bench(Benchmark):
    """Compares two images and goes back to one of them, in turns with pytorch-msssim, or with torch convolutions where that is missing.

    Example: fiag-dist bench ssim --size 512
    """

    size: int = 512
    """Side of the images, pixels."""
    backend: str = "auto"
    """auto, cpu or torch."""

    def measure(self) -> dict[str, Any]:
        at_least(WINDOW, size=self.size)
        backend = choose("backend", self.backend, ("auto", "cpu", "torch"))
        device = device_for(backend)
        draw = torch.Generator().manual_seed(0)
        target = torch.rand(3, self.size // 8 + 1, self.size // 8 + 1, generator=draw)
        target = F.interpolate(target[None], (self.size, self.size), mode="bilinear")[0].to(device)
        noise = 0.1 * torch.randn(target.shape, generator=draw).to(device)
        image = (target + noise).clamp(0, 1).requires_grad_()
        one = {"ssim": torch.ones((), device=device)}

        def contender(compute: Callable[[Tensor, Tensor], Tensor]) -> Contender:
            return Contender(lambda: {"ssim": compute(image, target)}, {"image": image}, one)

        say(f"two images of {self.size} x {self.size} on {device}")
        ours, convolutions = (contender(partial(ssim, backend=name)) for name in (backend, "torch"))
        library = _library()
        # The library looks at whole windows only; with zeros around the images it computes what we do.
        same = contender(lambda a, b: library(_padded(a), _padded(b))) if library else convolutions
        difference = agreement(ours, same, tolerance=1e-3)
        report = contest(ours, contender(library) if library else convolutions, self.repeat)
        name = (
            LIBRARY
            if library
            else f"separable convolutions in torch ({LIBRARY} is not installed: pip install {LIBRARY})"
        )
        return report | {"difference": difference, "reference": name, "device": str(device)}


def _library() -> Callable[[Tensor, Tensor], Tensor] | None:
    if importlib.util.find_spec("pytorch_msssim") is None:
        return None
    from pytorch_msssim import ssim as library

    return lambda image, target: library(image[None], target[None], data_range=1.0)


def _padded(image_CHW: Tensor) -> Tensor:
    return F.pad(image_CHW, [WINDOW // 2] * 4)
