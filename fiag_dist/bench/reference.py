"""The pure-torch rasteriser that kernels are measured against: the usual one of tiles, every operation on whole tensors, gradients by autograd.

16 x 16 tiles, each with its own list of Gaussians, near to far; tiles of like load are blended together, by a cumulative product. Any device,
float32. It does what can be done without writing a kernel: no pixel sees a Gaussian that does not reach its tile, exponents are built from a
row's and a column's part, and groups of tiles are small enough to stay in a CPU's cache.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fiag_dist.types import Camera, rotations

TILE = 16
GROUP_ELEMENTS = 2**20
"""(Gaussian, pixel) pairs that are blended at once: the fastest power of two on a CPU."""
BLUR_PX2, NEAR_M, MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE = 0.3, 0.01, 0.999, 1 / 255, 1e-4


def rasterize(
    means_N3: Tensor,
    quats_N4: Tensor,
    scales_N3: Tensor,
    opacities_N: Tensor,
    colors_ND: Tensor,
    camera: Camera,
    background_D: Tensor,
) -> tuple[Tensor, Tensor]:
    """Image [D, height, width] and alpha [1, height, width], by the rules of `fiag_dist.images.raster.rasterize`."""
    centers_N2, conics_N3, depths_N, radii_N2 = _project(means_N3, quats_N4, scales_N3, opacities_N, camera)
    tiles_x, tiles_y = -(-camera.width // TILE), -(-camera.height // TILE)
    ids_P, counts_T = _lists(centers_N2.detach(), radii_N2, depths_N.detach(), tiles_x, tiles_y)
    table_NC = torch.cat([centers_N2, conics_N3, opacities_N[:, None], colors_ND], 1)
    table_NC = torch.cat([table_NC, table_NC.new_zeros(1, table_NC.shape[1])])  # fills up short lists, transparent
    starts_T = counts_T.cumsum(0) - counts_T
    blended, where = [], []
    for tiles_G in _groups(counts_T):
        place_K = torch.arange(int(counts_T[tiles_G].max()), device=ids_P.device)
        inside_GK = place_K < counts_T[tiles_G, None]
        ids_GK = ids_P[(starts_T[tiles_G, None] + place_K).clamp(max=len(ids_P) - 1)]
        ids_GK = torch.where(inside_GK, ids_GK, len(means_N3))
        values_GKC = table_NC.index_select(0, ids_GK.flatten()).reshape(*ids_GK.shape, -1)
        blended.append(_blend(values_GKC, tiles_G % tiles_x * TILE, tiles_G // tiles_x * TILE))
        where.append(tiles_G)
    num_maps = len(background_D) + 1
    maps_TMP = table_NC.new_zeros(tiles_x * tiles_y, num_maps, TILE * TILE)
    if blended:
        maps_TMP = maps_TMP.index_copy(0, torch.cat(where), torch.cat(blended))
    maps = maps_TMP.reshape(tiles_y, tiles_x, num_maps, TILE, TILE).permute(2, 0, 3, 1, 4)
    maps = maps.reshape(num_maps, tiles_y * TILE, tiles_x * TILE)[:, : camera.height, : camera.width]
    alpha = maps[-1:]
    return maps[:-1] + (1 - alpha) * background_D[:, None, None], alpha


def _project(means_N3: Tensor, quats_N4: Tensor, scales_N3: Tensor, opacities_N: Tensor, camera: Camera):
    """Centres in pixels, inverse covariances (a, b, c), depths, and half extents in pixels, 0 for what is not seen."""
    turn_33, shift_3, K = camera.viewmat[:3, :3], camera.viewmat[:3, 3], camera.K
    x, y, z = (means_N3 @ turn_33.T + shift_3).unbind(1)
    near = z > NEAR_M
    z = torch.where(near, z, 1.0)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = 0.15 * camera.width / fx, 0.15 * camera.height / fy
    u = (x / z).clamp(-cx / fx - margin_x, (camera.width - cx) / fx + margin_x)
    v = (y / z).clamp(-cy / fy - margin_y, (camera.height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian_N23 = torch.stack([fx / z, zero, -fx * u / z, zero, fy / z, -fy * v / z], 1).reshape(-1, 2, 3)
    axes_N23 = jacobian_N23 @ turn_33 @ (rotations(quats_N4) * scales_N3[:, None])
    across, along = axes_N23.unbind(1)
    xx, xy, yy = across.square().sum(1) + BLUR_PX2, (across * along).sum(1), along.square().sum(1) + BLUR_PX2
    determinant = xx * yy - xy * xy
    conics_N3 = torch.stack([yy, -xy, xx], 1) / determinant[:, None]
    centers_N2 = torch.stack([fx * x / z + cx, fy * y / z + cy], 1)
    with torch.no_grad():
        sigmas_N = torch.sqrt(2 * torch.log((opacities_N / MIN_ALPHA).clamp(min=1)))
        radii_N2 = torch.ceil(sigmas_N[:, None] * torch.stack([xx, yy], 1).sqrt()) * near[:, None]
    return centers_N2, conics_N3, z, radii_N2


@torch.no_grad()
def _lists(centers_N2: Tensor, radii_N2: Tensor, depths_N: Tensor, tiles_x: int, tiles_y: int) -> tuple[Tensor, Tensor]:
    """Gaussians of all tiles, tile after tile and near to far, and how many each tile has."""
    most_2 = centers_N2.new_tensor([tiles_x, tiles_y])
    low_N2 = torch.minimum(((centers_N2 - radii_N2) / TILE).floor().clamp(min=0), most_2).long()
    high_N2 = torch.minimum(((centers_N2 + radii_N2) / TILE).ceil().clamp(min=0), most_2).long()
    spans_N2 = (high_N2 - low_N2) * (radii_N2 > 0).all(1, keepdim=True)
    order_N = torch.argsort(depths_N, stable=True)
    counts_N = spans_N2.prod(1)[order_N]
    ids_P = order_N.repeat_interleave(counts_N)
    place_P = torch.arange(len(ids_P), device=ids_P.device) - (counts_N.cumsum(0) - counts_N).repeat_interleave(
        counts_N
    )
    width_P = spans_N2[ids_P, 0]
    tile_P = (low_N2[ids_P, 1] + place_P // width_P) * tiles_x + low_N2[ids_P, 0] + place_P % width_P
    tile_P, by_tile_P = torch.sort(tile_P, stable=True)
    return ids_P[by_tile_P], torch.bincount(tile_P, minlength=tiles_x * tiles_y)


def _groups(counts_T: Tensor) -> Iterator[Tensor]:
    """Numbers of the tiles that are not empty, in groups of like load."""
    order = torch.argsort(counts_T, descending=True)
    loads = counts_T[order].tolist()
    first = 0
    while first < len(loads) and loads[first] > 0:
        most = max(1, GROUP_ELEMENTS // (loads[first] * TILE * TILE))
        last = first
        while last < len(loads) and loads[last] > 0 and last - first < most:
            last += 1
        yield order[first:last]
        first = last


def _blend(values_GKC: Tensor, x0_G: Tensor, y0_G: Tensor) -> Tensor:
    """Colours and alpha, [tiles, D + 1, pixels], of tiles whose first pixels are at (x0, y0)."""
    pixel_S = torch.arange(TILE, device=values_GKC.device) + 0.5
    dx_GKS = values_GKC[..., 0:1] - (x0_G[:, None, None] + pixel_S)
    dy_GKS = values_GKC[..., 1:2] - (y0_G[:, None, None] + pixel_S)
    a, b, c, opacity = (values_GKC[..., k : k + 1] for k in (2, 3, 4, 5))
    in_row = (0.5 * a * dx_GKS * dx_GKS)[:, :, None, :]
    in_column = (0.5 * c * dy_GKS * dy_GKS)[:, :, :, None]
    power_GKP = (in_row + in_column + (b * dy_GKS)[:, :, :, None] * dx_GKS[:, :, None, :]).flatten(2)
    value_GKP = (opacity * torch.exp(-power_GKP)).clamp(max=MAX_ALPHA)
    value_GKP = torch.where((value_GKP >= MIN_ALPHA) & (power_GKP >= 0), value_GKP, 0.0)
    after_GKP = torch.cumprod(1 - value_GKP, 1)
    before_GKP = torch.cat([torch.ones_like(after_GKP[:, :1]), after_GKP[:, :-1]], 1)
    weight_GKP = torch.where(after_GKP > MIN_TRANSMITTANCE, value_GKP * before_GKP, 0.0)
    color_GDP = values_GKC[..., 6:].transpose(1, 2) @ weight_GKP
    return torch.cat([color_GDP, weight_GKP.sum(1, keepdim=True)], 1)
