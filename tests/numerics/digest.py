"""Every kernel forward and backward on fixed numbers, as SHA-256 sums of all output bytes; `python digest.py` prints them as JSON."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numba
import torch
from scenes import SCENES, gradients, image_gradients, incoming, leaves, scene
from torch import Tensor

from fiag_dist.kernels.colors import shown_colors
from fiag_dist.kernels.compositing import compare
from fiag_dist.kernels.grid import encode, layout
from fiag_dist.kernels.mlp import mlp
from fiag_dist.kernels.projection import project
from fiag_dist.kernels.raster import blend
from fiag_dist.kernels.ssim import ssim
from fiag_dist.types import Camera


def images(values: list[Tensor], view: Camera) -> list[Tensor]:
    """What projection and blending make of a scene, and all their gradients."""
    parts = leaves(values)
    size = (view.width, view.height)
    means2d, conics, depths, radii = project(*parts[:4], view.viewmat, view.K, *size)
    between = [means2d, conics]
    for tensor in between:
        tensor.retain_grad()
    image, alpha = blend(*between, parts[4], parts[3], radii, depths, torch.tensor([0.2, 0.5, 0.3]), *size)
    v_image, v_alpha = image_gradients(view, 3)
    ((image * v_image).sum() + (alpha * v_alpha[0]).sum()).backward()
    return [means2d, conics, depths, radii, image, alpha, *gradients(between), *gradients(parts)]


def features(log2_table: int, features: int) -> list[Tensor]:
    grid = layout(6, 16, 200.0, log2_table)
    draw = torch.Generator().manual_seed(0)
    parts = leaves([torch.rand(5000, 3, generator=draw), torch.rand(3, grid.rows, features, generator=draw)])
    out = encode(*parts, grid)
    out.backward(*incoming(tuple(out.shape)))
    return [out, *gradients(parts)]


def network() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(3000, 36), (64, 36), (64, 64), (23, 64)]
    parts = leaves([torch.randn(*shape, generator=draw) for shape in shapes])
    out = mlp(*parts)
    out.backward(*incoming(tuple(out.shape)))
    return [out, *gradients(parts)]


def similarity() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    image, target = torch.rand(2, 3, 130, 90, generator=draw)
    image.requires_grad_()
    value = ssim(image, target)
    value.backward()
    return [value, *gradients([image])]


def comparison() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    layer, frame, backdrop = torch.rand(3, 3, 90, 130, generator=draw)
    alpha, shown, mask = torch.rand(3, 90, 130, generator=draw)
    parts = leaves([layer, alpha])
    image, target, error, uncovered = compare(*parts, frame, shown, mask, backdrop)
    (image.square().sum() + 3 * error + 2 * uncovered).backward()
    return [image, target, error, uncovered, *gradients(parts)]


def colors() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    parts = leaves([torch.randn(3000, 3, generator=draw), torch.randn(3000, 8, 3, generator=draw)])
    out = shown_colors(*parts, torch.randn(3000, 3, generator=draw), torch.tensor([0.1, 0.2, 1.3]))
    out.backward(*incoming(tuple(out.shape)))
    return [out, *gradients(parts)]


JOBS: dict[str, Callable[[], list[Tensor]]] = {
    **{f"scene {name}": partial(lambda make: images(*make()), make) for name, make in SCENES.items()},
    "scene of 1500": lambda: images(*scene(1500)),
    "grid, dense": lambda: features(17, 1),
    "grid, hashed": lambda: features(11, 2),
    "network": network,
    "ssim": similarity,
    "compare": comparison,
    "colours": colors,
}


def digest(job: str) -> str:
    total = hashlib.sha256()
    for tensor in JOBS[job]():
        total.update(tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def on_threads(callers: int) -> dict[str, str]:
    """All jobs twice over, on several threads of this process at once; a job whose two sums differ has both."""
    with ThreadPoolExecutor(callers) as pool:
        sums = list(pool.map(digest, [*JOBS, *reversed(JOBS)]))
    found: dict[str, str] = {}
    for job, total in zip([*JOBS, *reversed(JOBS)], sums, strict=True):
        found[job] = total if found.get(job, total) == total else f"{found[job]} and {total}"
    return found


if __name__ == "__main__":
    print(
        json.dumps(
            {"threads": numba.get_num_threads(), "alone": {job: digest(job) for job in JOBS}, "together": on_threads(4)}
        )
    )
