"""Projects Gaussians through a pinhole camera (EWA splatting): centres, inverse 2-D covariances, extents. Plain torch, written out by hand."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

BLUR_PX2 = 0.3
"""Added to the 2-D covariance's diagonal, square pixels: a Gaussian never falls between pixel centres."""
MAX_SIGMAS = 3.33
NEAR_M, FAR_M = 0.01, 1e10
MIN_ALPHA = 1 / 255


def project(
    means: Float[Tensor, "n 3"],
    quats: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 3"],
    opacities: Float[Tensor, " n"],
    viewmat: Float[Tensor, "4 4"],
    K: Float[Tensor, "3 3"],
    width: int,
    height: int,
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 3"], Float[Tensor, " n"], Float[Tensor, "n 2"]]:
    """Returns centres (pixels), conics a, b, c, depths (metres) and half extents (whole pixels, 0 where not seen; no gradient).

    Zwicker et al., EWA splatting, with the frustum clamp and the opacity-aware extent of gsplat 1.5.
    """
    R, t = viewmat[:3, :3], viewmat[:3, 3]
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    x_N, y_N, z_N = (means @ R.T + t).unbind(-1)
    near_N = z_N > NEAR_M
    inverse_z_N = 1 / torch.where(near_N, z_N, 1.0)  # a point behind the camera must not send NaN back
    u_N, v_N = x_N * inverse_z_N, y_N * inverse_z_N
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    u_clamped_N = torch.minimum(torch.maximum(u_N, -(cx / fx + margin_x)), (width - cx) / fx + margin_x)
    v_clamped_N = torch.minimum(torch.maximum(v_N, -(cy / fy + margin_y)), (height - cy) / fy + margin_y)

    # Rows of (Jacobian of the projection) x (world to camera) x (rotation x scale of the Gaussian); their products are the covariance.
    row_x_N3 = (fx * inverse_z_N)[:, None] * (R[0] - u_clamped_N[:, None] * R[2])
    row_y_N3 = (fy * inverse_z_N)[:, None] * (R[1] - v_clamped_N[:, None] * R[2])
    turn_N33 = _rotation(quats)
    m_x_N3 = (row_x_N3[:, :, None] * turn_N33).sum(1) * scales
    m_y_N3 = (row_y_N3[:, :, None] * turn_N33).sum(1) * scales
    xx_N = (m_x_N3 * m_x_N3).sum(-1) + BLUR_PX2
    xy_N = (m_x_N3 * m_y_N3).sum(-1)
    yy_N = (m_y_N3 * m_y_N3).sum(-1) + BLUR_PX2
    inverse_N = 1 / (xx_N * yy_N - xy_N * xy_N).clamp(min=1e-10)
    conics_N3 = torch.stack([yy_N * inverse_N, -xy_N * inverse_N, xx_N * inverse_N], -1)
    means2d_N2 = torch.stack([fx * u_N + cx, fy * v_N + cy], -1)

    with torch.no_grad():
        sigmas_N = (2 * (opacities * 255).clamp(min=1).log()).sqrt().clamp(max=MAX_SIGMAS)
        radii_N2 = torch.ceil(sigmas_N[:, None] * torch.stack([xx_N, yy_N], -1).sqrt())
        size_2 = radii_N2.new_tensor([width, height])
        on_screen_N2 = (means2d_N2 + radii_N2 > 0) & (means2d_N2 - radii_N2 < size_2)
        seen_N = (opacities >= MIN_ALPHA) & near_N & (z_N < FAR_M) & on_screen_N2.all(-1)
        radii_N2 = torch.where(seen_N[:, None], radii_N2, 0.0)
    return means2d_N2, conics_N3, z_N, radii_N2


def _rotation(quats_N4: Tensor) -> Tensor:
    w, x, y, z = F.normalize(quats_N4, dim=-1).unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, -1).reshape(-1, 3, 3)
