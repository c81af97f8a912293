"""The GPU check's comparisons: what each backend of a device computes against the CPU kernel, forward and every gradient."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "numerics"))
from scenes import SCENES, image_gradients, scene

from fiag_dist.config import GridConfig
from fiag_dist.images import ssim
from fiag_dist.images.raster import Splats, choose, rasterize_frames
from fiag_dist.model import grid
from fiag_dist.types import BOUND_M, Camera

NORM, TYPICAL, QUANTILE = 1e-2, 1e-3, 0.98
"""Allowed errors: of the norm, and of the largest entry in this share of entries. A Gaussian whose alpha falls on the other side of 1/255 by rounding
changes a few pixels and gradients by far more than rounding: a largest error would lie about all others."""
NORM_OF = {"needles": 1e-1}
"""By scene: a thousand times longer than wide, a change of 3e-7 in the inputs moves the gradient of quats by 6e-3 of its norm."""
GRIDS = {
    "dense": GridConfig(init=0.5),
    "fine": GridConfig(finest=128.0, init=0.5),
    "two features": GridConfig(levels=8, features=2, finest=64.0, init=0.5),
    "hashed": GridConfig(levels=8, features=2, finest=256.0, log2_table=12, init=0.5),
}
IMAGES = {"square": (3, 64, 64), "odd": (3, 37, 53), "below the window": (1, 5, 7), "wide": (3, 256, 200)}


def compared(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], norm_allowed: float = NORM) -> dict[str, Any]:
    """How far named tensors lie from the wanted ones, by name, and whether all are near enough. Zeros must be met exactly."""
    rows: dict[str, Any] = {}
    passed = set(got) == set(wanted)
    for name in (name for name in wanted if name in got):
        a, b = got[name].detach().double().cpu(), wanted[name].detach().double().cpu()
        error, largest = (a - b).abs().flatten(), float(b.abs().max()) if b.numel() else 0.0
        if largest == 0:
            rows[name] = {"of zeros": float(error.max()) if error.numel() else 0.0}
            passed &= not a.any()
            continue
        norm = float(error.norm() / b.norm())
        typical = float(error.sort().values[int(QUANTILE * (len(error) - 1))] / largest)
        rows[name] = {"norm": norm, "typical": typical}
        passed &= norm <= norm_allowed and typical <= TYPICAL  # false for nan
    return {"passed": bool(passed), "errors": rows}


def raster_pairs(device: torch.device) -> dict[str, Any]:
    """Several scenes alone, and some frames in one call."""
    found = {}
    for name, make in SCENES.items():
        values, camera = make()
        found[name] = _raster_pair([(values, camera)], device, NORM_OF.get(name, NORM))
    found["five channels"] = _raster_pair([scene(300, 5)], device)
    found["three frames in one call"] = _raster_pair([scene(300, 3, seed) for seed in (7, 8, 9)], device)
    found["no Gaussians"] = _raster_pair([([x[:0] for x in scene(10)[0]], scene(10)[1])], device)
    return _summed(found) | {"backend": choose("auto", device).name}


def _raster_pair(
    frames: list[tuple[list[Tensor], Camera]], device: torch.device, norm_allowed: float = NORM
) -> dict[str, Any]:
    def run(where: torch.device) -> dict[str, Tensor]:
        splats = [Splats(*(x.to(where, copy=True).requires_grad_() for x in values)) for values, _ in frames]
        cameras = [Camera(c.viewmat.to(where), c.K.to(where), c.width, c.height) for _, c in frames]
        channels = splats[0].colors.shape[1]
        renderings = rasterize_frames(splats, cameras, torch.linspace(0, 1, channels, device=where))
        v_image, v_alpha = (x.to(where) for x in image_gradients(cameras[0], channels))
        losses = [(v_image * r.image).sum() + (v_alpha * r.alpha).sum() for r in renderings]
        if len(splats[0].means):
            torch.stack(losses).sum().backward()
        out: dict[str, Tensor] = {}
        for number, (rendering, leaves) in enumerate(zip(renderings, splats, strict=True)):
            named = {"image": rendering.image, "alpha": rendering.alpha, "radii": rendering.radii}
            gradients = {"centres": rendering.means2d.grad} | {name: leaf.grad for name, leaf in vars(leaves).items()}
            named |= {f"gradient of {name}": g for name, g in gradients.items() if g is not None}
            out |= {f"{name} {number}" if len(frames) > 1 else name: x for name, x in named.items()}
        return out

    return compared(run(device), run(torch.device("cpu")), norm_allowed)


def encoder_pairs(device: torch.device) -> dict[str, Any]:
    """Every backend that can run on the device, the torch one always; a line says why tiny-cuda-nn is not among them."""
    found, choice = {}, grid.choose("auto", device)
    for backend in ["torch", *(["tcnn"] if choice.name == "tcnn" else [])]:
        for name, config in GRIDS.items():
            found[f"{backend}, {name}"] = _encoder_pair(config, backend, device)
    return _summed(found) | {"auto": choice.name, "why": choice.why}


def _encoder_pair(config: GridConfig, backend: Any, device: torch.device) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(3)
    points_N3 = (2.2 * torch.rand(5000, 3, generator=draw) - 1.1) * BOUND_M  # some outside
    v_features = torch.randn(5000, config.dim, generator=draw)

    def run(where: torch.device, backend: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        encoder = grid.TriPlane(config, backend).to(where)
        points = points_N3.to(where, copy=True).requires_grad_()
        features = encoder(points)
        features.backward(v_features.to(where))
        assert points.grad is not None
        assert encoder.table.grad is not None
        return {"features": features, "gradient of table": encoder.table.grad, "gradient of points": points.grad}

    return compared(run(device, backend), run(torch.device("cpu"), "cpu"))


def ssim_pairs(device: torch.device) -> dict[str, Any]:
    """Similar images of several shapes."""
    found = {}
    for name, shape in IMAGES.items():
        draw = torch.Generator().manual_seed(0)
        target = torch.rand(shape, generator=draw)
        image = 0.7 * target + 0.3 * torch.rand(shape, generator=draw)

        def run(where: torch.device, backend: Any, image: Tensor = image, target: Tensor = target) -> dict[str, Tensor]:
            leaf = image.to(where, copy=True).requires_grad_()
            value = ssim.ssim(leaf, target.to(where), backend)
            value.backward()
            assert leaf.grad is not None
            return {"similarity": value.reshape(1), "gradient": leaf.grad}

        found[name] = compared(run(device, "torch"), run(torch.device("cpu"), "cpu"))
    return _summed(found)


PAIRS: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    "raster": raster_pairs,
    "encoder": encoder_pairs,
    "ssim": ssim_pairs,
}


def _summed(found: dict[str, Any]) -> dict[str, Any]:
    return {"passed": all(row["passed"] for row in found.values()), "pairs": found}
