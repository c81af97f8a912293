"""Blends projected Gaussians into an image on the CPU: tiles of 128 x 64 pixels, a block of 4 x 4 at once, front to back, and the hand-written gradient.

Rules of the 3D Gaussian Splatting family, as gsplat 1.5 has them: pixel centres at +0.5; a Gaussian with falloff power below 0 or alpha below
1/255 leaves a pixel alone; alpha is clamped at 0.999, without gradient there; a pixel is full when its transmittance would fall to 1e-4, and the
Gaussian that would fill it is left out. Order is by depth, ties by index.

Each tile is one thread's work and each (Gaussian, tile) pair has its own slot of gradients, summed afterwards in one fixed order: no atomics, and
the same bits with any number of threads.
"""

from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from numba.extending import overload
from torch import Tensor

from fiag_dist.kernels.blocks import BLOCKS, is_full, place, tile_memory
from fiag_dist.kernels.falloff import LOG2_E, MAX_ALPHA, SHAPE, alpha_at, measure, row_of_blocks, rows_of
from fiag_dist.kernels.launch import PARALLEL, array, check, launch
from fiag_dist.kernels.tiles import TILE_X, TILE_Y, bin_gaussians, deal, near_to_far
from fiag_dist.kernels.vectors import (
    BLOCK_X,
    BLOCK_Y,
    LANES,
    absolute,
    anywhere,
    choose,
    everywhere,
    load,
    store,
    total,
)

MIN_TRANSMITTANCE = np.float32(1e-4)
NUM_GEOMETRY = 6
"""Gradients of a (Gaussian, tile) pair before its colours': centre x, y; conic a, b, c; opacity."""

_f4 = np.float32


# One sum for each channel. Their number is the length of a tuple, hence known to the compiler, which keeps all of them in registers.
def _zeros(background) -> Any: ...


def _add_colors(sums, weight, tile, at) -> Any: ...


@overload(_zeros)
def _zeros_typed(background):
    """Zero for each channel."""
    if not len(background):
        return lambda background: ()
    return lambda background: (everywhere(_f4(0)), *_zeros(background[1:]))


@overload(_add_colors)
def _add_colors_typed(sums, weight, tile, at):
    """sums[k] + weight * (the block's map that is k further on)."""
    if not len(sums):
        return lambda sums, weight, tile, at: ()

    def add_colors(sums, weight, tile, at):
        return (sums[0] + weight * load(tile, at), *_add_colors(sums[1:], weight, tile, at + LANES))

    return add_colors


