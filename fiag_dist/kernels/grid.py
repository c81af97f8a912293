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
BLOCK = 1024
PLANES = 3
"""Projections of a point (x, y, z): (x, y), (y, z), (x, z)."""

_f4 = np.float32
_PRIME = np.uint32(PRIME)


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
    """Rows of the four corners around (u, v), relative to the level, and the position between them. Unsigned: no index counts from the end."""
    pos_x = u * scale + _f4(0.5)
    pos_y = v * scale + _f4(0.5)
    whole_x = np.int32(pos_x)
    whole_y = np.int32(pos_y)
    ix = np.uint32(whole_x)
    iy = np.uint32(whole_y)
    one = np.uint32(1)
    if hashed:  # the size is a power of two then
        h0 = iy * _PRIME
        h1 = h0 + _PRIME
        mask = size - one
        r00 = (ix ^ h0) & mask
        r10 = ((ix + one) ^ h0) & mask
        r01 = (ix ^ h1) & mask
        r11 = ((ix + one) ^ h1) & mask
    else:
        # The last half cell reaches one vertex beyond the side: tiny-cuda-nn wraps it round, and so do we.
        r00 = ix + iy * side
        r10 = r00 + one
        r01 = r00 + side
        r11 = r01 + one
        r00 = r00 - size if r00 >= size else r00
        r10 = r10 - size if r10 >= size else r10
        r01 = r01 - size if r01 >= size else r01
        r11 = r11 - size if r11 >= size else r11
    return r00, r10, r01, r11, pos_x - _f4(whole_x), pos_y - _f4(whole_y)


@njit(inline="always")
def _level(index, offsets, scales, sides):
    """Of the index-th (plane, level): the axes of its two coordinates, scale, side, size and first number in a table of F features a row."""
    levels = len(scales)
    plane = index // levels
    level = index - plane * levels
    first = plane * offsets[levels] + offsets[level]
    size = np.uint32(offsets[level + 1] - offsets[level])
    return 1 if plane == 1 else 0, 1 if plane == 0 else 2, scales[level], np.uint32(sides[level]), size, first


@njit(cache=True)
def _planar(points, out):
    """Fills out [4, N]: coordinates, in the middle for points outside of 0..1 (or not a number), and 1 or 0 for inside or outside."""
    for n in range(points.shape[0]):
        inside = True
        for k in range(3):
            inside &= (points[n, k] >= 0) & (points[n, k] <= 1)
        for k in range(3):
            out[k, n] = points[n, k] if inside else _f4(0.5)
        out[3, n] = _f4(inside)


@njit(inline="always", fastmath=True)
def _read(out, u, v, inside, values, begin, end, stride, scale, side, size, hashed):
    for n in range(begin, end):
        r00, r10, r01, r11, fx, fy = _cell(u[n], v[n], scale, side, size, hashed)
        gx = _f4(1) - fx
        near = gx * values[r00 * stride] + fx * values[r10 * stride]
        far = gx * values[r01 * stride] + fx * values[r11 * stride]
        out[n] = inside[n] * ((_f4(1) - fy) * near + fy * far)


@njit(parallel=PARALLEL, cache=True, fastmath=True, error_model="numpy")
def _forward(planar, table, offsets, scales, sides, hashed, out):
    """planar [4, N] as `_planar` fills it, table [3, rows, F]; fills out [3 * L, F, N]. The loops over points are SIMD code."""
    num = planar.shape[1]
    features = table.shape[2]
    numbers = table.reshape(-1)
    blocks = (num + BLOCK - 1) // BLOCK
    for task in prange(PLANES * len(scales) * blocks):
        index = task // blocks
        axis_u, axis_v, scale, side, size, first = _level(index, offsets, scales, sides)
        begin = (task - index * blocks) * BLOCK
        end = min(num, begin + BLOCK)
        for f in range(features):
            values = numbers[first * features + f :]
            stride = np.uint32(features)
            u, v, inside, target = planar[axis_u], planar[axis_v], planar[3], out[index, f]
            if hashed[index % len(scales)]:
                _read(target, u, v, inside, values, begin, end, stride, scale, side, size, True)
            else:
                _read(target, u, v, inside, values, begin, end, stride, scale, side, size, False)


