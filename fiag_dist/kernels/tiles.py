"""Which Gaussians touch which tile of the image."""

import math

import numpy as np
from numba import njit

TILE_X, TILE_Y = 128, 64
"""Columns and rows of a tile, pixels: large ones, for a (Gaussian, tile) pair costs as much as several rows of pixels, and few Gaussians lie in two."""
ROW = 12
"""What a row, and a pair, cost by themselves, in pixels and rows."""
DIGIT = 11
"""Bits that one pass of sorting looks at."""


@njit(cache=True)
def near_to_far(depths):
    """Indices by depth, metres, > 0; ties in their order: three passes of a radix sort over the bits, which order as the numbers do."""
    num = len(depths)
    keys = depths.view(np.uint32)
    order, moved = np.arange(num), np.empty(num, np.int64)
    for shift in range(0, 32, DIGIT):
        starts = np.zeros((1 << DIGIT) + 1, np.int64)
        for i in range(num):
            starts[((keys[i] >> np.uint32(shift)) & np.uint32((1 << DIGIT) - 1)) + 1] += 1
        for digit in range(1 << DIGIT):
            starts[digit + 1] += starts[digit]
        for i in order:
            digit = (keys[i] >> np.uint32(shift)) & np.uint32((1 << DIGIT) - 1)
            moved[starts[digit]] = i
            starts[digit] += 1
        order, moved = moved, order
    return order


@njit(cache=True)
def bin_gaussians(means2d, radii, order, tiles_x, tiles_y):
    """Lists of Gaussians per tile, near to far, by counting.

    Returns ids: Gaussian of each pair, tile by tile; slots: where that pair's gradients go, Gaussian by Gaussian; both groupings' offsets; and about
    how much work each tile is, in pixels with what a row costs by itself.
    """
    num = means2d.shape[0]
    rects = np.zeros((num, 4), np.int32)
    tile_offsets = np.zeros(tiles_x * tiles_y + 1, np.int64)
    gaussian_offsets = np.zeros(num + 1, np.int64)
    work = np.zeros(tiles_x * tiles_y, np.float32)
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
                    rows = min(means2d[i, 1] + ry, (y + 1) * TILE_Y) - max(means2d[i, 1] - ry, y * TILE_Y)
                    columns = min(means2d[i, 0] + rx, (x + 1) * TILE_X) - max(means2d[i, 0] - rx, x * TILE_X)
                    work[y * tiles_x + x] += (rows + ROW) * (columns + ROW)
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
    return ids, slots, tile_offsets, gaussian_offsets, work


@njit(cache=True)
def deal(work, threads):
    """The tiles in an order in which all threads have about as much to do. work: of each tile, as of `bin_gaussians`.

    A parallel loop gives each thread a run of the order, all of nearly one length. From the largest tile to the smallest, each goes into the run that
    holds the least work so far and is not full.
    """
    num = len(work)
    order, held, count = np.empty(num, np.int64), np.zeros(threads), np.zeros(threads, np.int64)
    for tile in np.argsort(-work, kind="mergesort"):
        chosen = -1
        for thread in range(threads):
            room = (thread + 1) * num // threads - thread * num // threads
            if count[thread] < room and (chosen < 0 or held[thread] < held[chosen]):
                chosen = thread
        order[chosen * num // threads + count[chosen]] = tile
        held[chosen] += work[tile]
        count[chosen] += 1
    return order
