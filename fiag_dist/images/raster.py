"""Gaussians seen by a camera become an image: CPU kernels or gsplat, the same numbers from both. Nothing else imports gsplat."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fiag_dist.config import RasterBackend
from fiag_dist.errors import ConfigError
from fiag_dist.images.backend import Choice, fault_of, must_agree
from fiag_dist.kernels.falloff import MIN_ALPHA
from fiag_dist.kernels.launch import alone
from fiag_dist.kernels.projection import BLUR_PX2, FAR_M, NEAR_M, project
from fiag_dist.kernels.raster import blend
from fiag_dist.types import SH_DC, Camera, Rendering


@dataclass(frozen=True, eq=False)
class Splats:
    """N Gaussians ready to be drawn (N may be 0)."""

    means: Float[Tensor, "n 3"]
    """Metres."""
    quats: Float[Tensor, "n 4"]
    """wxyz, of any length."""
    scales: Float[Tensor, "n 3"]
    """Metres, > 0."""
    opacities: Float[Tensor, " n"]
    """0..1."""
    colors: Float[Tensor, "n d"]
    """D channels: RGB, or RGB and feature maps."""


def rasterize_frames(
    splats: Sequence[Splats],
    cameras: Sequence[Camera],
    background: Float[Tensor, " d"],
    backend: RasterBackend = "auto",
) -> list[Rendering]:
    """Renders B frames, each of its own Gaussians through its own camera.

    background: one value a channel, for all frames, without gradient. Gradients go to everything in `splats`, not to the cameras.

    With gradients on, `means2d.grad` of each result holds, after backward, the plain (signed, summed over pixels) gradient of each projected
    centre in 1/pixels: its norm is the statistic that densification uses (times half the image's side for thresholds given in half images). It
    is not gsplat's `absgrad`, which sums absolute values over pixels and needs larger thresholds.

    The CPU kernels draw one frame after the other; gsplat draws all in one call, for which they must be alike in N, D and size. Raises ConfigError
    where they are not, and for a backend that can't run here (`choose`).
    """
    assert len(splats) == len(cameras), (len(splats), len(cameras))
    if not splats:
        return []
    if choose(backend, splats[0].means.device).name == "gsplat":
        return _draw_gsplat(splats, cameras, background)
    return _draw_cpu(splats, cameras, background)


def rasterize(
    means: Float[Tensor, "n 3"],
    quats: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 3"],
    opacities: Float[Tensor, " n"],
    colors: Float[Tensor, "n d"],
    camera: Camera,
    background: Float[Tensor, " d"],
    backend: RasterBackend = "auto",
) -> Rendering:
    """One frame of `rasterize_frames`; the arguments are those of Splats."""
    return rasterize_frames([Splats(means, quats, scales, opacities, colors)], [camera], background, backend)[0]


def choose(wanted: RasterBackend, device: torch.device) -> Choice:
    """The backend for tensors on `device`: the CPU kernels for host memory, gsplat for a CUDA device where it draws a small scene right.

    gsplat is tried once for each device, which compiles it where it never ran. Raises ConfigError where `wanted` (or, for `auto`, anything) can't run.
    """
    if device.type == "cuda":
        if wanted == "cpu":
            raise ConfigError(
                f"raster backend cpu: tensors are on {device}, the rule is host memory; use backend auto or gsplat"
            )
        if fault := _gsplat_fault(device):
            raise ConfigError(
                f"raster backend gsplat on {device}: {fault}; nothing else draws there; or use the CPU: CUDA_VISIBLE_DEVICES= fiag-dist ..."
            )
        return Choice("gsplat", "it drew a small scene right")
    if device.type != "cpu":
        raise ConfigError(f"raster backend {wanted}: tensors are on {device}, the rule is host memory or a CUDA device")
    if wanted == "gsplat":
        found = f"tensors are on {device}" if torch.cuda.is_available() else "torch sees no CUDA device"
        raise ConfigError(f"raster backend gsplat: {found}, the rule is a CUDA device; use backend auto or cpu")
    return Choice("cpu", "tensors in host memory")


def try_out(backend: str, device: torch.device) -> None:
    """Draws two frames of two discs each and their gradients; raises RuntimeError, or what the backend raises, unless they are right."""
    _compare(_draw_gsplat if backend == "gsplat" else _draw_cpu, device)


Draw = Callable[[Sequence[Splats], Sequence[Camera], Tensor], list[Rendering]]


@lru_cache
def _gsplat_fault(device: torch.device) -> str:
    """Why gsplat can't be used on this device, and what helps; "" when it can."""
    if importlib.util.find_spec("gsplat") is None:
        return "package not installed; run: bash launch/install.sh ingest,cuda"
    version = metadata.version("gsplat")
    if not version.startswith("1.5."):  # 1.6 blends otherwise
        return f"version {version}, the rule is >=1.5.3,<1.6; run: bash launch/install.sh ingest,cuda"

    def trial() -> None:
        lock = _builds() / ".fiag-gsplat"
        # Its first import clears away what another process has not finished compiling. Where nothing can be written it was compiled before.
        writable = not lock.parent.exists() or os.access(lock.parent, os.W_OK)
        with alone(lock) if writable else nullcontext():
            try_out("gsplat", device)

    fault = fault_of(trial)
    return f"{fault}; it needs nvcc and g++ at its first start: see `nvcc --version`" if fault else ""


def _builds() -> Path:
    """Where torch compiles extensions, which machines may share."""
    from torch.utils import cpp_extension  # takes a second: only where there is a device

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())