@njit(parallel=PARALLEL, cache=True, fastmath=True, error_model="numpy")
def _backward_table(planar, offsets, scales, sides, hashed, v_out, v_table):
    """Adds to v_table [3, rows, F]. Corners and weights of a block of points come first, as SIMD code; then they are added one by one."""
    num = planar.shape[1]
    features = v_table.shape[2]
    numbers = v_table.reshape(-1)
    for task in prange(PLANES * len(scales)):
        index = PLANES * len(scales) - 1 - task  # large levels first: better balance
        axis_u, axis_v, scale, side, size, first = _level(index, offsets, scales, sides)
        u, v, inside = planar[axis_u], planar[axis_v], planar[3]
        is_hashed = hashed[index % len(scales)]
        rows = np.empty((4, BLOCK), np.uint32)
        weights = np.empty((4, BLOCK), _f4)
        for f in range(features):
            incoming = v_out[index, f]
            sums = numbers[first * features + f :]
            stride = np.uint32(features)
            for begin in range(0, num, BLOCK):
                count = min(BLOCK, num - begin)
                for k in range(count):
                    n = begin + k
                    r00, r10, r01, r11, fx, fy = _cell(u[n], v[n], scale, side, size, is_hashed)
                    w = incoming[n] * inside[n]
                    w_far = w * fy
                    w_near = w - w_far
                    rows[0, k] = r00 * stride
                    rows[1, k] = r10 * stride
                    rows[2, k] = r01 * stride
                    rows[3, k] = r11 * stride
                    weights[0, k] = w_near - w_near * fx
                    weights[1, k] = w_near * fx
                    weights[2, k] = w_far - w_far * fx
                    weights[3, k] = w_far * fx
                for k in range(count):
                    for corner in range(4):
                        sums[rows[corner, k]] += weights[corner, k]


@njit(parallel=PARALLEL, cache=True, fastmath=True, error_model="numpy")
def _backward_points(planar, table, offsets, scales, sides, hashed, v_out, v_points):
    """Adds to v_points [3, N]: each block of points is one thread's, over all planes and levels."""
    num = planar.shape[1]
    features = table.shape[2]
    numbers = table.reshape(-1)
    for block in prange((num + BLOCK - 1) // BLOCK):
        for index in range(PLANES * len(scales)):
            axis_u, axis_v, scale, side, size, first = _level(index, offsets, scales, sides)
            u, v, inside = planar[axis_u], planar[axis_v], planar[3]
            v_u, v_v = v_points[axis_u], v_points[axis_v]
            is_hashed = hashed[index % len(scales)]
            for f in range(features):
                incoming = v_out[index, f]
                values = numbers[first * features + f :]
                stride = np.uint32(features)
                for n in range(block * BLOCK, min(num, block * BLOCK + BLOCK)):
                    r00, r10, r01, r11, fx, fy = _cell(u[n], v[n], scale, side, size, is_hashed)
                    w = incoming[n] * inside[n] * scale
                    t00, t10, t01, t11 = (
                        values[r00 * stride],
                        values[r10 * stride],
                        values[r01 * stride],
                        values[r11 * stride],
                    )
                    v_u[n] += w * ((_f4(1) - fy) * (t10 - t00) + fy * (t11 - t01))
                    v_v[n] += w * ((_f4(1) - fx) * (t01 - t00) + fx * (t11 - t10))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points, table, grid: Layout):
        num, features, levels = len(points), table.shape[2], len(grid.scales)
        out = np.empty((PLANES * levels, features, num), np.float32)
        planar = np.empty((4, num), np.float32)
        launch(_planar, array(points), planar)
        launch(_forward, planar, array(table), grid.offsets, grid.scales, grid.sides, grid.hashed, out)
        ctx.save_for_backward(points, table)
        ctx.grid, ctx.planar = grid, planar
        # A view: matrix products take it as it is, and hand the gradient back in the same order.
        return torch.from_numpy(out).reshape(PLANES * levels * features, num).T

    @staticmethod
    def backward(ctx: Any, *v_outputs):
        check("encode's gradient", features=v_outputs[0])
        points, table_3RF = ctx.saved_tensors
        grid: Layout = ctx.grid
        num, features, levels = len(points), table_3RF.shape[2], len(grid.scales)
        v_out = array(v_outputs[0].T).reshape(PLANES * levels, features, num)
        where = (grid.offsets, grid.scales, grid.sides, grid.hashed)
        v_table = np.zeros(table_3RF.shape, np.float32)
        launch(_backward_table, ctx.planar, *where, v_out, v_table)
        v_points = None
        if ctx.needs_input_grad[0]:
            v_3N = np.zeros((3, num), np.float32)
            launch(_backward_points, ctx.planar, array(table_3RF), *where, v_out, v_3N)
            v_points = torch.from_numpy(v_3N).T
        return v_points, torch.from_numpy(v_table), None


def encode(points: Float[Tensor, "n 3"], table: Float[Tensor, "3 rows f"], grid: Layout) -> Float[Tensor, "n d"]:
    """Features of N points on the three planes, [N, 3 * levels * f]: plane by plane, then level, then feature; CPU, float32.

    points: 0..1 inside; a point with a coordinate outside gets zeros and passes no gradient. Gradients to points and table.
    Numbers that are not finite are refused in checked mode (`check`); else such a point counts as outside, and such an entry spoils its cells' features.
    """
    check("encode", points=points, table=table)
    return _Encode.apply(points, table, grid)  # type: ignore[return-value]
