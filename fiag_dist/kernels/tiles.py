"""Which Gaussians touch which tile of the image."""

import math

import numpy as np
from numba import njit

TILE_X = 16
"""Columns of a tile, pixels: one row is one or two SIMD registers."""
TILE_Y = 64
"""Rows of a tile. Tall ones: half as many (Gaussian, tile) pairs as with 16 rows, and a pair costs as much as several rows of pixels."""


@njit(cache=True)
def bin_gaussians(means2d, radii, order, tiles_x, tiles_y):
    """Lists of Gaussians per tile, near to far, by counting.

    Returns ids: Gaussian of each pair, tile by tile; slots: where that pair's gradients go, Gaussian by Gaussian; and both groupings' offsets.
    """
    num = means2d.shape[0]
    rects = np.zeros((num, 4), np.int32)
    tile_offsets = np.zeros(tiles_x * tiles_y + 1, np.int64)
    gaussian_offsets = np.zeros(num + 1, np.int64)
    for i in range(num):
        rx = radii[i, 0]
        ry = radii[i, 1]
        if rx > 0 and ry > 0:
            x0 = min(max(0, int(math.floor((means2d[i, 0] - rx) / TILE_X))), tiles_x)
            y0 = min(max(0, int(math.floor((means2d[i, 1] - ry) / TILE_Y))), tiles_y)
            x1 = min(max(0, int(math.ceil((means2d[i, 0] + rx) / TILE_X))), tiles_x)
            y1 = min(max(0, int(math.ceil((means2d[i, 1] + ry) / TILE_Y))), tiles_y)
            rects[i, 0] = x0
            rects[i, 1] = y0
            rects[i, 2] = x1
            rects[i, 3] = y1
            for y in range(y0, y1):
                for x in range(x0, x1):
                    tile_offsets[y * tiles_x + x + 1] += 1
        gaussian_offsets[i + 1] = gaussian_offsets[i] + (rects[i, 2] - rects[i, 0]) * (rects[i, 3] - rects[i, 1])
    for t in range(tiles_x * tiles_y):
        tile_offsets[t + 1] += tile_offsets[t]
    filled = tile_offsets[:-1].copy()
    ids = np.empty(tile_offsets[-1], np.int32)
    slots = np.empty(tile_offsets[-1], np.int32)
    for i in order:
        slot = gaussian_offsets[i]
        for y in range(rects[i, 1], rects[i, 3]):
            for x in range(rects[i, 0], rects[i, 2]):
                t = y * tiles_x + x
                ids[filled[t]] = i
                slots[filled[t]] = slot
                filled[t] += 1
                slot += 1
    return ids, slots, tile_offsets, gaussian_offsets
