"""fiag-dist bench raster: Gaussians to an image and all gradients back."""

from dataclasses import dataclass
from typing import Any

import torch

from fiag_dist.bench import reference
from fiag_dist.bench.benchmark import Benchmark, at_least, choose, device_for, say
from fiag_dist.bench.contest import Contender, agreement, contest
from fiag_dist.bench.scene import head_scene
from fiag_dist.images.raster import rasterize
from fiag_dist.types import Camera

NAMES = ("means", "quats", "scales", "opacities", "colors")


@dataclass(frozen=True, kw_only=True)
class Bench(Benchmark):
    """Rasterises a head of random Gaussians and takes the gradients of all their parameters, in turns with a pure-torch rasteriser.

    Example: fiag-dist bench raster --num-gaussians 10000 --size 512
    """

    num_gaussians: int = 10_000
    """Of a head that covers two fifths of the image; the fewer, the larger each."""
    size: int = 256
    """Side of the image, pixels."""
    channels: int = 3
    """3: colour; 5: colour and two more maps in the same pass."""
    backend: str = "auto"
    """auto, cpu or gsplat (on a CUDA device)."""

    def measure(self) -> dict[str, Any]:
        at_least(1, num_gaussians=self.num_gaussians, size=self.size, channels=self.channels)
        backend = choose("backend", self.backend, ("auto", "cpu", "gsplat"))
        device = device_for(backend)
        scene, camera = head_scene(self.num_gaussians, self.channels, self.size)
        camera = Camera(camera.viewmat.to(device), camera.K.to(device), self.size, self.size)
        means, quats, scales, opacities, colors = (x.to(device).requires_grad_() for x in scene)
        gaussians = (means, quats, scales, opacities, colors)
        leaves: dict[str, torch.Tensor] = dict(zip(NAMES, gaussians, strict=True))
        background = torch.linspace(0.2, 0.8, self.channels, device=device)
        draw = torch.Generator().manual_seed(1)
        shape = (self.size, self.size)
        incoming = {
            "image": torch.randn(self.channels, *shape, generator=draw).to(device),
            "alpha": torch.randn(1, *shape, generator=draw).to(device),
        }

        def by_kernels() -> dict[str, torch.Tensor]:
            rendering = rasterize(*gaussians, camera, background, backend)
            return {"image": rendering.image, "alpha": rendering.alpha}

        def by_tiles() -> dict[str, torch.Tensor]:
            return dict(zip(("image", "alpha"), reference.rasterize(*gaussians, camera, background), strict=True))

        say(f"{self.num_gaussians} Gaussians at {self.size} x {self.size} on {device}")
        ours, theirs = (Contender(forward, leaves, incoming) for forward in (by_kernels, by_tiles))
        difference = agreement(ours, theirs, tolerance=5e-3)
        report = contest(ours, theirs, self.repeat) | {"difference": difference}
        with torch.no_grad():
            rendering = rasterize(*gaussians, camera, background, backend)
        seen = int((rendering.radii[:, 0] > 0).sum())
        shown = {"seen_gaussians": seen, "mean_alpha": float(rendering.alpha.mean())}
        return report | {"reference": "tiles in plain torch, autograd, float32", "scene": shown, "device": str(device)}