def _draw_cpu(splats: Sequence[Splats], cameras: Sequence[Camera], background: Tensor) -> list[Rendering]:
    return [_draw_one_cpu(s, camera, background) for s, camera in zip(splats, cameras, strict=True)]


def _draw_one_cpu(splats: Splats, camera: Camera, background: Tensor) -> Rendering:
    means, quats, scales, opacities, colors = (x.float() for x in vars(splats).values())
    viewmat, K = camera.viewmat.detach().float(), camera.K.detach().float()
    size = camera.width, camera.height
    means2d, conics, depths, radii = project(means, quats, scales, opacities, viewmat, K, *size, camera.zoom)
    if means2d.requires_grad:
        means2d.retain_grad()
    image, alpha = blend(means2d, conics, colors, opacities, radii, depths, background.detach(), *size)
    return Rendering(image=image, alpha=alpha[None], means2d=means2d, radii=radii)


def _draw_gsplat(splats: Sequence[Splats], cameras: Sequence[Camera], background: Tensor) -> list[Rendering]:
    width, height, zoom = _common_size(splats, cameras)
    means_BN3, quats_BN4, scales_BN3, opacities_BN, colors_BND = (
        torch.stack([getattr(s, name).float() for s in splats]) for name in vars(splats[0])
    )
    if means_BN3.shape[1] == 0:  # gsplat's kernels are not made for empty launches
        return [_empty(s, background, width, height) for s in splats]
    from gsplat.rendering import rasterization  # compiles CUDA code at its first use: only where there is a device

    image_B1HWD, alpha_B1HW1, meta = rasterization(
        means=means_BN3,
        quats=quats_BN4,
        scales=scales_BN3,
        opacities=opacities_BN,
        colors=colors_BND,
        viewmats=torch.stack([c.viewmat.detach().float() for c in cameras])[:, None],
        Ks=torch.stack([c.K.detach().float() for c in cameras])[:, None],
        width=width,
        height=height,
        near_plane=NEAR_M,
        far_plane=FAR_M,
        eps2d=BLUR_PX2 * zoom**2,
        packed=False,
        backgrounds=background.detach().float().expand(len(splats), 1, -1),
    )
    means2d = list(meta["means2d"].detach()[:, 0].unbind(0))
    if meta["means2d"].requires_grad:

        def hand_over(v_B1N2: Tensor) -> None:
            """gsplat's tensor holds all frames; each frame's part of its gradient is handed over when it is known."""
            for frame_N2, v_N2 in zip(means2d, v_B1N2[:, 0].unbind(0), strict=True):
                frame_N2.grad = v_N2

        meta["means2d"].register_hook(hand_over)
    images, alphas, radii = image_B1HWD[:, 0].permute(0, 3, 1, 2), alpha_B1HW1[:, 0].permute(0, 3, 1, 2), meta["radii"]
    return [Rendering(*frame) for frame in zip(images, alphas, means2d, radii[:, 0].float(), strict=True)]


def _common_size(splats: Sequence[Splats], cameras: Sequence[Camera]) -> tuple[int, int, float]:
    sizes = {(*s.colors.shape, c.width, c.height, c.zoom) for s, c in zip(splats, cameras, strict=True)}
    if len(sizes) > 1:
        found = " and ".join(f"{n} x {d} at {w}x{h}, zoom {zoom:g}" for n, d, w, h, zoom in sorted(sizes))
        raise ConfigError(
            f"raster backend gsplat: frames of one call have {found} (Gaussians x channels at pixels), the rule is one size for all; "
            "call once for each size"
        )
    return cameras[0].width, cameras[0].height, cameras[0].zoom


def _empty(splats: Splats, background: Tensor, width: int, height: int) -> Rendering:
    """The background alone."""
    image = background.detach().float()[:, None, None].expand(-1, height, width).clone()
    nowhere_02 = splats.means[:, :2].float()
    return Rendering(image=image, alpha=image.new_zeros(1, height, width), means2d=nowhere_02, radii=nowhere_02)


