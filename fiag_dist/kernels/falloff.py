"""How a projected Gaussian falls off: where in a tile its alpha reaches 1/255, and what it is there."""

import math

import numpy as np
from numba import njit, prange

from fiag_dist.kernels.launch import PARALLEL
from fiag_dist.kernels.tiles import TILE_X, TILE_Y
from fiag_dist.kernels.vectors import choose, everywhere, exp2_of_negative

MAX_ALPHA = np.float32(0.999)
MIN_ALPHA = np.float32(1 / 255)
SHAPE = 7
"""Numbers of a Gaussian that both ways through the tiles need (`measure`)."""
LOG2_E = math.log2(math.e)

_f4 = np.float32


@njit(parallel=PARALLEL, cache=True, error_model="numpy")
def measure(conics, opacities, out):
    """Fills out [N, SHAPE]. A Gaussian is opacity * 2^(fall (dx + slope dy)^2 + drop dy^2), in which nothing cancels, be it as thin as a needle.

    slope, fall, drop; the exponent at which alpha is 1/255; how far above and below the centre it can be that, pixels; and p, q of how far in a row,
    sqrt(p - q dy^2).
    """
    for i in prange(out.shape[0]):
        a = np.float64(conics[i, 0])
        slope = conics[i, 1] / a
        fall, drop = -0.5 * LOG2_E * a, -0.5 * LOG2_E * (conics[i, 2] - conics[i, 1] * slope)
        faintest = -math.log2(np.float64(opacities[i]) * 255.0)
        least = faintest - 1e-3
        out[i, 0] = slope
        out[i, 1] = fall
        out[i, 2] = drop
        out[i, 3] = faintest
        out[i, 4] = math.sqrt(max(least / min(drop, -1e-12), 0.0))
        out[i, 5] = least / fall * (1 + 1e-3) + 1e-2
        out[i, 6] = max(drop / fall, 0.0)


@njit(inline="always")
def rows_of(center_y, reach_y):
    """First and one past the last row of a tile that a Gaussian touches; its centre in pixels from the first row's."""
    return max(0, int(math.ceil(center_y - reach_y))), min(TILE_Y, int(math.floor(center_y + reach_y)) + 1)


@njit(inline="always")
def columns_of(center_x, half_square):
    """First and one past the last column of a row."""
    half = _f4(math.sqrt(max(half_square, _f4(0))))
    return max(0, int(math.ceil(center_x - half))), min(TILE_X, int(math.floor(center_x + half)) + 1)


@njit(inline="always")
def alpha_at(exponent, opacity, faintest):
    """What a Gaussian takes of the light at pixels of a row, before it is clamped, and clamped: 0 where it is too faint."""
    unclamped = opacity * exp2_of_negative(exponent)
    most, nothing = everywhere(MAX_ALPHA), everywhere(_f4(0))
    value = choose(unclamped < most, unclamped, most)
    return unclamped, choose((exponent >= faintest) & (exponent <= nothing), value, nothing)
