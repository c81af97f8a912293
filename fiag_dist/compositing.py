"""A rendered layer beside a frame's cut-out, both over one colour: the CPU kernel, or torch operations for any other device."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fiag_dist.kernels import compositing as kernel


@dataclass(frozen=True, eq=False)
class Comparison:
    """A layer and what it should be."""

    image: Float[Tensor, "3 h w"]
    """The layer over the colour."""
    target: Float[Tensor, "3 h w"]
    """The frame where the mask is, the colour elsewhere; without gradient."""
    error: Float[Tensor, ""]
    """Mean absolute difference of both."""
    uncovered: Float[Tensor, ""]
    """Mean over pixels of the mask that the layer leaves free, and of what it covers beyond the mask."""


def compare(
    layer: Float[Tensor, "3 h w"],
    alpha: Float[Tensor, "1 h w"],
    frame: Float[Tensor, "3 h w"],
    mask: Float[Tensor, "1 h w"],
    color: Float[Tensor, "3 1 1"],
) -> Comparison:
    """layer: premultiplied by its alpha. frame, mask, color: without gradient."""
    if layer.device.type == "cpu":
        return Comparison(*kernel.compare(layer, alpha[0], frame, mask[0], color.flatten()))
    image = layer + (1 - alpha) * color
    target = frame * mask + color * (1 - mask)
    uncovered = ((1 - alpha) * mask).mean() + (alpha * (1 - mask)).mean()
    return Comparison(image, target, (image - target).abs().mean(), uncovered)