def _compare(draw: Draw, device: torch.device) -> None:
    """Two discs on the camera's axis, one behind the other, whose image and gradients are known in closed form; two frames of them."""
    focal, size, depth_m = 64.0, 16, 1.0
    viewmat = torch.eye(4)
    viewmat[2, 3] = depth_m
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    background_3 = torch.tensor([0.2, 0.1, 0.4])
    camera = Camera(viewmat.to(device), K.to(device), size, size)
    drawn, known = _frames_of_discs(device), _frames_of_discs(torch.device("cpu"))
    images = [rendering.image for rendering in draw(drawn, [camera, camera], background_3.to(device))]
    exact = [_discs(frame, background_3, focal, depth_m, size) for frame in known]
    ramp_HW = torch.linspace(0, 1, size)[:, None] + torch.linspace(0, 2, size)  # without it, the centres' gradient is 0
    (torch.stack(images) * ramp_HW.to(device)).sum().backward()
    (torch.stack(exact) * ramp_HW).sum().backward()
    for a, b, image, wanted in zip(drawn, known, images, exact, strict=True):
        must_agree(image, wanted, "the image")
        must_agree(a.colors.grad, b.colors.grad, "the gradient of colors")
        must_agree(a.opacities.grad, b.opacities.grad, "the gradient of opacities")
        must_agree(a.means.grad, b.means.grad, "the gradient of means")


def _frames_of_discs(device: torch.device) -> list[Splats]:
    return [
        Splats(
            means=torch.tensor([[0.0, 0, 0], [0, 0, 0.1]], device=device, requires_grad=True),
            quats=torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0]], device=device),
            scales=torch.full((2, 3), 0.03, device=device),
            opacities=torch.tensor(opacities, device=device, requires_grad=True),
            colors=torch.tensor([[1.0, 0.5, 0.2], [0.1, 0.6, 0.9]], device=device, requires_grad=True),
        )
        for opacities in ([0.5, 0.8], [0.25, 0.6])
    ]


def _discs(splats: Splats, background_3: Tensor, focal: float, depth_m: float, size: int) -> Tensor:
    """Round Gaussians on the camera's axis over a background [3, size, size], front to back."""
    pixels_HW2 = torch.stack(torch.meshgrid(*[torch.arange(size) + 0.5] * 2, indexing="xy"), -1)
    image_3HW, light = torch.zeros(3, size, size), torch.ones(size, size)
    for mean, scale, opacity, color in zip(splats.means, splats.scales, splats.opacities, splats.colors, strict=True):
        zoom = focal / (depth_m + mean[2])
        away = (pixels_HW2 - (mean[:2] * zoom + size / 2)).square().sum(-1) / ((scale[0] * zoom) ** 2 + BLUR_PX2)
        alpha = opacity * torch.exp(-away / 2)
        alpha = torch.where(alpha >= float(MIN_ALPHA), alpha, 0.0)
        image_3HW, light = image_3HW + light * alpha * color[:, None, None], light * (1 - alpha)
    return image_3HW + light * background_3[:, None, None]


def checked_degree(sh_rest: Float[Tensor, "n k 3"]) -> int:
    """The number of spherical harmonics, with that of degree 0. Raises ConfigError where they are of no whole degree from 0 to 3."""
    count = sh_rest.shape[1] + 1
    if count not in (1, 4, 9, 16):
        raise ConfigError(
            f"spherical harmonics: {count - 1} coefficients above degree 0, the rule is 0, 3, 8 or 15; set sh_degree to 0..3"
        )
    return count


def view_colors(
    sh_dc: Float[Tensor, "n 3"], sh_rest: Float[Tensor, "n k 3"], means: Float[Tensor, "n 3"], camera: Camera
) -> Float[Tensor, "n 3"]:
    """Colours of N Gaussians as this camera sees them: real spherical harmonics plus 0.5, at least 0.

    sh_rest: coefficients above degree 0, K = 0, 3, 8 or 15 for degree 0 to 3; order and signs of the .ply files of 3D Gaussian Splatting. The
    direction from the camera to a centre carries no gradient. Raises ConfigError for another K.
    """
    count = checked_degree(sh_rest)
    color_N3 = 0.5 + SH_DC * sh_dc
    if count > 1:
        with torch.no_grad():
            basis_NK = _harmonics(torch.nn.functional.normalize(means - camera.center, dim=-1), count)
        color_N3 = color_N3 + (basis_NK[:, :, None] * sh_rest).sum(1)
    return color_N3.clamp(min=0)


def _harmonics(directions_N3: Tensor, count: int) -> Tensor:
    """Real spherical harmonics 1 .. count-1 at unit directions, [N, count - 1]."""
    x, y, z = directions_N3.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    basis = [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if count > 4:
        basis += [1.0925484305920792 * x * y, -1.0925484305920792 * y * z, 0.31539156525252005 * (2 * zz - xx - yy)]
        basis += [-1.0925484305920792 * x * z, 0.5462742152960396 * (xx - yy)]
    if count > 9:
        basis += [-0.5900435899266435 * y * (3 * xx - yy), 2.890611442640554 * x * y * z]
        basis += [-0.4570457994644658 * y * (4 * zz - xx - yy), 0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy)]
        basis += [-0.4570457994644658 * x * (4 * zz - xx - yy), 1.445305721320277 * z * (xx - yy)]
        basis += [-0.5900435899266435 * x * (xx - 3 * yy)]
    return torch.stack(basis, -1)
