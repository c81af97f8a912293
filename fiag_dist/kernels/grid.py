"""Tri-plane multi-resolution grid on the CPU: bilinear look-ups in tables laid out as tiny-cuda-nn lays them out, and their gradient.

The gradient of a (plane, level)'s rows belongs to one thread, which walks the points in order: no atomics, the same bits with any number of
threads.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from numba import njit, prange
from torch import Tensor

from fiag_dist.kernels.launch import PARALLEL, array, check, launch

PRIME = 2654435761
BLOCK = 2048
PLANES = 3
"""Projections of a point (x, y, z): (x, y), (y, z), (x, z)."""

_f4 = np.float32


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each of L levels lies in a plane's table, and how a coordinate in 0..1 finds its cell: floor(x * scale + 0.5)."""

    growth: float
    """Ratio of neighbouring levels' sizes."""
    offsets: Int64[np.ndarray, " levels+1"]
    """First row of each level, and the number of rows in all."""
    scales: Float32[np.ndarray, " levels"]
    sides: Int64[np.ndarray, " levels"]
    """Vertices along an axis: the stride of y in a level that is not hashed."""
    hashed: Bool[np.ndarray, " levels"]

    @property
    def rows(self) -> int:
        return int(self.offsets[-1])


def layout(levels: int, base: int, finest: float, log2_table: int) -> Layout:
    """The layout of tiny-cuda-nn's HashGrid in two dimensions (Mueller et al., Instant neural graphics primitives), one plane.

    The growth is taken 1e-5 short: where a level would have a whole number of vertices, rounding in float32 then cannot decide otherwise on another
    machine or in tiny-cuda-nn, and a table fits everywhere.
    """
    growth = np.float32((finest / base) ** (1 / max(levels - 1, 1)) * (1 - 1e-5))
    scales = np.exp2(np.arange(levels, dtype=np.float32) * np.log2(growth)) * np.float32(base) - np.float32(1)
    sides = np.ceil(scales).astype(np.int64) + 1
    sizes = np.minimum(-(-(sides**2) // 8) * 8, 2**log2_table)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Layout(
        growth=float(growth), offsets=offsets, scales=scales.astype(np.float32), sides=sides, hashed=sides**2 > sizes
    )


@njit(inline="always")
def _cell(u, v, scale, side, size, hashed):
    """Rows of the four corners around (u, v), relative to the level, and the position between them."""
    pos_x = u * scale + _f4(0.5)
    pos_y = v * scale + _f4(0.5)
    ix = np.int32(pos_x)
    iy = np.int32(pos_y)
    if hashed:  # the size is a power of two then
        h0 = iy * PRIME
        h1 = h0 + PRIME
        mask = size - 1
        r00 = np.int32((ix ^ h0) & mask)
        r10 = np.int32((ix + 1 ^ h0) & mask)
        r01 = np.int32((ix ^ h1) & mask)
        r11 = np.int32((ix + 1 ^ h1) & mask)
    else:
        # The last half cell reaches one vertex beyond the side: tiny-cuda-nn wraps it round, and so do we.
        r00 = np.int32(ix + iy * side)
        r10 = np.int32(r00 + 1)
        r01 = np.int32(r00 + side)
        r11 = np.int32(r01 + 1)
        r00 = np.int32(r00 - size if r00 >= size else r00)
        r10 = np.int32(r10 - size if r10 >= size else r10)
        r01 = np.int32(r01 - size if r01 >= size else r01)
        r11 = np.int32(r11 - size if r11 >= size else r11)
    return r00, r10, r01, r11, pos_x - _f4(ix), pos_y - _f4(iy)


@njit(parallel=PARALLEL, cache=True, fastmath=True, error_model="numpy")
def _forward(points, inside, table, offsets, scales, sides, hashed, out):
    """points [3, N] in 0..1, inside [N] 1 or 0, table [3, rows, F]; fills out [3 * L, F, N]. The loop over points is SIMD code."""
    levels = len(scales)
    num = points.shape[1]
    blocks = (num + BLOCK - 1) // BLOCK
    for task in prange(PLANES * levels * blocks):
        index = task // blocks
        plane = index // levels
        level = index - plane * levels
        u = points[1 if plane == 1 else 0]
        v = points[1 if plane == 0 else 2]
        scale = scales[level]
        side = np.int32(sides[level])
        size = np.int32(offsets[level + 1] - offsets[level])
        is_hashed = hashed[level]
        first = (task - index * blocks) * BLOCK
        for f in range(table.shape[2]):
            values = table[plane, offsets[level] : offsets[level + 1], f]
            target = out[index, f]
            for n in range(first, min(num, first + BLOCK)):
                r00, r10, r01, r11, fx, fy = _cell(u[n], v[n], scale, side, size, is_hashed)
                gx = _f4(1) - fx
                near = gx * values[r00] + fx * values[r10]
                far = gx * values[r01] + fx * values[r11]
                target[n] = inside[n] * ((_f4(1) - fy) * near + fy * far)


@njit(parallel=PARALLEL, cache=True, fastmath=True, error_model="numpy")
def _backward(points, inside, table, offsets, scales, sides, hashed, v_out, v_table, v_uv, want_points):
    """Adds to v_table [3, rows, F] and, where wanted, to v_uv [3 * L, 2, N], the gradient of each (plane, level)'s two coordinates."""
    levels = len(scales)
    for task in prange(PLANES * levels):
        index = PLANES * levels - 1 - task  # large levels first: better balance
        plane = index // levels
        level = index - plane * levels
        u = points[1 if plane == 1 else 0]
        v = points[1 if plane == 0 else 2]
        scale = scales[level]
        side = np.int32(sides[level])
        size = np.int32(offsets[level + 1] - offsets[level])
        is_hashed = hashed[level]
        for f in range(table.shape[2]):
            incoming = v_out[index, f]
            sums = v_table[plane, offsets[level] : offsets[level + 1], f]
            for n in range(points.shape[1]):
                r00, r10, r01, r11, fx, fy = _cell(u[n], v[n], scale, side, size, is_hashed)
                w = incoming[n] * inside[n]
                w_far = w * fy
                w_near = w - w_far
                sums[r00] += w_near - w_near * fx
                sums[r10] += w_near * fx
                sums[r01] += w_far - w_far * fx
                sums[r11] += w_far * fx
            if want_points:
                values = table[plane, offsets[level] : offsets[level + 1], f]
                v_u = v_uv[index, 0]
                v_v = v_uv[index, 1]
                for n in range(points.shape[1]):
                    r00, r10, r01, r11, fx, fy = _cell(u[n], v[n], scale, side, size, is_hashed)
                    w = incoming[n] * inside[n] * scale
                    t00, t10, t01, t11 = values[r00], values[r10], values[r01], values[r11]
                    v_u[n] += w * ((_f4(1) - fy) * (t10 - t00) + fy * (t11 - t01))
                    v_v[n] += w * ((_f4(1) - fx) * (t01 - t00) + fx * (t11 - t10))


def _planar(points_N3: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [3, N], in the middle for points outside, and 1 or 0 for inside or outside [N]."""
    points_3N = points_N3.detach().float().T
    inside_N = ((points_3N >= 0) & (points_3N <= 1)).all(0)
    return array(torch.where(inside_N, points_3N, 0.5)), array(inside_N)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points, table, grid: Layout):
        num, features, levels = len(points), table.shape[2], len(grid.scales)
        out = np.empty((PLANES * levels, features, num), np.float32)
        coordinates, inside = _planar(points)
        launch(_forward, coordinates, inside, array(table), grid.offsets, grid.scales, grid.sides, grid.hashed, out)
        ctx.save_for_backward(points, table)
        ctx.grid = grid
        return torch.from_numpy(out).reshape(PLANES * levels * features, num).T.contiguous()

    @staticmethod
    def backward(ctx: Any, *v_outputs):
        check("encode's gradient", features=v_outputs[0])
        points, table_3RF = ctx.saved_tensors
        grid: Layout = ctx.grid
        want_points = ctx.needs_input_grad[0]
        num, features, levels = len(points), table_3RF.shape[2], len(grid.scales)
        coordinates, inside = _planar(points)
        v_out = array(v_outputs[0].T).reshape(PLANES * levels, features, num)
        table = array(table_3RF)
        v_table = np.zeros_like(table)
        v_uv = np.zeros((PLANES * levels, 2, num if want_points else 0), np.float32)
        launch(
            _backward,
            coordinates,
            inside,
            table,
            grid.offsets,
            grid.scales,
            grid.sides,
            grid.hashed,
            v_out,
            v_table,
            v_uv,
            want_points,
        )
        v_points = None
        if want_points:
            xy, yz, xz = torch.from_numpy(v_uv).reshape(PLANES, levels, 2, num).sum(1)
            v_points = torch.stack([xy[0] + xz[0], xy[1] + yz[0], yz[1] + xz[1]], -1)
        return v_points, torch.from_numpy(v_table), None


def encode(points: Float[Tensor, "n 3"], table: Float[Tensor, "3 rows f"], grid: Layout) -> Float[Tensor, "n d"]:
    """Features of N points on the three planes, [N, 3 * levels * f]: plane by plane, then level, then feature; CPU, float32.

    points: 0..1 inside; a point with a coordinate outside gets zeros and passes no gradient. Gradients to points and table.
    Numbers that are not finite are refused in checked mode (`check`); else such a point counts as outside, and such an entry spoils its cells' features.
    """
    check("encode", points=points, table=table)
    return _Encode.apply(points, table, grid)  # type: ignore[return-value]
