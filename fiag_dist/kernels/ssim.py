"""Structural similarity (Wang et al., 2004) of two images, 11 x 11 Gaussian window of sigma 1.5, zero padding; with a hand-written gradient on the CPU.

Bands of rows are each one thread's work; their sums are added in one fixed order, so that the result does not depend on the number of threads.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

from fiag_dist.kernels.launch import PARALLEL, array, check, launch

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
BAND = 16
"""Rows of a band."""

_taps = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
_f4 = np.float32
_G = tuple(np.float32(v) for v in _taps / _taps.sum())
_C1, _C2 = np.float32(C1), np.float32(C2)
_FAST = {"reassoc", "contract", "nsz", "arcp", "nnan", "ninf"}


@njit(fastmath=_FAST)
def _along(padded, out):
    """Window along a row that is padded by half a window."""
    p = padded
    for x in range(out.shape[0]):
        outer = _G[0] * (p[x] + p[x + 10]) + _G[1] * (p[x + 1] + p[x + 9]) + _G[2] * (p[x + 2] + p[x + 8])
        out[x] = outer + _G[3] * (p[x + 3] + p[x + 7]) + _G[4] * (p[x + 4] + p[x + 6]) + _G[5] * p[x + 5]


@njit(fastmath=_FAST)
def _across(maps, k, q, out):
    """Window across the rows k .. k + 10 of map q."""
    r0, r1, r2, r3, r4, r5 = maps[k, q], maps[k + 1, q], maps[k + 2, q], maps[k + 3, q], maps[k + 4, q], maps[k + 5, q]
    r6, r7, r8, r9, r10 = maps[k + 6, q], maps[k + 7, q], maps[k + 8, q], maps[k + 9, q], maps[k + 10, q]
    for x in range(out.shape[0]):
        outer = _G[0] * (r0[x] + r10[x]) + _G[1] * (r1[x] + r9[x]) + _G[2] * (r2[x] + r8[x])
        out[x] = outer + _G[3] * (r3[x] + r7[x]) + _G[4] * (r4[x] + r6[x]) + _G[5] * r5[x]


@njit(parallel=PARALLEL, cache=True, fastmath=_FAST, error_model="numpy")
def _forward(a, b, d_mean, d_square, d_product, sums, want_gradient):
    """Fills sums [bands] of the similarity and, where wanted, its derivatives by the blurred a, a*a and a*b, [C, H, W] each."""
    height, width = a.shape[1:]
    bands = (height + BAND - 1) // BAND
    for t in prange(a.shape[0] * bands):
        channel = t // bands
        first = (t - channel * bands) * BAND
        last = min(height, first + BAND)
        blurred = np.zeros((last - first + 10, 5, width), _f4)
        padded = np.zeros((5, width + 10), _f4)
        for k in range(last - first + 10):
            y = first - 5 + k
            if y < 0 or y >= height:
                continue
            for x in range(width):
                u = a[channel, y, x]
                v = b[channel, y, x]
                padded[0, x + 5] = u
                padded[1, x + 5] = v
                padded[2, x + 5] = u * u
                padded[3, x + 5] = v * v
                padded[4, x + 5] = u * v
            for q in range(5):
                _along(padded[q], blurred[k, q])
        total = _f4(0)
        maps = np.empty((5, width), _f4)
        for y in range(first, last):
            for q in range(5):
                _across(blurred, y - first, q, maps[q])
            for x in range(width):
                mean_a = maps[0, x]
                mean_b = maps[1, x]
                means = _f4(2) * mean_a * mean_b + _C1
                covariance = _f4(2) * (maps[4, x] - mean_a * mean_b) + _C2
                inverse_1 = _f4(1) / (mean_a * mean_a + mean_b * mean_b + _C1)
                inverse_2 = _f4(1) / (maps[2, x] - mean_a * mean_a + maps[3, x] - mean_b * mean_b + _C2)
                similarity = means * covariance * inverse_1 * inverse_2
                total += similarity
                if want_gradient:
                    by_product = _f4(2) * means * inverse_1 * inverse_2
                    by_square = -similarity * inverse_2
                    by_mean = _f4(2) * (mean_b * covariance * inverse_1 * inverse_2 - mean_a * similarity * inverse_1)
                    d_mean[channel, y, x] = by_mean - _f4(2) * mean_a * by_square - mean_b * by_product
                    d_square[channel, y, x] = by_square
                    d_product[channel, y, x] = by_product
        sums[t] = total


@njit(parallel=PARALLEL, cache=True, fastmath=_FAST, error_model="numpy")
def _backward(a, b, d_mean, d_square, d_product, scale, out):
    """Fills out [C, H, W]: the derivatives go back through the window, which is symmetric."""
    height, width = a.shape[1:]
    bands = (height + BAND - 1) // BAND
    for t in prange(a.shape[0] * bands):
        channel = t // bands
        first = (t - channel * bands) * BAND
        last = min(height, first + BAND)
        blurred = np.zeros((last - first + 10, 3, width), _f4)
        padded = np.zeros((3, width + 10), _f4)
        for k in range(last - first + 10):
            y = first - 5 + k
            if y < 0 or y >= height:
                continue
            padded[0, 5 : width + 5] = d_mean[channel, y]
            padded[1, 5 : width + 5] = d_square[channel, y]
            padded[2, 5 : width + 5] = d_product[channel, y]
            for q in range(3):
                _along(padded[q], blurred[k, q])
        maps = np.empty((3, width), _f4)
        for y in range(first, last):
            for q in range(3):
                _across(blurred, y - first, q, maps[q])
            for x in range(width):
                total = maps[0, x] + _f4(2) * a[channel, y, x] * maps[1, x] + b[channel, y, x] * maps[2, x]
                out[channel, y, x] = scale * total


class _Ssim(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image, target):
        a, b = array(image), array(target)
        channels, height, _ = a.shape
        want_gradient = ctx.needs_input_grad[0]
        d_mean, d_square, d_product = np.empty((3, *(a.shape if want_gradient else (0, 0, 0))), np.float32)
        sums = np.empty(channels * -(-height // BAND), np.float32)
        launch(_forward, a, b, d_mean, d_square, d_product, sums, want_gradient)
        ctx.save_for_backward(image, target)
        ctx.derivatives = (d_mean, d_square, d_product)
        return image.new_tensor(sums.sum(dtype=np.float64) / a.size)

    @staticmethod
    def backward(ctx: Any, *v_outputs):
        check("ssim's gradient", value=v_outputs[0])
        a, b = (array(x) for x in ctx.saved_tensors)
        out = np.empty_like(a)
        d_mean, d_square, d_product = ctx.derivatives
        launch(_backward, a, b, d_mean, d_square, d_product, np.float32(v_outputs[0].item() / a.size), out)
        return torch.from_numpy(out), None


def ssim(image_CHW: Float[Tensor, "c h w"], target_CHW: Float[Tensor, "c h w"]) -> Float[Tensor, ""]:
    """Mean structural similarity over pixels and channels of two images in 0..1, at most 1; the loss and the metric alike.

    CPU, float32; gradient to image_CHW alone. Numbers that are not finite are refused in checked mode (`check`); else the value and the gradients
    around them are NaN.
    """
    check("ssim", image=image_CHW, target=target_CHW)
    return _Ssim.apply(image_CHW.float(), target_CHW)  # type: ignore[return-value]
