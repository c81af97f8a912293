"""SSIM against a float64 twin with the whole window at once."""

import pytest
import torch
from numeric_twins import assert_close
from numeric_twins import ssim as twin

from fiag_dist.images.ssim import ssim

SIZES = [(3, 64, 64), (3, 37, 53), (1, 5, 7), (3, 33, 1)]


def images(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=draw)
    return (0.7 * target + 0.3 * torch.rand(shape, generator=draw)), target


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_value_and_gradient_match_the_twin(backend, shape: tuple[int, int, int]) -> None:
    image, target = images(shape)
    exact = image.double().requires_grad_()
    wanted = twin(exact, target.double())
    (3 * wanted).backward()
    fast = image.requires_grad_()
    got = ssim(fast, target, backend)
    (3 * got).backward()
    assert got.shape == ()
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), abs=2e-6)
    assert fast.grad is not None
    assert exact.grad is not None
    assert_close(fast.grad, exact.grad, "gradient", norm=1e-4, quantile=1.0)


def test_known_values() -> None:
    image, target = images((3, 40, 41))
    assert float(ssim(target, target)) == pytest.approx(1, abs=1e-6)
    assert float(ssim(image, target)) == pytest.approx(float(ssim(target, image)), abs=1e-6)
    flat_a, flat_b = torch.full((1, 301, 301), 0.25), torch.full((1, 301, 301), 0.75)
    # Away from the border only the means differ: (2 a b + C1) / (a^2 + b^2 + C1) = 0.6001; the border, where variances differ too, is 6.5 %.
    assert 0.935 * 0.6001 < float(ssim(flat_a, flat_b)) < 0.6001


def test_strided_images_and_images_without_gradient() -> None:
    image, target = images((3, 37, 53))
    wanted = ssim(image, target)
    assert not wanted.requires_grad
    turned = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not turned.is_contiguous()
    assert torch.equal(ssim(turned, target.double()), wanted)


def test_finite_differences() -> None:
    image, target = images((2, 6, 9))
    part = image.clone().requires_grad_()
    ssim(part, target).backward()
    assert part.grad is not None
    step = 2e-3
    numeric = torch.zeros_like(image)
    for entry in range(image.numel()):
        moved = torch.zeros_like(image)
        moved.view(-1)[entry] = step
        numeric.view(-1)[entry] = (ssim(image + moved, target) - ssim(image - moved, target)) / (2 * step)
    assert_close(part.grad, numeric, "gradient", norm=2e-3, quantile=1.0, typical=4e-3)


def test_dark_bright_and_equal_images() -> None:
    """Where variances or means vanish, float32 still agrees with the twin."""
    image, target = images((3, 33, 47))
    pairs = {
        "black": (torch.zeros_like(image), target),
        "white against black": (torch.ones_like(image), torch.zeros_like(image)),
        "all but equal": (target + 1e-3 * image, target),
        "flat": (torch.full_like(image, 0.5), torch.full_like(image, 0.4)),
        "striped": ((torch.arange(47) % 2).float().expand(3, 33, 47).contiguous(), target),
    }
    for name, (a, b) in pairs.items():
        exact, fast = a.double().requires_grad_(), a.clone().requires_grad_()
        wanted, got = twin(exact, b.double()), ssim(fast, b)
        wanted.backward()
        got.backward()
        assert float(got.detach()) == pytest.approx(float(wanted.detach()), abs=1e-5), name
        assert fast.grad is not None
        assert exact.grad is not None
        assert_close(fast.grad, exact.grad, name, norm=3e-3, quantile=1.0, typical=3e-3)
