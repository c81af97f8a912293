"""Colours of Gaussians as a camera sees them, from spherical harmonics; with a hand-written gradient on the CPU.

Each block of Gaussians is one thread's work.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

from fiag_dist.kernels.launch import PARALLEL, array, check, launch
from fiag_dist.types import SH_DC

BLOCK = 512
LEARNS, DARKENS, STANDS = 0, 1, 2
"""What a colour lets through of its gradient: all; what darkens it, being lighter than white; nothing, being darker than black."""

_f4 = np.float32
_DC = _f4(SH_DC)


@njit(inline="always")
def _harmonics(means, i, center, basis):
    """Fills basis [K], the real spherical harmonics above degree 0 in the direction from the camera to a centre."""
    x = means[i, 0] - center[0]
    y = means[i, 1] - center[1]
    z = means[i, 2] - center[2]
    inverse = _f4(1) / max(_f4(math.sqrt(x * x + y * y + z * z)), _f4(1e-12))
    x *= inverse
    y *= inverse
    z *= inverse
    if len(basis) > 0:
        basis[0] = _f4(-0.4886025119029199) * y
        basis[1] = _f4(0.4886025119029199) * z
        basis[2] = _f4(-0.4886025119029199) * x
    if len(basis) > 3:
        xx, yy, zz = x * x, y * y, z * z
        basis[3] = _f4(1.0925484305920792) * x * y
        basis[4] = _f4(-1.0925484305920792) * y * z
        basis[5] = _f4(0.31539156525252005) * (zz + zz - xx - yy)
        basis[6] = _f4(-1.0925484305920792) * x * z
        basis[7] = _f4(0.5462742152960396) * (xx - yy)
        if len(basis) > 8:
            basis[8] = _f4(-0.5900435899266435) * y * (_f4(3) * xx - yy)
            basis[9] = _f4(2.890611442640554) * x * y * z
            basis[10] = _f4(-0.4570457994644658) * y * (_f4(4) * zz - xx - yy)
            basis[11] = _f4(0.3731763325901154) * z * (_f4(2) * zz - _f4(3) * (xx + yy))
            basis[12] = _f4(-0.4570457994644658) * x * (_f4(4) * zz - xx - yy)
            basis[13] = _f4(1.445305721320277) * z * (xx - yy)
            basis[14] = _f4(-0.5900435899266435) * x * (xx - _f4(3) * yy)


@njit(parallel=PARALLEL, cache=True, error_model="numpy")
def _forward(dc, rest, means, center, colors, states):
    num = dc.shape[0]
    for block in prange((num + BLOCK - 1) // BLOCK):
        basis = np.empty(rest.shape[1], _f4)
        for i in range(block * BLOCK, min(num, block * BLOCK + BLOCK)):
            _harmonics(means, i, center, basis)
            for c in range(3):
                color = _f4(0.5) + _DC * dc[i, c]
                for k in range(len(basis)):
                    color += basis[k] * rest[i, k, c]
                states[i, c] = LEARNS
                if color < _f4(0):
                    states[i, c] = STANDS
                    color = _f4(0)
                elif color > _f4(1):
                    states[i, c] = DARKENS
                    color = _f4(1)
                colors[i, c] = color


@njit(parallel=PARALLEL, cache=True, error_model="numpy")
def _backward(means, center, states, v_colors, v_dc, v_rest):
    num = v_dc.shape[0]
    for block in prange((num + BLOCK - 1) // BLOCK):
        basis = np.empty(v_rest.shape[1], _f4)
        for i in range(block * BLOCK, min(num, block * BLOCK + BLOCK)):
            _harmonics(means, i, center, basis)
            for c in range(3):
                v = v_colors[i, c]
                if states[i, c] == STANDS or (states[i, c] == DARKENS and not v > _f4(0)):
                    v = _f4(0)
                v_dc[i, c] = _DC * v
                for k in range(len(basis)):
                    v_rest[i, k, c] = basis[k] * v


class _Shown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sh_dc, sh_rest, means, center):
        dc, rest, m, c = (array(x) for x in (sh_dc, sh_rest, means, center))
        colors, states = np.empty_like(dc), np.empty(dc.shape, np.int8)
        launch(_forward, dc, rest, m, c, colors, states)
        ctx.known = (m, c, states, rest.shape)
        return torch.from_numpy(colors)

    @staticmethod
    def backward(ctx: Any, *v_outputs):
        check("shown_colors' gradient", colors=v_outputs[0])
        m, c, states, shape = ctx.known
        v_dc, v_rest = np.empty(states.shape, np.float32), np.empty(shape, np.float32)
        launch(_backward, m, c, states, array(v_outputs[0]), v_dc, v_rest)
        return torch.from_numpy(v_dc), torch.from_numpy(v_rest), None, None


def shown_colors(
    sh_dc: Float[Tensor, "n 3"],
    sh_rest: Float[Tensor, "n k 3"],
    means: Float[Tensor, "n 3"],
    center: Float[Tensor, "3"],
) -> Float[Tensor, "n 3"]:
    """Colours 0..1 of N Gaussians seen from `center`, as `model.head.shown_colors` says; CPU, float32. Gradients to the coefficients.

    Numbers that are not finite are refused in checked mode (`check`); else they spread to that Gaussian's colour and gradient.
    """
    check("shown_colors", sh_dc=sh_dc, sh_rest=sh_rest, means=means, center=center)
    return _Shown.apply(sh_dc, sh_rest, means, center)  # type: ignore[return-value]
