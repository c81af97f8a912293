"""LPIPS of whole frames and of the head alone."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fiag_dist import weights
from fiag_dist.images.lpips import SMALLEST_PX, Lpips
from fiag_dist.metrics.regions import Truth


class Perceptual:
    """The distance that AlexNet's features see (Zhang et al., 2018), at the frames' own size. Raises WeightsError when its file is missing."""

    def __init__(self) -> None:
        self._network = Lpips(weights.path("lpips-alex"))

    @torch.no_grad()
    def scores(self, image: UInt8[np.ndarray, "size size 3"], truth: Truth) -> dict[str, float]:
        """`head_lpips` over the head's box, `full_lpips` over the frame; 0 for equal images."""
        size = len(truth.image)
        box = tuple(at_least(span, min(SMALLEST_PX, size), size) for span in truth.head_box)
        return {
            "head_lpips": float(self._network(_batch(image[box]), _batch(truth.image[box]))),
            "full_lpips": float(self._network(_batch(image), _batch(truth.image))),
        }


def at_least(span: slice, length: int, size: int) -> slice:
    """The span, grown about its middle to `length` and kept inside 0..size."""
    missing = max(0, length - (span.stop - span.start))
    start = min(max(0, span.start - missing // 2), size - (span.stop - span.start) - missing)
    return slice(start, start + span.stop - span.start + missing)


def _batch(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 3 h w"]:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
