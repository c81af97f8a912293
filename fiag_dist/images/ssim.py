"""Structural similarity (Wang et al., 2004): the CPU kernel, or torch operations for any device, the same numbers from both."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fiag_dist.config import SsimBackend
from fiag_dist.errors import ConfigError
from fiag_dist.images.backend import Choice, must_agree
from fiag_dist.kernels import ssim as kernel
from fiag_dist.kernels.ssim import C1, C2, SIGMA, WINDOW


def ssim(
    image: Float[Tensor, "c h w"], target: Float[Tensor, "c h w"], backend: SsimBackend = "auto"
) -> Float[Tensor, ""]:
    """Mean structural similarity over pixels and channels of two images in 0..1, at most 1; the loss and the metric alike.

    11 x 11 Gaussian window of sigma 1.5, zero padding. Gradient to `image` alone. Raises ConfigError for a backend that can't run here (`choose`).
    """
    if choose(backend, image.device).name == "cpu":
        return kernel.ssim(image, target)
    return _by_convolution(image, target.detach())


def choose(wanted: SsimBackend, device: torch.device) -> Choice:
    """The backend for images on `device`: the CPU kernel for host memory, torch elsewhere. Raises ConfigError for `cpu` elsewhere."""
    if wanted == "cpu" and device.type != "cpu":
        raise ConfigError(
            f"ssim backend cpu: images are on {device}, the rule is host memory; use backend auto or torch"
        )
    if wanted == "torch":
        return Choice("torch", "it was asked for")
    return Choice("cpu", "images in host memory") if device.type == "cpu" else Choice("torch", f"images on {device}")


def try_out(backend: SsimBackend, device: torch.device) -> None:
    """Compares two small images and raises RuntimeError, or what the backend raises, unless value and gradient are those of the definition."""
    wave_CHW = torch.arange(2 * 9 * 14.0).reshape(2, 9, 14)
    image, target = 0.5 + 0.4 * torch.sin(wave_CHW), 0.5 + 0.4 * torch.sin(1.1 * wave_CHW)
    got, wanted = image.to(device, copy=True).requires_grad_(), image.double().requires_grad_()
    value, exact = ssim(got, target.to(device), backend), _by_definition(wanted, target.double())
    value.backward()
    exact.backward()
    must_agree(value, exact, "the similarity")
    must_agree(got.grad, wanted.grad, "its gradient")


def _by_convolution(image_CHW: Tensor, target_CHW: Tensor) -> Tensor:
    """On any device, in the image's own float type; nothing is copied from the host and nothing is waited for."""
    channels = image_CHW.shape[0]
    maps_Q = (image_CHW, target_CHW, image_CHW * image_CHW, target_CHW * target_CHW, image_CHW * target_CHW)
    # One group for each map: that form of convolution is computed in full float32 on CUDA, where others round to 10 bits.
    window_Q = _window(5 * channels, image_CHW.dtype, image_CHW.device)
    rows = F.conv2d(torch.cat(maps_Q)[None], window_Q[:, :, None, :], padding=(0, WINDOW // 2), groups=5 * channels)
    blurred = F.conv2d(rows, window_Q[:, :, :, None], padding=(WINDOW // 2, 0), groups=5 * channels)[0]
    mean_a, mean_b, square_a, square_b, product = blurred.split(channels)
    return _similarity(mean_a, mean_b, square_a, square_b, product).mean()


@lru_cache
def _window(groups: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The window along one axis, once for each group: [groups, 1, WINDOW]. Brought to the device once."""
    with torch.inference_mode(False):  # it outlives the call that first needs it, and others learn
        taps = torch.exp(-((torch.arange(WINDOW) - WINDOW // 2).double() ** 2) / (2 * SIGMA**2))
        return (taps / taps.sum()).to(device, dtype).repeat(groups, 1, 1)


def _similarity(mean_a: Tensor, mean_b: Tensor, square_a: Tensor, square_b: Tensor, product: Tensor) -> Tensor:
    top = (2 * mean_a * mean_b + C1) * (2 * (product - mean_a * mean_b) + C2)
    bottom = (mean_a**2 + mean_b**2 + C1) * (square_a - mean_a**2 + square_b - mean_b**2 + C2)
    return top / bottom


def _by_definition(image_CHW: Tensor, target_CHW: Tensor) -> Tensor:
    """Every pixel's window cut out and weighted: small images alone."""
    taps_K = _window(1, image_CHW.dtype, image_CHW.device).flatten()
    weights_KK = torch.outer(taps_K, taps_K).flatten()[:, None]
    a, b = (F.unfold(x[:, None], WINDOW, padding=WINDOW // 2) for x in (image_CHW, target_CHW))
    return _similarity(*((weights_KK * x).sum(1) for x in (a, b, a * a, b * b, a * b))).mean()
