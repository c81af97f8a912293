"""How far two images are apart, pixel by pixel and window by window: PSNR and SSIM of the head, of the mouth and of everything."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from fiag_dist.images.ssim import ssim
from fiag_dist.types import Frame

_CEILING = 1e-10
"""A smaller mean squared error counts as this: PSNR ends at 100 dB."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What a rendered frame is compared with."""

    image: UInt8[np.ndarray, "size size 3"]
    head: Bool[np.ndarray, "size size"]
    """Pixels of the head; all of them when the frame shows no head."""
    lips_rect: tuple[int, int, int, int]

    @classmethod
    def of(cls, frame: Frame) -> "Truth":
        head = frame.alpha > 127
        return cls(frame.image, head if head.any() else np.ones_like(head), frame.lips_rect)

    @property
    def head_box(self) -> tuple[slice, slice]:
        """Rows and columns of the smallest box around the head."""
        ys, xs = np.flatnonzero(self.head.any(1)), np.flatnonzero(self.head.any(0))
        return slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1)

    def psnr(self, image: UInt8[np.ndarray, "size size 3"]) -> dict[str, float]:
        """Decibels of the head's pixels, of the full frame and of the lip rectangle, by the key they are stored under."""
        error = np.square(image.astype(np.float64) - self.image).mean(2) / 255**2
        x0, y0, x1, y1 = self.lips_rect
        return {
            "head_psnr_db": psnr(error[self.head].mean()),
            "full_psnr_db": psnr(error.mean()),
            "mouth_psnr_db": psnr(error[y0:y1, x0:x1].mean()),
        }

    def ssim(self, image: UInt8[np.ndarray, "size size 3"]) -> dict[str, float]:
        """SSIM of the head's box and of the full frame, by the key they are stored under."""
        box = self.head_box
        return {
            "head_ssim": similarity(image[box], self.image[box]),
            "full_ssim": similarity(image, self.image),
        }


def psnr(error: float) -> float:
    """Decibels of a mean squared error of values in 0..1; 100 at most."""
    return float(-10 * np.log10(max(error, _CEILING)))


def similarity(image: UInt8[np.ndarray, "h w 3"], truth: UInt8[np.ndarray, "h w 3"]) -> float:
    """SSIM of two 8-bit images: 11 x 11 Gaussian window, sigma 1.5, zero padding, mean over RGB (Wang et al., 2004)."""
    image_CHW, truth_CHW = (torch.from_numpy(x).permute(2, 0, 1).float() / 255 for x in (image, truth))
    return float(ssim(image_CHW, truth_CHW))
