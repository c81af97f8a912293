"""Tri-plane multi-resolution grid on the CPU: bilinear look-ups in tables laid out as tiny-cuda-nn lays them out, and their gradient.

The gradient of a (plane, level)'s rows belongs to one thread, which walks the points in order: no atomics, the same bits with any number of
threads. The kernels hold the interpreter's lock, so Python threads take turns.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from numba import njit, prange
from torch import Tensor

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
    ix = np.int64(pos_x)
    iy = np.int64(pos_y)
    if hashed:  # the size is a power of two then
        h0 = iy * PRIME
        h1 = h0 + PRIME
        mask = size - 1
        r00 = (ix ^ h0) & mask
        r10 = ((ix + 1) ^ h0) & mask
        r01 = (ix ^ h1) & mask
        r11 = ((ix + 1) ^ h1) & mask
    else:
        r00 = ix + iy * side
        r10 = r00 + 1
        r01 = r00 + side
        r11 = r01 + 1
        # The last half cell reaches one vertex beyond the side: tiny-cuda-nn wraps it round, and so do we.
        r00 = r00 - size if r00 >= size else r00
        r10 = r10 - size if r10 >= size else r10
        r01 = r01 - size if r01 >= size else r01
        r11 = r11 - size if r11 >= size else r11
    return r00, r10, r01, r11, pos_x - _f4(ix), pos_y - _f4(iy)


@njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def _forward(points, table, offsets, scales, sides, hashed, out):
    """points [N, 3] in 0..1, table [3, rows, F]; fills out [3 * L, N, F], zeros for points outside."""
    levels = len(scales)
    num = points.shape[0]
    blocks = (num + BLOCK - 1) // BLOCK
    for task in prange(PLANES * levels * blocks):
        index = task // blocks
        plane = index // levels
        level = index - plane * levels
        axis_u = 1 if plane == 1 else 0
        axis_v = 1 if plane == 0 else 2
        offset = offsets[level]
        size = offsets[level + 1] - offset
        first = (task - index * blocks) * BLOCK
        for n in range(first, min(num, first + BLOCK)):
            x = points[n, 0]
            y = points[n, 1]
            z = points[n, 2]
            if not (x >= 0 and x <= 1 and y >= 0 and y <= 1 and z >= 0 and z <= 1):
                out[index, n, :] = _f4(0)
                continue
            r00, r10, r01, r11, fx, fy = _cell(
                points[n, axis_u], points[n, axis_v], scales[level], sides[level], size, hashed[level]
            )
            gx = _f4(1) - fx
            gy = _f4(1) - fy
            for f in range(table.shape[2]):
                near = gx * table[plane, offset + r00, f] + fx * table[plane, offset + r10, f]
                far = gx * table[plane, offset + r01, f] + fx * table[plane, offset + r11, f]
                out[index, n, f] = gy * near + fy * far


@njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def _backward(points, table, offsets, scales, sides, hashed, v_out, v_table, v_uv, want_points):
    """Adds to v_table [3, rows, F] and fills v_uv [3 * L, N, 2], the gradient of each (plane, level)'s two coordinates."""
    levels = len(scales)
    for task in prange(PLANES * levels):
        index = PLANES * levels - 1 - task  # large levels first: better balance
        plane = index // levels
        level = index - plane * levels
        axis_u = 1 if plane == 1 else 0
        axis_v = 1 if plane == 0 else 2
        offset = offsets[level]
        size = offsets[level + 1] - offset
        for n in range(points.shape[0]):
            x = points[n, 0]
            y = points[n, 1]
            z = points[n, 2]
            if not (x >= 0 and x <= 1 and y >= 0 and y <= 1 and z >= 0 and z <= 1):
                continue
            r00, r10, r01, r11, fx, fy = _cell(
                points[n, axis_u], points[n, axis_v], scales[level], sides[level], size, hashed[level]
            )
            gx = _f4(1) - fx
            gy = _f4(1) - fy
            v_u = _f4(0)
            v_v = _f4(0)
            for f in range(table.shape[2]):
                v = v_out[index, n, f]
                v_table[plane, offset + r00, f] += gx * gy * v
                v_table[plane, offset + r10, f] += fx * gy * v
                v_table[plane, offset + r01, f] += gx * fy * v
                v_table[plane, offset + r11, f] += fx * fy * v
                if want_points:
                    t00 = table[plane, offset + r00, f]
                    t10 = table[plane, offset + r10, f]
                    t01 = table[plane, offset + r01, f]
                    t11 = table[plane, offset + r11, f]
                    v_u += v * (gy * (t10 - t00) + fy * (t11 - t01))
                    v_v += v * (gx * (t01 - t00) + fx * (t11 - t10))
            if want_points:
                v_uv[index, n, 0] = v_u * scales[level]
                v_uv[index, n, 1] = v_v * scales[level]


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as C-contiguous float32: one type, so that each kernel is compiled once."""
    return tensor.detach().to(torch.float32).contiguous().numpy()


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points, table, grid: Layout):
        num, features, levels = len(points), table.shape[2], len(grid.scales)
        out = np.empty((PLANES * levels, num, features), np.float32)
        _forward(_array(points), _array(table), grid.offsets, grid.scales, grid.sides, grid.hashed, out)
        ctx.save_for_backward(points, table)
        ctx.grid = grid
        return torch.from_numpy(out).permute(1, 0, 2).reshape(num, out.shape[0] * features)

    @staticmethod
    def backward(ctx: Any, *v_outputs):
        points, table = (_array(x) for x in ctx.saved_tensors)
        grid: Layout = ctx.grid
        want_points = ctx.needs_input_grad[0]
        num, features, levels = len(points), table.shape[2], len(grid.scales)
        v_out = _array(v_outputs[0].reshape(num, PLANES * levels, features).permute(1, 0, 2))
        v_table = np.zeros_like(table)
        v_uv = np.zeros((PLANES * levels, num if want_points else 0, 2), np.float32)
        _backward(points, table, grid.offsets, grid.scales, grid.sides, grid.hashed, v_out, v_table, v_uv, want_points)
        v_points = None
        if want_points:
            xy, yz, xz = torch.from_numpy(v_uv).reshape(PLANES, levels, num, 2).sum(1)
            v_points = torch.stack([xy[:, 0] + xz[:, 0], xy[:, 1] + yz[:, 0], yz[:, 1] + xz[:, 1]], -1)
        return v_points, torch.from_numpy(v_table), None


def encode(points: Float[Tensor, "n 3"], table: Float[Tensor, "3 rows f"], grid: Layout) -> Float[Tensor, "n d"]:
    """Features of N points on the three planes, [N, 3 * levels * f]: plane by plane, then level, then feature; CPU, float32.

    points: 0..1 inside; a point with a coordinate outside gets zeros and passes no gradient. Gradients to points and table.
    """
    return _Encode.apply(points, table, grid)  # type: ignore[return-value]