@njit(parallel=PARALLEL, cache=True, error_model="numpy")
def _forward(means2d, conics, colors, opacities, shape, ids, offsets, dealt, background, tiles_x, image, alpha, ends):
    """Fills image [D, H, W], alpha [H, W] and, per tile, one past the last Gaussian that was looked at."""
    for i in prange(len(dealt)):
        t = dealt[i]
        channels = len(background)
        height, width = alpha.shape
        y0 = t // tiles_x * TILE_Y
        x0 = t % tiles_x * TILE_X
        tile_rows, tile_columns = min(TILE_Y, height - y0), min(TILE_X, width - x0)
        # Transmittance, its negative once the pixel is full; blended colours.
        maps = 1 + channels
        tile = tile_memory(maps)
        for y in range(tile_rows):
            for x in range(tile_columns):
                tile[place(x, y, maps)] = _f4(1)
        nothing, clear, next_block = everywhere(_f4(0)), everywhere(MIN_TRANSMITTANCE), everywhere(_f4(BLOCK_X))
        end = offsets[t]
        while end < offsets[t + 1]:
            g = ids[end]
            fall, faintest, opacity = everywhere(shape[g, 1]), everywhere(shape[g, 3]), everywhere(opacities[g])
            gx = means2d[g, 0] - (_f4(x0) + _f4(0.5))
            gy = means2d[g, 1] - (_f4(y0) + _f4(0.5))
            first, last = rows_of(gy, shape[g, 4])
            for row in range(first // BLOCK_Y, (last + BLOCK_Y - 1) // BLOCK_Y):
                left, right, _, ridge, fade, px = row_of_blocks(gx, gy, shape, g, row, first, last)
                for block in range(left, right):
                    at = (row * BLOCKS + block) * maps * LANES
                    across = ridge - px
                    px += next_block
                    before = load(tile, at)
                    if not anywhere(before > nothing):
                        continue
                    _, value = alpha_at(fall * across * across + fade, opacity, faintest)
                    after = before - before * value
                    ok = after > clear
                    store(tile, at, choose(ok, after, nothing - absolute(before)))
                    weight = choose(ok, value * before, nothing)
                    for k in range(channels):
                        color = at + (1 + k) * LANES
                        store(tile, color, load(tile, color) + weight * everywhere(colors[g, k]))
            end += 1
            if (end - offsets[t]) % 16 == 0 and is_full(tile, maps):
                break
        ends[t] = end
        for y in range(tile_rows):
            for x in range(tile_columns):
                at = place(x, y, maps)
                left_over = abs(tile[at])
                alpha[y0 + y, x0 + x] = _f4(1) - left_over
                for k in range(channels):
                    image[k, y0 + y, x0 + x] = tile[at + (1 + k) * LANES] + left_over * background[k]


@njit(parallel=PARALLEL, cache=True, error_model="numpy")
def _backward(
    means2d,
    conics,
    colors,
    opacities,
    shape,
    ids,
    slots,
    offsets,
    dealt,
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
    for i in prange(len(dealt)):
        t = dealt[i]
        channels = len(background)
        height, width = alpha.shape
        y0 = t // tiles_x * TILE_Y
        x0 = t % tiles_x * TILE_X
        tile_rows, tile_columns = min(TILE_Y, height - y0), min(TILE_X, width - x0)
        # Transmittance; what lies behind, weighted by the incoming gradient; that gradient.
        maps = 2 + channels
        tile = tile_memory(maps)
        for y in range(tile_rows):
            for x in range(tile_columns):
                at = place(x, y, maps)
                weighted = (alpha[y0 + y, x0 + x] - _f4(1)) * v_alpha[y0 + y, x0 + x]
                for k in range(channels):
                    incoming = v_image[k, y0 + y, x0 + x]
                    weighted += incoming * image[k, y0 + y, x0 + x]
                    tile[at + (2 + k) * LANES] = incoming
                tile[at] = _f4(1)
                tile[at + LANES] = weighted
        one, nothing, clear = everywhere(_f4(1)), everywhere(_f4(0)), everywhere(MIN_TRANSMITTANCE)
        most, next_block = everywhere(MAX_ALPHA), everywhere(_f4(BLOCK_X))
        for pair in range(offsets[t], ends[t]):
            g = ids[pair]
            fall, faintest, opacity = everywhere(shape[g, 1]), everywhere(shape[g, 3]), everywhere(opacities[g])
            gx = means2d[g, 0] - (_f4(x0) + _f4(0.5))
            gy = means2d[g, 1] - (_f4(y0) + _f4(0.5))
            first, last = rows_of(gy, shape[g, 4])
            # Moments of d loss / d power over the pixels: geometry's gradient is linear in them.
            s_0 = s_a = s_y = s_aa = s_ay = s_yy = nothing
            s_colors = _zeros(background)
            for row in range(first // BLOCK_Y, (last + BLOCK_Y - 1) // BLOCK_Y):
                left, right, dy, ridge, fade, px = row_of_blocks(gx, gy, shape, g, row, first, last)
                row_0 = row_a = nothing
                for block in range(left, right):
                    at = (row * BLOCKS + block) * maps * LANES
                    across = ridge - px
                    px += next_block
                    before = load(tile, at)
                    if not anywhere(before > nothing):
                        continue
                    unclamped, value = alpha_at(fall * across * across + fade, opacity, faintest)
                    after = before - before * value
                    ok = after > clear
                    weight = choose(ok, value * before, nothing)
                    along = nothing
                    for k in range(channels):
                        along += load(tile, at + (2 + k) * LANES) * everywhere(colors[g, k])
                    behind = load(tile, at + LANES) - weight * along
                    v_power = unclamped * (behind / (one - value) - along * before)
                    v_power = choose(ok & (value > nothing) & (unclamped <= most), v_power, nothing)
                    store(tile, at, choose(ok, after, nothing))
                    store(tile, at + LANES, behind)
                    v_across = v_power * across
                    row_0 += v_power
                    row_a += v_across
                    s_aa += v_across * across
                    s_colors = _add_colors(s_colors, weight, tile, at + 2 * LANES)
                s_0 += row_0
                s_a += row_a
                s_y += row_0 * dy
                s_ay += row_a * dy
                s_yy += row_0 * dy * dy
            slot, slope, drop = slots[pair], shape[g, 0], shape[g, 2]
            v_x = conics[g, 0] * total(s_a)
            m_aa, m_ay, m_yy = np.float64(total(s_aa)), np.float64(total(s_ay)), np.float64(total(s_yy))
            shear = np.float64(slope)
            pairs[slot, 0] = v_x
            pairs[slot, 1] = slope * v_x - _f4(2 / LOG2_E) * drop * total(s_y)
            pairs[slot, 2] = 0.5 * (m_aa - 2 * shear * m_ay + shear * shear * m_yy)
            pairs[slot, 3] = m_ay - shear * m_yy
            pairs[slot, 4] = 0.5 * m_yy
            pairs[slot, 5] = -total(s_0) / opacities[g]
            for k in range(channels):
                pairs[slot, NUM_GEOMETRY + k] = total(s_colors[k])


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
        order = launch(near_to_far, array(depths))
        shape = np.empty((len(m), SHAPE), np.float32)
        launch(measure, c, o, shape)
        ids, slots, offsets, gaussian_offsets, work = launch(bin_gaussians, m, array(radii), order, tiles_x, tiles_y)
        dealt = launch(deal, work, numba.get_num_threads())
        values = tuple(np.float32(v) for v in background.tolist())
        image = np.empty((len(values), height, width), np.float32)
        alpha = np.empty((height, width), np.float32)
        ends = np.empty(tiles_x * tiles_y, np.int64)
        launch(_forward, m, c, f, o, shape, ids, offsets, dealt, values, tiles_x, image, alpha, ends)
        image_DHW, alpha_HW = torch.from_numpy(image), torch.from_numpy(alpha)
        ctx.save_for_backward(means2d, conics, colors, opacities, image_DHW, alpha_HW)
        ctx.pairs = (shape, ids, slots, offsets, dealt, ends, values, tiles_x, gaussian_offsets)
        return image_DHW, alpha_HW

    @staticmethod
    def backward(ctx: Any, *v_outputs):
        check("blend's gradient", image=v_outputs[0], alpha=v_outputs[1])
        m, c, f, o, image, alpha = (array(x) for x in ctx.saved_tensors)
        shape, ids, slots, offsets, dealt, ends, values, tiles_x, gaussian_offsets = ctx.pairs
        # Zeros: pairs behind a tile's last blended Gaussian are never written.
        pairs = np.zeros((len(ids), NUM_GEOMETRY + len(values)), np.float32)
        v_image, v_alpha = (array(v) for v in v_outputs)
        drawn = (m, c, f, o, shape, ids, slots, offsets, dealt, ends, values, tiles_x, image, alpha)
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
