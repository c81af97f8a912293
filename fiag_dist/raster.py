"""Gaussians seen by a camera become an image: CPU kernels or gsplat, the same numbers from both. Nothing else imports gsplat."""

import importlib.util
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fiag_dist.errors import ConfigError
from fiag_dist.kernels.projection import BLUR_PX2, FAR_M, NEAR_M, project
from fiag_dist.kernels.raster import blend
from fiag_dist.types import Camera, Rendering

Backend = Literal["auto", "cpu", "gsplat"]


def rasterize(
    means: Float[Tensor, "n 3"],
    quats: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 3"],
    opacities: Float[Tensor, " n"],
    colors: Float[Tensor, "n d"],
    camera: Camera,
    background: Float[Tensor, " d"],
    backend: Backend = "auto",
) -> Rendering:
    """Renders N Gaussians (N may be 0) with D channels: RGB, or RGB and feature maps.

    means, scales > 0: metres; quats: wxyz of any length; opacities: 0..1; background: one value a channel, without gradient. Gradients go to means,
    quats, scales, opacities and colors, not to the camera.

    With gradients on, `means2d.grad` of the result holds, after backward, the plain (signed, summed over pixels) gradient of each projected
    centre in 1/pixels: its norm is the statistic that densification uses (times half the image's side for thresholds given in half images). It
    is not gsplat's `absgrad`, which sums absolute values over pixels and needs larger thresholds.

    `auto` takes gsplat for tensors on a CUDA device and the CPU kernels otherwise. Raises ConfigError for a backend that can't run here.
    """
    if _backend(backend, means) == "gsplat":
        return _rasterize_gsplat(means, quats, scales, opacities, colors, camera, background)
    means, quats, scales, opacities, colors = (x.float() for x in (means, quats, scales, opacities, colors))
    viewmat, K = camera.viewmat.detach().float(), camera.K.detach().float()
    means2d, conics, depths, radii = project(means, quats, scales, opacities, viewmat, K, camera.width, camera.height)
    if means2d.requires_grad:
        means2d.retain_grad()
    image, alpha = blend(
        means2d, conics, colors, opacities, radii, depths, background.detach(), camera.width, camera.height
    )
    return Rendering(image=image, alpha=alpha[None], means2d=means2d, radii=radii)


def _backend(wanted: Backend, means: Tensor) -> Literal["cpu", "gsplat"]:
    if wanted == "cpu" or (wanted == "auto" and not means.is_cuda):
        if means.is_cuda:
            raise ConfigError(
                f"raster backend cpu: tensors are on {means.device}, the rule is host memory; use backend auto or gsplat"
            )
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError(
            "raster backend gsplat: torch sees no CUDA device, and gsplat needs one; use backend auto or cpu"
        )
    if importlib.util.find_spec("gsplat") is None:
        raise ConfigError(
            "raster backend gsplat: package not installed; run: pip install 'fiag-dist[cuda]', or use backend cpu"
        )
    if not means.is_cuda:
        raise ConfigError(
            f"raster backend gsplat: tensors are on {means.device}, the rule is a CUDA device; use backend auto or cpu"
        )
    return "gsplat"


def _rasterize_gsplat(means, quats, scales, opacities, colors, camera: Camera, background: Tensor) -> Rendering:
    if len(means) == 0:  # gsplat's kernels are not made for empty launches
        image = background.detach()[:, None, None].expand(-1, camera.height, camera.width).clone()
        return Rendering(
            image=image, alpha=image.new_zeros(1, *image.shape[1:]), means2d=means[:, :2], radii=means[:, :2]
        )
    from gsplat.rendering import rasterization  # compiles CUDA code at its first use: only where there is a device

    image_1HWD, alpha_1HW1, meta = rasterization(
        means=means,
        quats=quats,
        scales=scales,
        opacities=opacities,
        colors=colors,
        viewmats=camera.viewmat.detach()[None],
        Ks=camera.K.detach()[None],
        width=camera.width,
        height=camera.height,
        near_plane=NEAR_M,
        far_plane=FAR_M,
        eps2d=BLUR_PX2,
        packed=False,
        backgrounds=background.detach()[None],
    )
    means2d_N2 = meta["means2d"].detach()[0]
    if meta["means2d"].requires_grad:
        # gsplat's own tensor has a camera dimension in front; its gradient is handed over when it is known.
        meta["means2d"].register_hook(lambda v_1N2: setattr(means2d_N2, "grad", v_1N2[0]))
    return Rendering(
        image=image_1HWD[0].permute(2, 0, 1),
        alpha=alpha_1HW1[0].permute(2, 0, 1),
        means2d=means2d_N2,
        radii=meta["radii"][0].to(means.dtype),
    )


def view_colors(
    sh_dc: Float[Tensor, "n 3"], sh_rest: Float[Tensor, "n k 3"], means: Float[Tensor, "n 3"], camera: Camera
) -> Float[Tensor, "n 3"]:
    """Colours of N Gaussians as this camera sees them: real spherical harmonics plus 0.5, at least 0.

    sh_rest: coefficients above degree 0, K = 0, 3, 8 or 15 for degree 0 to 3; order and signs of the .ply files of 3D Gaussian Splatting. The
    direction from the camera to a centre carries no gradient. Raises ConfigError for another K.
    """
    count = sh_rest.shape[1] + 1
    if count not in (1, 4, 9, 16):
        raise ConfigError(
            f"spherical harmonics: {count - 1} coefficients above degree 0, the rule is 0, 3, 8 or 15; set sh_degree to 0..3"
        )
    color_N3 = 0.5 + 0.28209479177387814 * sh_dc
    if count > 1:
        with torch.no_grad():
            center_3 = -camera.viewmat[:3, :3].T @ camera.viewmat[:3, 3]
            basis_NK = _harmonics(torch.nn.functional.normalize(means - center_3, dim=-1), count)
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
