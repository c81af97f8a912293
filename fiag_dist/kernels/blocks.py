"""A tile's working memory: blocks of pixels, each a vector, row by row; of a block the values of its first map, of its second and so on.

So what a Gaussian touches is few vectors and fewer rows of them, and no vector lies in two lines of the cache.
"""

import numpy as np
from numba import njit

from fiag_dist.kernels.tiles import TILE_X, TILE_Y
from fiag_dist.kernels.vectors import BLOCK_X, BLOCK_Y, LANES, anywhere, everywhere, load

BLOCKS = TILE_X // BLOCK_X
"""In a row of them."""
NUM_BLOCKS = BLOCKS * (TILE_Y // BLOCK_Y)
NUMBER = 4
"""Bytes."""


@njit(inline="always")
def tile_memory(maps):
    """Zeros for so many maps of a tile."""
    flat = np.zeros((NUM_BLOCKS * maps + 1) * LANES, np.float32)
    start = -(flat.ctypes.data // NUMBER) % LANES
    return flat[start : start + NUM_BLOCKS * maps * LANES]


@njit(inline="always")
def place(x, y, maps):
    """Where a pixel's value of the first map is; those of the others are LANES further on each."""
    block = (y // BLOCK_Y) * BLOCKS + x // BLOCK_X
    return block * maps * LANES + (y % BLOCK_Y) * BLOCK_X + x % BLOCK_X


@njit(inline="always")
def is_full(tile, maps):
    """Whether no value of the first map, transmittance, is above 0: nothing behind can be seen anywhere in the tile."""
    for block in range(NUM_BLOCKS):  # noqa: SIM110 (numba has no all)
        if anywhere(load(tile, block * maps * LANES) > everywhere(np.float32(0))):
            return False
    return True
