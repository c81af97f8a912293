"""A tile's working memory: several numbers for each pixel (maps: transmittance, colours ..), laid out for vectors.

The tile is cut into blocks of BLOCK_X x BLOCK_Y pixels, row by row. A block's pixels in one map are one vector, and its vectors in all maps lie one after
the other. A Gaussian so touches few vectors that lie near each other, and as memory starts where a vector would, none lies in two lines of the cache.
"""

import numpy as np
from numba import njit

from fiag_dist.kernels.tiles import TILE_X, TILE_Y
from fiag_dist.kernels.vectors import BLOCK_X, BLOCK_Y, LANES, anywhere, everywhere, load

BLOCKS = TILE_X // BLOCK_X
"""Blocks in a row."""
NUM_BLOCKS = BLOCKS * (TILE_Y // BLOCK_Y)
NUMBER = 4
"""Bytes of one, a float32."""


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
