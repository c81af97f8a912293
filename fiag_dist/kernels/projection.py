"""Projects Gaussians through a pinhole camera on the CPU: centres, inverse 2-D covariances, extents, and the hand-written gradient.

EWA splatting (Zwicker et al., 2001) with the frustum clamp, the blur and the opacity-aware extent of gsplat 1.5. Each Gaussian is one thread's work.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

from fiag_dist.kernels.falloff import MIN_ALPHA
from fiag_dist.kernels.launch import PARALLEL, array, check, launch

BLOCK = 256
BLUR_PX2 = 0.3
"""Added to the diagonal of the 2-D covariance, square pixels of what is learnt from: a Gaussian never falls between pixel centres."""
NEAR_M, FAR_M = 0.01, 1e10
MAX_SIGMAS = np.float32(3.33)

_f4 = np.float32
_NEAR, _FAR = np.float32(NEAR_M), np.float32(FAR_M)


@njit
def _rotation(quats, i, turn, unit):
    """Fills turn [3, 3] and unit [4], the normalised quaternion; returns 1 / length."""
    one, two = _f4(1), _f4(2)
    length = math.sqrt(quats[i, 0] ** 2 + quats[i, 1] ** 2 + quats[i, 2] ** 2 + quats[i, 3] ** 2)
    inverse = one / max(_f4(length), _f4(1e-12))
    w = quats[i, 0] * inverse
    x = quats[i, 1] * inverse
    y = quats[i, 2] * inverse
    z = quats[i, 3] * inverse
    unit[0] = w
    unit[1] = x
    unit[2] = y
    unit[3] = z
    turn[0, 0] = one - two * (y * y + z * z)
    turn[0, 1] = two * (x * y - w * z)
    turn[0, 2] = two * (x * z + w * y)
    turn[1, 0] = two * (x * y + w * z)
    turn[1, 1] = one - two * (x * x + z * z)
    turn[1, 2] = two * (y * z - w * x)
    turn[2, 0] = two * (x * z - w * y)
    turn[2, 1] = two * (y * z + w * x)
    turn[2, 2] = one - two * (x * x + y * y)
    return inverse


@njit
def _camera_rows(viewmat, K, width, height, u, v, inverse_z, rows):
    """Fills rows [2, 3] of (Jacobian of the projection) x (world to camera); returns x / z and y / z clamped to 1.3 times the image."""
    margin_x = _f4(0.15) * _f4(width) / K[0, 0]
    margin_y = _f4(0.15) * _f4(height) / K[1, 1]
    u_clamped = min(max(u, -K[0, 2] / K[0, 0] - margin_x), (_f4(width) - K[0, 2]) / K[0, 0] + margin_x)
    v_clamped = min(max(v, -K[1, 2] / K[1, 1] - margin_y), (_f4(height) - K[1, 2]) / K[1, 1] + margin_y)
    for k in range(3):
        rows[0, k] = K[0, 0] * inverse_z * (viewmat[0, k] - u_clamped * viewmat[2, k])
        rows[1, k] = K[1, 1] * inverse_z * (viewmat[1, k] - v_clamped * viewmat[2, k])
    return u_clamped, v_clamped


@njit
def _to_camera(means, viewmat, i):
    x = viewmat[0, 0] * means[i, 0] + viewmat[0, 1] * means[i, 1] + viewmat[0, 2] * means[i, 2] + viewmat[0, 3]
    y = viewmat[1, 0] * means[i, 0] + viewmat[1, 1] * means[i, 1] + viewmat[1, 2] * means[i, 2] + viewmat[1, 3]
    z = viewmat[2, 0] * means[i, 0] + viewmat[2, 1] * means[i, 1] + viewmat[2, 2] * means[i, 2] + viewmat[2, 3]
    return x, y, z


@njit(parallel=PARALLEL, cache=True, error_model="numpy")
def _forward(means, quats, scales, opacities, viewmat, K, width, height, blur, means2d, conics, depths, radii):
    num = means.shape[0]
    for block in prange((num + BLOCK - 1) // BLOCK):
        rows = np.empty((2, 3), _f4)
        turn = np.empty((3, 3), _f4)
        unit = np.empty(4, _f4)
        m = np.empty((2, 3), _f4)
        for i in range(block * BLOCK, min(num, block * BLOCK + BLOCK)):
            x, y, z = _to_camera(means, viewmat, i)
            depths[i] = z
            radii[i] = _f4(0)
            means2d[i] = _f4(0)
            conics[i] = _f4(0)
            opacity = opacities[i]
            if not (z > _NEAR and z < _FAR and opacity >= MIN_ALPHA and opacity < _f4(math.inf)):
                continue
            inverse_z = _f4(1) / z
            u = x * inverse_z
            v = y * inverse_z
            _camera_rows(viewmat, K, width, height, u, v, inverse_z, rows)
            _rotation(quats, i, turn, unit)
            xx = xy = yy = _f4(0)
            for k in range(3):
                for q in range(2):
                    m[q, k] = (rows[q, 0] * turn[0, k] + rows[q, 1] * turn[1, k] + rows[q, 2] * turn[2, k]) * scales[
                        i, k
                    ]
                xx += m[0, k] * m[0, k]
                xy += m[0, k] * m[1, k]
                yy += m[1, k] * m[1, k]
            # The determinant without the cancellation of xx * yy - xy * xy, which float32 cannot afford for needles.
            c_0 = m[0, 1] * m[1, 2] - m[0, 2] * m[1, 1]
            c_1 = m[0, 2] * m[1, 0] - m[0, 0] * m[1, 2]
            c_2 = m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]
            inverse = _f4(1) / (c_0 * c_0 + c_1 * c_1 + c_2 * c_2 + blur * (xx + yy) + blur * blur)
            xx += blur
            yy += blur
            center_x = K[0, 0] * u + K[0, 2]
            center_y = K[1, 1] * v + K[1, 2]
            means2d[i, 0] = center_x
            means2d[i, 1] = center_y
            conics[i, 0] = yy * inverse
            conics[i, 1] = -xy * inverse
            conics[i, 2] = xx * inverse
            sigmas = min(MAX_SIGMAS, _f4(math.sqrt(max(_f4(2) * _f4(math.log(opacity / MIN_ALPHA)), _f4(0)))))
            radius_x = _f4(math.ceil(sigmas * _f4(math.sqrt(xx))))
            radius_y = _f4(math.ceil(sigmas * _f4(math.sqrt(yy))))
            inside_x = center_x + radius_x > 0 and center_x - radius_x < width
            if inverse > 0 and inside_x and center_y + radius_y > 0 and center_y - radius_y < height:
                radii[i, 0] = radius_x
                radii[i, 1] = radius_y


@njit(parallel=PARALLEL, cache=True, error_model="numpy")
def _backward(
    means, quats, scales, viewmat, K, width, height, conics, radii, v_means2d, v_conics, v_means, v_quats, v_scales
):
    """Fills the three gradients; a Gaussian that was not seen has zeros."""
    num = means.shape[0]
    for block in prange((num + BLOCK - 1) // BLOCK):
        rows = np.empty((2, 3), _f4)
        v_rows = np.empty((2, 3), _f4)
        turn = np.empty((3, 3), _f4)
        v_turn = np.empty((3, 3), _f4)
        unit = np.empty(4, _f4)
        for i in range(block * BLOCK, min(num, block * BLOCK + BLOCK)):
            v_means[i] = _f4(0)
            v_quats[i] = _f4(0)
            v_scales[i] = _f4(0)
            if not radii[i, 0] > 0:
                continue
            x, y, z = _to_camera(means, viewmat, i)
            inverse_z = _f4(1) / z
            u = x * inverse_z
            v = y * inverse_z
            u_clamped, v_clamped = _camera_rows(viewmat, K, width, height, u, v, inverse_z, rows)
            inverse_length = _rotation(quats, i, turn, unit)
            qw = unit[0]
            qx = unit[1]
            qy = unit[2]
            qz = unit[3]
            # Covariance from its inverse P: -P V P, with V the symmetric gradient of P.
            p_0 = conics[i, 0]
            p_1 = conics[i, 1]
            p_2 = conics[i, 2]
            g_0 = v_conics[i, 0]
            g_1 = _f4(0.5) * v_conics[i, 1]
            g_2 = v_conics[i, 2]
            h_00 = g_0 * p_0 + g_1 * p_1
            h_01 = g_0 * p_1 + g_1 * p_2
            h_10 = g_1 * p_0 + g_2 * p_1
            h_11 = g_1 * p_1 + g_2 * p_2
            v_xx = -(p_0 * h_00 + p_1 * h_10)
            v_xy = -(p_0 * h_01 + p_1 * h_11 + p_1 * h_00 + p_2 * h_10)
            v_yy = -(p_1 * h_01 + p_2 * h_11)

            v_rows[:] = _f4(0)
            for k in range(3):
                scale = scales[i, k]
                along_x = rows[0, 0] * turn[0, k] + rows[0, 1] * turn[1, k] + rows[0, 2] * turn[2, k]
                along_y = rows[1, 0] * turn[0, k] + rows[1, 1] * turn[1, k] + rows[1, 2] * turn[2, k]
                v_m_x = (_f4(2) * v_xx * along_x + v_xy * along_y) * scale
                v_m_y = (_f4(2) * v_yy * along_y + v_xy * along_x) * scale
                v_scales[i, k] = v_m_x * along_x + v_m_y * along_y
                v_m_x *= scale
                v_m_y *= scale
                v_rows[0, 0] += v_m_x * turn[0, k]
                v_rows[0, 1] += v_m_x * turn[1, k]
                v_rows[0, 2] += v_m_x * turn[2, k]
                v_rows[1, 0] += v_m_y * turn[0, k]
                v_rows[1, 1] += v_m_y * turn[1, k]
                v_rows[1, 2] += v_m_y * turn[2, k]
                for j in range(3):
                    v_turn[j, k] = v_m_x * rows[0, j] + v_m_y * rows[1, j]

            # rows = f / z * (R row - clamped * R's last row)
            v_inverse_z = v_u = v_v = _f4(0)
            for k in range(3):
                v_inverse_z += (v_rows[0, k] * rows[0, k] + v_rows[1, k] * rows[1, k]) * z
                v_u -= v_rows[0, k] * viewmat[2, k]
                v_v -= v_rows[1, k] * viewmat[2, k]
            v_u = K[0, 0] * (v_means2d[i, 0] + (v_u * inverse_z if u == u_clamped else _f4(0)))
            v_v = K[1, 1] * (v_means2d[i, 1] + (v_v * inverse_z if v == v_clamped else _f4(0)))
            v_inverse_z += v_u * x + v_v * y
            v_x = v_u * inverse_z
            v_y = v_v * inverse_z
            v_z = -v_inverse_z * inverse_z * inverse_z
            for k in range(3):
                v_means[i, k] = viewmat[0, k] * v_x + viewmat[1, k] * v_y + viewmat[2, k] * v_z

            d_x = v_turn[2, 1] - v_turn[1, 2]
            d_y = v_turn[0, 2] - v_turn[2, 0]
            d_z = v_turn[1, 0] - v_turn[0, 1]
            s_x = v_turn[2, 1] + v_turn[1, 2]
            s_y = v_turn[0, 2] + v_turn[2, 0]
            s_z = v_turn[1, 0] + v_turn[0, 1]
            two = _f4(2)
            v_qw = two * (qx * d_x + qy * d_y + qz * d_z)
            v_qx = two * (qw * d_x + qy * s_z + qz * s_y - two * qx * (v_turn[1, 1] + v_turn[2, 2]))
            v_qy = two * (qw * d_y + qx * s_z + qz * s_x - two * qy * (v_turn[0, 0] + v_turn[2, 2]))
            v_qz = two * (qw * d_z + qx * s_y + qy * s_x - two * qz * (v_turn[0, 0] + v_turn[1, 1]))
            radial = qw * v_qw + qx * v_qx + qy * v_qy + qz * v_qz
            v_quats[i, 0] = (v_qw - qw * radial) * inverse_length
            v_quats[i, 1] = (v_qx - qx * radial) * inverse_length
            v_quats[i, 2] = (v_qy - qy * radial) * inverse_length
            v_quats[i, 3] = (v_qz - qz * radial) * inverse_length


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means, quats, scales, opacities, viewmat, K, width, height, blur_px2):
        m, q, s, o, v, k = (array(x) for x in (means, quats, scales, opacities, viewmat, K))
        means2d, conics, depths, radii = (torch.empty(len(means), *shape) for shape in ((2,), (3,), (), (2,)))
        out = (means2d.numpy(), conics.numpy(), depths.numpy(), radii.numpy())
        launch(_forward, m, q, s, o, v, k, width, height, _f4(blur_px2), *out)
        ctx.mark_non_differentiable(depths, radii)
        ctx.save_for_backward(means, quats, scales, viewmat, K, conics, radii)
        ctx.size = (width, height)
        return means2d, conics, depths, radii

    @staticmethod
    def backward(ctx: Any, *v_outputs):
        check("project's gradient", means2d=v_outputs[0], conics=v_outputs[1])
        means, quats, scales, viewmat, K, conics, radii = (array(x) for x in ctx.saved_tensors)
        out = (np.empty_like(means), np.empty_like(quats), np.empty_like(scales))
        v_means2d, v_conics = (array(v) for v in v_outputs[:2])
        width, height = ctx.size
        launch(_backward, means, quats, scales, viewmat, K, width, height, conics, radii, v_means2d, v_conics, *out)
        return *(torch.from_numpy(x) for x in out), None, None, None, None, None, None


def project(
    means: Float[Tensor, "n 3"],
    quats: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 3"],
    opacities: Float[Tensor, " n"],
    viewmat: Float[Tensor, "4 4"],
    K: Float[Tensor, "3 3"],
    width: int,
    height: int,
    zoom: float = 1.0,
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 3"], Float[Tensor, " n"], Float[Tensor, "n 2"]]:
    """Returns centres (pixels), conics a, b, c of the inverse covariance [[a, b], [b, c]], depths (metres) and half extents (whole pixels).

    zoom: as in Camera.
    Extents are 0 where a Gaussian is not seen: behind the camera, off the image, too faint or not finite. Gradients from centres and conics to
    means, quats (wxyz, any length) and scales; CPU, float32. In checked mode (`check`) numbers that are not finite are refused.
    """
    check("project", means=means, quats=quats, scales=scales, opacities=opacities, viewmat=viewmat, K=K)
    return _Project.apply(means, quats, scales, opacities, viewmat, K, width, height, BLUR_PX2 * zoom**2)  # type: ignore[return-value]
