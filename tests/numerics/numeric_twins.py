"""Slow float64 twins of the kernels: the textbook formulas, no tiles, no hand-written gradient."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fiag_dist.types import Camera


def project(
    means: Tensor, quats: Tensor, scales: Tensor, viewmat: Tensor, K: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres [N, 2], conics [N, 3] and depths [N] in the inputs' precision; size: width and height. Before the near plane the first two mean nothing."""
    viewmat, K = viewmat.to(means), K.to(means)
    point_N3 = means @ viewmat[:3, :3].T + viewmat[:3, 3]
    x, y, z = torch.where(point_N3[:, 2:] > 0.01, point_N3, 1.0).unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = 0.15 * size[0] / fx, 0.15 * size[1] / fy
    u = (x / z).clamp(float(-cx / fx - margin_x), float((size[0] - cx) / fx + margin_x))
    v = (y / z).clamp(float(-cy / fy - margin_y), float((size[1] - cy) / fy + margin_y))
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * u / z, zero, fy / z, -fy * v / z], -1).reshape(-1, 2, 3)
    to_image = jacobian @ viewmat[:3, :3] @ rotation(quats) @ torch.diag_embed(scales)
    inverse = torch.linalg.inv(to_image @ to_image.mT + 0.3 * torch.eye(2).to(means))
    conics_N3 = torch.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], -1)
    return torch.stack([fx * x / z + cx, fy * y / z + cy], -1), conics_N3, point_N3[:, 2]


def blend(
    centers: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    depths: Tensor,
    background: Tensor,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Image [D, H, W] and alpha [H, W] in the inputs' precision: every Gaussian beyond the near plane against every pixel."""
    order = torch.argsort(depths.detach(), stable=True)
    columns, rows = torch.arange(size[0]).to(colors) + 0.5, torch.arange(size[1]).to(colors) + 0.5
    pixels_P2 = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).reshape(-1, 2)
    x_NP, y_NP = (centers[order][:, None] - pixels_P2).unbind(-1)
    a, b, c = conics[order][..., None].unbind(1)
    value_NP = opacities[order][:, None] * torch.exp(-0.5 * (a * x_NP**2 + c * y_NP**2) - b * x_NP * y_NP)
    value_NP = value_NP.clamp(max=0.999)
    value_NP = torch.where((value_NP >= 1 / 255) & (depths[order] > 0.01)[:, None], value_NP, 0.0)
    after_NP = torch.cumprod(1 - value_NP, 0)
    before_NP = torch.cat([torch.ones_like(after_NP[:1]), after_NP[:-1]])
    weights_NP = torch.where(after_NP > 1e-4, value_NP * before_NP, 0.0)
    alpha_P = weights_NP.sum(0)
    image_DP = (weights_NP.T @ colors[order]).T + (1 - alpha_P) * background.to(colors)[:, None]
    return image_DP.reshape(-1, size[1], size[0]), alpha_P.reshape(size[1], size[0])


def mlp(inputs: Tensor, *weights: Tensor) -> Tensor:
    """Linear layers without bias, ReLU between them, in the inputs' precision."""
    for k, weight in enumerate(weights):
        inputs = F.linear(F.relu(inputs) if k else inputs, weight)
    return inputs


def render(means, quats, scales, opacities, colors, camera: Camera, background) -> tuple[Tensor, Tensor, Tensor]:
    """Image [D, H, W], alpha [1, H, W] and centres [N, 2], which keep their gradient."""
    size = (camera.width, camera.height)
    centers, conics, depths = project(means, quats, scales, camera.viewmat, camera.K, size)
    if centers.requires_grad:
        centers.retain_grad()
    image, alpha = blend(centers, conics, colors, opacities, depths, background, size)
    return image, alpha[None], centers


def rotation(quats: Tensor) -> Tensor:
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    zero = torch.zeros_like(w)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    return torch.eye(3).to(quats) + 2 * w[:, None, None] * cross + 2 * cross @ cross  # Rodrigues


def encode(unit_N3: Tensor, table_3RF: Tensor, base: int, growth: float, levels: int, log2_table: int) -> Tensor:
    """Tri-plane features, one point, plane, level and corner after the other; points in 0..1."""
    points = []
    for point in unit_N3:
        features = []
        for plane, (axis_u, axis_v) in enumerate(((0, 1), (1, 2), (0, 2))):
            offset = 0
            for level in range(levels):
                scale = base * growth**level - 1
                side = math.ceil(scale) + 1
                size = min(-(-side * side // 8) * 8, 2**log2_table)
                u, v = point[axis_u] * scale + 0.5, point[axis_v] * scale + 0.5
                ix, iy = int(u), int(v)
                total = torch.zeros(())
                for dx in (0, 1):
                    for dy in (0, 1):
                        hashed = (ix + dx) ^ ((iy + dy) * 2654435761 % 2**32)
                        row = (ix + dx + (iy + dy) * side if side * side <= size else hashed) % size
                        weight = (u - ix if dx else 1 - (u - ix)) * (v - iy if dy else 1 - (v - iy))
                        total = total + weight * table_3RF[plane, offset + row]
                features.append(total)
                offset += size
        points.append(torch.cat(features) if ((point >= 0) & (point <= 1)).all() else 0 * torch.cat(features))
    return torch.stack(points)


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Mean SSIM with the whole 11 x 11 window at once."""
    taps = torch.exp(-((torch.arange(11).to(image) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(taps, taps) / taps.sum() ** 2

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x[:, None], window[None, None], padding=5)[:, 0]

    a, b = blur(image), blur(target)
    aa, bb, ab = blur(image * image) - a * a, blur(target * target) - b * b, blur(image * target) - a * b
    return (((2 * a * b + 1e-4) * (2 * ab + 9e-4)) / ((a * a + b * b + 1e-4) * (aa + bb + 9e-4))).mean()


def assert_close(
    got: Tensor, wanted: Tensor, name: str, norm: float = 1e-3, quantile: float = 0.98, typical: float = 1e-4
) -> None:
    """Relative error in norm, and in the given share of entries against the largest: single threshold flips make a maximum lie."""
    got, wanted = got.detach().double(), wanted.detach().double()
    error = (got - wanted).abs().flatten()
    largest = wanted.abs().max()
    assert largest > 0, f"{name}: the twin is all zeros, nothing is tested"
    relative = float(error.norm() / wanted.norm())
    assert relative < norm, f"{name}: relative error {relative:.1e} in norm"
    usual = float(error.quantile(quantile) / largest)
    assert usual < typical, f"{name}: error {usual:.1e} of the largest entry at quantile {quantile}"
