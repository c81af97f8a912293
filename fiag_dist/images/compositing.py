"""A rendered layer beside a frame's cut-out, both over one backdrop: the CPU kernel, or torch operations for any other device."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fiag_dist.kernels import compositing as kernel


@dataclass(frozen=True, eq=False)
class Comparison:
    """A layer and what it should be."""

    image: Float[Tensor, "3 h w"]
    """The layer over the backdrop."""
    target: Float[Tensor, "3 h w"]
    """The frame where it is shown, the backdrop elsewhere; without gradient."""
    error: Float[Tensor, ""]
    """Mean absolute difference of both."""
    uncovered: Float[Tensor, ""]
    """Mean over pixels of the mask that the layer leaves free, and of what it covers beyond the mask."""


def compare(
    layer: Float[Tensor, "3 h w"],
    alpha: Float[Tensor, "1 h w"],
    frame: Float[Tensor, "3 h w"],
    shown: Float[Tensor, "1 h w"],
    mask: Float[Tensor, "1 h w"],
    backdrop: Float[Tensor, "3 h w"],
) -> Comparison:
    """layer: premultiplied by its alpha. shown: how much of the target is the frame. mask: what the layer should cover.

    Only layer and alpha get a gradient.
    """
    if layer.device.type == "cpu":
        return Comparison(*kernel.compare(layer, alpha[0], frame, shown[0], mask[0], backdrop))
    image = layer + (1 - alpha) * backdrop
    target = frame * shown + backdrop * (1 - shown)
    uncovered = ((1 - alpha) * mask).mean() + (alpha * (1 - mask)).mean()
    return Comparison(image, target, (image - target).abs().mean(), uncovered)
