"""A rendered layer and a cut-out of a frame, both over one backdrop, and how far apart they are; with a hand-written gradient on the CPU.

Each row is one thread's work; sums of rows are added in one fixed order, so that the result does not depend on the number of threads.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

from fiag_dist.kernels.launch import PARALLEL, array, check, launch

_f4 = np.float32
_FAST = {"reassoc", "contract", "nsz"}


@njit(parallel=PARALLEL, cache=True, fastmath=_FAST, error_model="numpy")
def _forward(layer, alpha, frame, shown, mask, backdrop, image, target, sums):
    """Fills image and target [3, H, W], and sums [H, 2] of absolute differences and of what covers where nothing should, or doesn't where it should."""
    height, width = alpha.shape
    for y in prange(height):
        error = uncovered = _f4(0)
        for k in range(3):
            for x in range(width):
                behind = backdrop[k, y, x]
                ours = layer[k, y, x] + (_f4(1) - alpha[y, x]) * behind
                theirs = frame[k, y, x] * shown[y, x] + (_f4(1) - shown[y, x]) * behind
                image[k, y, x] = ours
                target[k, y, x] = theirs
                error += abs(ours - theirs)
        for x in range(width):
            uncovered += alpha[y, x] + mask[y, x] - _f4(2) * alpha[y, x] * mask[y, x]
        sums[y, 0] = error
        sums[y, 1] = uncovered


@njit(parallel=PARALLEL, cache=True, fastmath=_FAST, error_model="numpy")
def _backward(image, target, mask, backdrop, v_image, v_error, v_uncovered, v_layer, v_alpha):
    """Fills v_layer [3, H, W] and v_alpha [H, W]; v_error and v_uncovered: of one number and of one pixel."""
    height, width = mask.shape
    for y in prange(height):
        for x in range(width):
            v_alpha[y, x] = v_uncovered * (_f4(1) - _f4(2) * mask[y, x])
        for k in range(3):
            for x in range(width):
                away = image[k, y, x] - target[k, y, x]
                pull = v_error if away > _f4(0) else (-v_error if away < _f4(0) else _f4(0))
                v = v_image[k, y, x] + pull
                v_layer[k, y, x] = v
                v_alpha[y, x] -= v * backdrop[k, y, x]


class _Compare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer, alpha, frame, shown, mask, backdrop):
        m, b = array(mask), array(backdrop)
        image, target = np.empty((2, 3, *m.shape), np.float32)
        sums = np.empty((len(m), 2), np.float32)
        launch(_forward, array(layer), array(alpha), array(frame), array(shown), m, b, image, target, sums)
        image_3HW, target_3HW = torch.from_numpy(image), torch.from_numpy(target)
        ctx.save_for_backward(image_3HW, target_3HW)
        ctx.known = (m, b)
        ctx.mark_non_differentiable(target_3HW)
        error, uncovered = sums.sum(0, dtype=np.float64)
        return image_3HW, target_3HW, layer.new_tensor(error / image.size), layer.new_tensor(uncovered / m.size)

    @staticmethod
    def backward(ctx: Any, *v_outputs):
        check("compare's gradient", image=v_outputs[0], error=v_outputs[2], uncovered=v_outputs[3])
        image, target = (array(x) for x in ctx.saved_tensors)
        m, b = ctx.known
        v_error = np.float32(v_outputs[2].item() / image.size)
        v_uncovered = np.float32(v_outputs[3].item() / m.size)
        v_layer, v_alpha = np.empty_like(image), np.empty_like(m)
        launch(_backward, image, target, m, b, array(v_outputs[0]), v_error, v_uncovered, v_layer, v_alpha)
        return torch.from_numpy(v_layer), torch.from_numpy(v_alpha), None, None, None, None


def compare(
    layer: Float[Tensor, "3 h w"],
    alpha: Float[Tensor, "h w"],
    frame: Float[Tensor, "3 h w"],
    shown: Float[Tensor, "h w"],
    mask: Float[Tensor, "h w"],
    backdrop: Float[Tensor, "3 h w"],
) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "3 h w"], Float[Tensor, ""], Float[Tensor, ""]]:
    """`fiag_dist.images.compositing.compare` on the CPU, float32: image, target, error and uncovered. Gradients to layer and alpha.

    Numbers that are not finite are refused in checked mode (`check`); else they spread to what depends on them.
    """
    check("compare", layer=layer, alpha=alpha, frame=frame, shown=shown, mask=mask, backdrop=backdrop)
    return _Compare.apply(layer, alpha, frame, shown, mask, backdrop)  # type: ignore[return-value]
