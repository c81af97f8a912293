"""Blends projected Gaussians into an image on the CPU: tiles of 16 x 64 pixels, front to back, and the hand-written gradient.

Rules of the 3D Gaussian Splatting family, as gsplat 1.5 has them: pixel centres at +0.5; a Gaussian with falloff power below 0 or alpha below
1/255 leaves a pixel alone; alpha is clamped at 0.999, without gradient there; a pixel is full when its transmittance would fall to 1e-4, and the
Gaussian that would fill it is left out. Order is by depth, ties by index.

Each tile is one thread's work and each (Gaussian, tile) pair has its own slot of gradients, summed afterwards in one fixed order: no atomics, and
the same bits with any number of threads.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from numba.extending import overload
from numba.np.unsafe.ndarray import to_fixed_tuple
from torch import Tensor

from fiag_dist.kernels.launch import PARALLEL, array, check, launch
from fiag_dist.kernels.tiles import TILE_X, TILE_Y, bin_gaussians

MAX_ALPHA = np.float32(0.999)
MIN_ALPHA = np.float32(1 / 255)
MIN_TRANSMITTANCE = np.float32(1e-4)
NUM_GEOMETRY = 6
"""Gradients of a (Gaussian, tile) pair before its colours': centre x, y; conic a, b, c; opacity."""
NUM_LANES = 3
"""Sums over the rows of a column before those of the colours: of d loss / d power, and of that times dy and dy squared."""

_f4 = np.float32
_LOG2_E = np.float32(math.log2(math.e))
_tuple: Any = to_fixed_tuple  # numba fills in the argument that type checkers miss
_FAST = {"reassoc", "contract", "nsz", "arcp", "nnan", "ninf"}


