"""How a projected Gaussian falls off: where in a tile its alpha reaches 1/255, and what it is there."""

import math

import numpy as np
from numba import njit, prange

from fiag_dist.kernels.launch import PARALLEL
from fiag_dist.kernels.tiles import TILE_X, TILE_Y
from fiag_dist.kernels.vectors import BLOCK_X, BLOCK_Y, choose, columns, everywhere, exp2_of_negative, rows

MAX_ALPHA = np.float32(0.999)
MIN_ALPHA = np.float32(1 / 255)
SHAPE = 8
"""Numbers of a Gaussian that drawing it, and going back for its gradients, need (`measure`)."""
LOG2_E = math.log2(math.e)

_f4 = np.float32


@njit(parallel=PARALLEL, cache=True, error_model="numpy")
def measure(conics, opacities, out):
    """Fills out [N, SHAPE] with what drawing needs of each Gaussian. conics: [N, 3]; opacities: [N]; pixels throughout.

    With dx, dy from a pixel to the centre, alpha is opacity * 2^(fall (dx + slope dy)^2 + drop dy^2): nothing cancels in it, be a Gaussian as thin as a
    needle. The columns of out, of which 4 to 6 have a little to spare:
    0, 1, 2: slope, fall, drop.
    3: the exponent at which alpha is 1/255. Where it is at least that, the Gaussian is drawn: an ellipse.
    4: how far the ellipse reaches above and below the centre.
    5, 6: p, q. In the row at dy it reaches sqrt(p - q dy^2) to both sides of its middle there, which is slope dy to the right of the centre.
    7: the dy of the row in which it reaches furthest to the right; furthest to the left is at minus that.
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
        q = max(drop / fall, 1e-30)
        out[i, 6] = q
        out[i, 7] = slope * math.sqrt(out[i, 5] / (q * (q + slope * slope)))


@njit(inline="always")
def rows_of(center_y, reach_y):
    """First and one past the last row of a tile that a Gaussian touches; its centre in pixels from the first row's."""
    return max(0, int(math.ceil(center_y - reach_y))), min(TILE_Y, int(math.floor(center_y + reach_y)) + 1)


@njit(inline="always")
def row_of_blocks(center_x, center_y, shape, g, row, first, last):
    """What a Gaussian needs in one row of a tile's blocks, of which pixel rows first .. last - 1 are touched.

    Returns the first and one past the last block that it touches, and lane by lane: how far the centre is above; where the ellipse's middle is in that
    row; what of the exponent comes from dy alone; and the first block's columns.
    """
    slope, p, q, lean = shape[g, 0], shape[g, 5], shape[g, 6], shape[g, 7]
    top = row * BLOCK_Y
    upper, lower = center_y - _f4(max(first, top)), center_y - _f4(min(last, top + BLOCK_Y) - 1)
    on_left, on_right = min(max(-lean, lower), upper), min(max(lean, lower), upper)
    left = center_x + slope * on_left - _f4(math.sqrt(max(p - q * on_left * on_left, _f4(0))))
    right = center_x + slope * on_right + _f4(math.sqrt(max(p - q * on_right * on_right, _f4(0))))
    begin = max(0, int(math.ceil(left))) // BLOCK_X
    end = (min(TILE_X, int(math.floor(right)) + 1) + BLOCK_X - 1) // BLOCK_X
    dy = everywhere(center_y - _f4(top)) - rows()
    ridge = everywhere(center_x) + everywhere(slope) * dy
    fade = everywhere(shape[g, 2]) * dy * dy
    return begin, end, dy, ridge, fade, everywhere(_f4(begin * BLOCK_X)) + columns()


@njit(inline="always")
def alpha_at(exponent, opacity, faintest):
    """What a Gaussian takes of the light at pixels of a row, before it is clamped, and clamped: 0 where it is too faint."""
    unclamped = opacity * exp2_of_negative(exponent)
    most, nothing = everywhere(MAX_ALPHA), everywhere(_f4(0))
    value = choose(unclamped < most, unclamped, most)
    return unclamped, choose((exponent >= faintest) & (exponent <= nothing), value, nothing)