@njit(inline="always", fastmath=_FAST)
def _exp(x):
    """exp of a float32 x <= 0 by a polynomial that vectorises; relative error 2e-7."""
    x = max(x, _f4(-80.0))
    z = x * _LOG2_E
    whole = np.int32(z - _f4(0.5))
    f = z - _f4(whole)
    p = _f4(1.535336188319500e-4)
    p = p * f + _f4(1.339887440266574e-3)
    p = p * f + _f4(9.618437357674640e-3)
    p = p * f + _f4(5.550332471162809e-2)
    p = p * f + _f4(2.402264791363012e-1)
    p = p * f + _f4(6.931472028550421e-1)
    p = p * f + _f4(1.0)
    return p * np.int32((whole + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(parallel=PARALLEL, cache=True, fastmath=_FAST, error_model="numpy")
def _reach(conics, opacities, out):
    """Fills out [N]: how far above and below its centre a Gaussian's alpha can reach 1/255, pixels."""
    for i in prange(out.shape[0]):
        power = _f4(math.log(opacities[i] * _f4(255.0))) + _f4(1e-3)
        curvature = _f4(0.5) * (conics[i, 2] - conics[i, 1] * conics[i, 1] / conics[i, 0])
        out[i] = math.sqrt(max(power / max(curvature, _f4(1e-12)), _f4(0.0)))


@njit(inline="always")
def _rows(center_y, reach, y0):
    """First and one past the last row that a Gaussian touches of the tile at y0."""
    first = max(0, int(math.floor(center_y - reach - _f4(0.5))) - y0)
    return first, min(TILE_Y, int(math.ceil(center_y + reach + _f4(0.5))) - y0)


# Loops over channels. The number of channels is the length of a tuple, hence known to the compiler, and these three unroll to straight code; an
# ordinary loop in their place keeps the loop over x, which they are called in, from becoming SIMD code (6 times slower).
# A tile's working memory is one array [row, map, x], for the same reason: the compiler need not ask whether two arrays overlap.
def _blend_color(tile, y, x, first, weight, color) -> Any: ...


def _dot_color(tile, y, x, first, color) -> Any: ...


def _add_color(lanes, tile, y, x, first, weight, color) -> Any: ...


_OPTIONS: Any = {"fastmath": _FAST, "error_model": "numpy"}


@overload(_blend_color, jit_options=_OPTIONS)
def _blend_color_typed(tile, y, x, first, weight, color):
    """tile[y, first + k, x] += weight * color[k]"""
    k = len(color) - 1
    if k < 0:
        return lambda tile, y, x, first, weight, color: None

    def blend_color(tile, y, x, first, weight, color):
        _blend_color(tile, y, x, first, weight, color[:-1])
        tile[y, first + k, x] += weight * color[k]

    return blend_color


@overload(_dot_color, jit_options=_OPTIONS)
def _dot_color_typed(tile, y, x, first, color):
    """Sum of tile[y, first + k, x] * color[k]."""
    k = len(color) - 1
    if k < 0:
        return lambda tile, y, x, first, color: _f4(0)
    return lambda tile, y, x, first, color: _dot_color(tile, y, x, first, color[:-1]) + tile[y, first + k, x] * color[k]


@overload(_add_color, jit_options=_OPTIONS)
def _add_color_typed(lanes, tile, y, x, first, weight, color):
    """lanes[NUM_LANES + k, x] += weight * tile[y, first + k, x]"""
    k = len(color) - 1
    if k < 0:
        return lambda lanes, tile, y, x, first, weight, color: None

    def add_color(lanes, tile, y, x, first, weight, color):
        _add_color(lanes, tile, y, x, first, weight, color[:-1])
        lanes[NUM_LANES + k, x] += weight * tile[y, first + k, x]

    return add_color


@njit(parallel=PARALLEL, cache=True, fastmath=_FAST, error_model="numpy")
def _forward(means2d, conics, colors, opacities, reach, ids, offsets, background, tiles_x, image, alpha, ends):
    """Fills image [D, H, W], alpha [H, W] and, per tile, one past the last Gaussian that was looked at."""
    for t in prange(offsets.shape[0] - 1):
        channels = len(background)
        height, width = alpha.shape
        y0 = t // tiles_x * TILE_Y
        x0 = t % tiles_x * TILE_X
        rows = min(TILE_Y, height - y0)
        columns = min(TILE_X, width - x0)
        # Maps: transmittance, 0 once the pixel is full; transmittance at the end; blended colours.
        tile = np.zeros((TILE_Y, 2 + channels, TILE_X), _f4)
        tile[:rows, 0, :columns] = _f4(1)
        tile[:, 1] = _f4(1)
        end = offsets[t]
        corner_x = _f4(x0) + _f4(0.5)
        while end < offsets[t + 1]:
            g = ids[end]
            a = conics[g, 0]
            b = conics[g, 1]
            c = conics[g, 2]
            opacity = opacities[g]
            color = _tuple(colors[g], len(background))
            gx = means2d[g, 0] - corner_x
            gy = means2d[g, 1]
            first, last = _rows(gy, reach[g], y0)
            for y in range(first, last):
                dy = gy - (_f4(y0 + y) + _f4(0.5))
                half_cc = _f4(0.5) * c * dy * dy
                b_dy = b * dy
                for x in range(TILE_X):
                    dx = gx - _f4(x)
                    power = _f4(0.5) * a * dx * dx + b_dy * dx + half_cc
                    value = min(MAX_ALPHA, opacity * _exp(-power))
                    value = value if (value >= MIN_ALPHA) and (power >= _f4(0)) else _f4(0)
                    before = tile[y, 0, x]
                    after = before * (_f4(1) - value)
                    ok = after > MIN_TRANSMITTANCE
                    tile[y, 0, x] = after if ok else _f4(0)
                    tile[y, 1, x] = after if ok else tile[y, 1, x]
                    _blend_color(tile, y, x, 2, value * before if ok else _f4(0), color)
            end += 1
            if (end - offsets[t]) % 16 == 0 and tile[:, 0].max() <= _f4(0):
                break
        ends[t] = end
        for y in range(rows):
            for x in range(columns):
                alpha[y0 + y, x0 + x] = _f4(1) - tile[y, 1, x]
                for k in range(channels):
                    image[k, y0 + y, x0 + x] = tile[y, 2 + k, x] + tile[y, 1, x] * background[k]


@njit(parallel=PARALLEL, cache=True, fastmath=_FAST, error_model="numpy")
def _backward(
    means2d,
    conics,
    colors,
    opacities,
    reach,
    ids,
    slots,
    offsets,
    ends,
    background,
    tiles_x,
    image,
    alpha,
    v_image,
    v_alpha,
    pairs,
):
    """Fills the gradients of each (Gaussian, tile) pair, [pairs, NUM_GEOMETRY + D], walking front to back again."""
    for t in prange(offsets.shape[0] - 1):
        channels = len(background)
        height, width = alpha.shape
        y0 = t // tiles_x * TILE_Y
        x0 = t % tiles_x * TILE_X
        # Maps: transmittance; what lies behind, weighted by the incoming gradient; that gradient.
        tile = np.zeros((TILE_Y, 2 + channels, TILE_X), _f4)
        lanes = np.zeros((NUM_LANES + channels, TILE_X), _f4)
        for y in range(min(TILE_Y, height - y0)):
            for x in range(min(TILE_X, width - x0)):
                tile[y, 0, x] = _f4(1)
                behind = (alpha[y0 + y, x0 + x] - _f4(1)) * v_alpha[y0 + y, x0 + x]
                for k in range(channels):
                    tile[y, 2 + k, x] = v_image[k, y0 + y, x0 + x]
                    behind += v_image[k, y0 + y, x0 + x] * image[k, y0 + y, x0 + x]
                tile[y, 1, x] = behind
        corner_x = _f4(x0) + _f4(0.5)
        for pair in range(offsets[t], ends[t]):
            g = ids[pair]
            a = conics[g, 0]
            b = conics[g, 1]
            c = conics[g, 2]
            opacity = opacities[g]
            color = _tuple(colors[g], len(background))
            gx = means2d[g, 0] - corner_x
            gy = means2d[g, 1]
            first, last = _rows(gy, reach[g], y0)
            lanes[:] = _f4(0)
            for y in range(first, last):
                dy = gy - (_f4(y0 + y) + _f4(0.5))
                half_cc = _f4(0.5) * c * dy * dy
                b_dy = b * dy
                for x in range(TILE_X):
                    dx = gx - _f4(x)
                    power = _f4(0.5) * a * dx * dx + b_dy * dx + half_cc
                    unclamped = opacity * _exp(-power)
                    value = min(MAX_ALPHA, unclamped)
                    value = value if (value >= MIN_ALPHA) and (power >= _f4(0)) else _f4(0)
                    before = tile[y, 0, x]
                    after = before * (_f4(1) - value)
                    ok = after > MIN_TRANSMITTANCE
                    weight = value * before if ok else _f4(0)
                    along = _dot_color(tile, y, x, 2, color)
                    behind = tile[y, 1, x] - weight * along
                    v_power = -unclamped * (along * before - behind / (_f4(1) - value))
                    v_power = v_power if ok and (value > _f4(0)) and (unclamped <= MAX_ALPHA) else _f4(0)
                    tile[y, 0, x] = after if ok else _f4(0)
                    tile[y, 1, x] = behind
                    lanes[0, x] += v_power
                    lanes[1, x] += v_power * dy
                    lanes[2, x] += v_power * dy * dy
                    _add_color(lanes, tile, y, x, 2, weight, color)
            # Moments of d loss / d power over the pixels: geometry's gradient is linear in them.
            m_0 = m_x = m_y = m_xx = m_xy = m_yy = _f4(0)
            for x in range(TILE_X):
                dx = gx - _f4(x)
                m_0 += lanes[0, x]
                m_x += lanes[0, x] * dx
                m_xx += lanes[0, x] * dx * dx
                m_y += lanes[1, x]
                m_xy += lanes[1, x] * dx
                m_yy += lanes[2, x]
            slot = slots[pair]
            pairs[slot, 0] = a * m_x + b * m_y
            pairs[slot, 1] = b * m_x + c * m_y
            pairs[slot, 2] = _f4(0.5) * m_xx
            pairs[slot, 3] = m_xy
            pairs[slot, 4] = _f4(0.5) * m_yy
            pairs[slot, 5] = -m_0 / opacity
            for k in range(channels):
                pairs[slot, NUM_GEOMETRY + k] = lanes[NUM_LANES + k].sum()


@njit(parallel=PARALLEL, cache=True)
def _sum_pairs(pairs, gaussian_offsets, out):
    for i in prange(out.shape[0]):
        for slot in range(gaussian_offsets[i], gaussian_offsets[i + 1]):
            for k in range(out.shape[1]):
                out[i, k] += pairs[slot, k]


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means2d, conics, colors, opacities, radii, depths, background, width, height):
        m, c, f, o = (array(x) for x in (means2d, conics, colors, opacities))
        tiles_x, tiles_y = -(-width // TILE_X), -(-height // TILE_Y)
        order = torch.argsort(depths.detach(), stable=True).numpy()
        reach = np.empty(len(m), np.float32)
        launch(_reach, c, o, reach)
        ids, slots, offsets, gaussian_offsets = launch(bin_gaussians, m, array(radii), order, tiles_x, tiles_y)
        values = tuple(np.float32(v) for v in background.tolist())
        image = np.empty((len(values), height, width), np.float32)
        alpha = np.empty((height, width), np.float32)
        ends = np.empty(tiles_x * tiles_y, np.int64)
        launch(_forward, m, c, f, o, reach, ids, offsets, values, tiles_x, image, alpha, ends)
        image_DHW, alpha_HW = torch.from_numpy(image), torch.from_numpy(alpha)
        ctx.save_for_backward(means2d, conics, colors, opacities, image_DHW, alpha_HW)
        ctx.pairs = (reach, ids, slots, offsets, ends, values, tiles_x, gaussian_offsets)
        return image_DHW, alpha_HW

    @staticmethod
    def backward(ctx: Any, *v_outputs):
        check("blend's gradient", image=v_outputs[0], alpha=v_outputs[1])
        m, c, f, o, image, alpha = (array(x) for x in ctx.saved_tensors)
        reach, ids, slots, offsets, ends, values, tiles_x, gaussian_offsets = ctx.pairs
        # Zeros: pairs behind a tile's last blended Gaussian are never written.
        pairs = np.zeros((len(ids), NUM_GEOMETRY + len(values)), np.float32)
        v_image, v_alpha = (array(v) for v in v_outputs)
        drawn = (m, c, f, o, reach, ids, slots, offsets, ends, values, tiles_x, image, alpha)
        launch(_backward, *drawn, v_image, v_alpha, pairs)
        summed = np.zeros((len(m), pairs.shape[1]), np.float32)
        launch(_sum_pairs, pairs, gaussian_offsets, summed)
        v = torch.from_numpy(summed)
        return v[:, 0:2], v[:, 2:5], v[:, NUM_GEOMETRY:], v[:, 5], None, None, None, None, None


def blend(
    means2d: Float[Tensor, "n 2"],
    conics: Float[Tensor, "n 3"],
    colors: Float[Tensor, "n d"],
    opacities: Float[Tensor, " n"],
    radii: Float[Tensor, "n 2"],
    depths: Float[Tensor, " n"],
    background: Float[Tensor, " d"],
    width: int,
    height: int,
) -> tuple[Float[Tensor, "d height width"], Float[Tensor, "height width"]]:
    """Blends N projected Gaussians over a background colour; CPU, float32.

    means2d, radii: centres and half extents in pixels (radius 0: not drawn); conics: a, b, c of the inverse 2-D covariance [[a, b], [b, c]];
    depths: along the camera's axis, only their order counts. Returns the image and its alpha. Gradients to means2d, conics, colors, opacities.
    Numbers that are not finite are refused in checked mode (`check`); else such a colour spoils the pixels it reaches, and `project` hands no other on.
    """
    check("blend", means2d=means2d, conics=conics, colors=colors, opacities=opacities, radii=radii, depths=depths)
    check("blend", background=background)
    return _Blend.apply(means2d, conics, colors, opacities, radii, depths, background, width, height)  # type: ignore[return-value]
