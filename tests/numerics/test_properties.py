"""What must hold for any sizes: hypothesis draws them, the same ones in every run."""

import itertools

import pytest
import torch
from drawn import repeatable
from hypothesis import given
from hypothesis import strategies as st
from numeric_twins import encode as encode_twin
from numeric_twins import render
from numeric_twins import ssim as ssim_twin
from scenes import camera, gradients, image_gradients, incoming, leaves, scene
from torch import Tensor

from fiag_dist.images.raster import rasterize
from fiag_dist.kernels.grid import encode, layout
from fiag_dist.kernels.ssim import ssim
from fiag_dist.kernels.warm import CHANNELS
from fiag_dist.types import Rendering

SIDES = st.one_of(st.sampled_from([1, 15, 16, 17, 32, 33, 63, 64, 65]), st.integers(1, 80))
"""Of images, pixels: those at which tiles and SIMD registers end, and any others."""
FEW = st.sampled_from([0, 1, 2, 40])


def rendered(values: list[Tensor], width: int, height: int, background: Tensor) -> tuple[Rendering, list[Tensor]]:
    """The image, and the gradients of one random sum over image and alpha."""
    view = camera(width, height)
    parts = leaves(values)
    got = rasterize(*parts, view, background)
    v_image, v_alpha = image_gradients(view, len(background))
    ((got.image * v_image).sum() + (got.alpha * v_alpha).sum()).backward()
    return got, gradients(parts)


def check_image(width: int, height: int, num: int, channels: int, seed: int) -> None:
    values, _ = scene(num, channels, seed)
    background = torch.linspace(0.1, 0.9, channels)
    got, found = rendered(values, width, height, background)
    wanted, wanted_alpha, _ = render(*(x.double() for x in values), camera(width, height), background)
    assert got.image.shape == (channels, height, width)
    assert got.alpha.shape == (1, height, width)
    # A Gaussian at a threshold counts here and not there: one step of 1/255, for a few pixels at most.
    for name, a, b in (("image", got.image, wanted), ("alpha", got.alpha, wanted_alpha)):
        error = (a.detach().double() - b).abs()
        assert float(error.max()) < 0.01, name
        assert float((error > 1e-4).double().mean()) <= max(0.01, 1 / error.numel()), name
    assert all(torch.isfinite(v).all() for v in found)
    # Alpha stops short of 1, and an image lies between the darkest and the brightest of what it blends.
    alpha, image = got.alpha.detach(), got.image.detach()
    assert float(alpha.min()) >= 0
    assert float(alpha.max()) <= 1 - 0.99e-4
    lowest = min([float(background.min()), *values[4].flatten().tolist()])
    highest = max([float(background.max()), *values[4].flatten().tolist()])
    assert lowest - 1e-5 <= float(image.min())
    assert float(image.max()) <= highest + 1e-5


@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.slow), *CHANNELS])
def test_any_size_of_image_and_number_of_gaussians(channels: int) -> None:
    @repeatable(15)
    @given(width=SIDES, height=SIDES, num=FEW, seed=st.integers(0, 99))
    def holds(width: int, height: int, num: int, seed: int) -> None:
        check_image(width, height, num, channels, seed)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("channels", sorted({*range(2, 9)} - {*CHANNELS}))
def test_any_number_of_channels(channels: int) -> None:
    """Each number that the warm-up does not know takes half a minute to compile."""
    check_image(33, 17, 40, channels, 0)
    check_image(1, 1, 2, channels, 0)


def test_no_channel_counts_twice_or_leaks_into_another() -> None:
    """A channel's image does not depend on which others are blended with it."""
    values, _ = scene(80, max(CHANNELS))
    background = torch.linspace(0.1, 0.9, max(CHANNELS))
    whole, _ = rendered(values, 37, 21, background)
    for others in itertools.permutations(range(max(CHANNELS)), min(CHANNELS)):
        some = list(others)
        found, _ = rendered([*values[:4], values[4][:, some]], 37, 21, background[some])
        assert float((found.image - whole.image[some]).detach().abs().max()) < 1e-6


@repeatable(10)
@given(width=SIDES, height=SIDES, seed=st.integers(0, 99))
def test_alpha_is_the_image_of_white_on_black(width: int, height: int, seed: int) -> None:
    values, _ = scene(60, 3, seed)
    values[4] = torch.ones_like(values[4])
    got, _ = rendered(values, width, height, torch.zeros(3))
    assert float((got.image - got.alpha).detach().abs().max()) < 1e-5


@repeatable(10)
@given(width=SIDES, height=SIDES, seed=st.integers(0, 99))
def test_order_of_rows_does_not_matter(width: int, height: int, seed: int) -> None:
    values, _ = scene(60, 3, seed)
    turn = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    background = torch.tensor([0.2, 0.5, 0.3])
    got, found = rendered(values, width, height, background)
    turned, turned_found = rendered([x[turn] for x in values], width, height, background)
    assert torch.equal(turned.image, got.image)
    assert torch.equal(turned.alpha, got.alpha)
    assert all(torch.equal(b, a[turn]) for a, b in zip(found, turned_found, strict=True))


@repeatable(10)
@given(width=SIDES, height=SIDES, seed=st.integers(0, 99), opacity=st.sampled_from([0.0, 0.9 / 255]))
def test_rows_without_opacity_change_nothing(width: int, height: int, seed: int, opacity: float) -> None:
    values, _ = scene(40, 3, seed)
    more, _ = scene(20, 3, seed + 1)
    more[3] = torch.full_like(more[3], opacity)
    background = torch.tensor([0.2, 0.5, 0.3])
    got, found = rendered(values, width, height, background)
    longer, longer_found = rendered(
        [torch.cat(pair) for pair in zip(values, more, strict=True)], width, height, background
    )
    assert torch.equal(longer.image, got.image)
    for before, after in zip(found, longer_found, strict=True):
        assert torch.equal(after[:40], before)
        assert not after[40:].any()


@repeatable(25)
@given(
    num=st.sampled_from([0, 1, 5]),
    levels=st.integers(1, 4),
    features=st.sampled_from([1, 2, 4]),
    base=st.integers(2, 20),
    ratio=st.floats(1.0, 12.0),
    log2_table=st.sampled_from([6, 9, 17]),
)
def test_any_grid(num: int, levels: int, features: int, base: int, ratio: float, log2_table: int) -> None:
    grid = layout(levels, base, base * ratio, log2_table)
    draw = torch.Generator().manual_seed(levels)
    unit = torch.rand(num, 3, generator=draw)
    table = torch.rand(3, grid.rows, features, generator=draw) - 0.5
    parts = leaves([unit, table])
    got = encode(*parts, grid)
    assert got.shape == (num, 3 * levels * features)
    (v,) = incoming(tuple(got.shape))
    (got * v).sum().backward()
    _, v_table = gradients(parts)
    if num:
        wanted = encode_twin(unit.double(), table.double(), base, grid.growth, levels, log2_table)
        assert float((got - wanted).detach().abs().max()) < 2e-4
    # Corners' weights add up to 1: a constant table has constant features, and its gradient hands on all that came in.
    assert float((encode(unit, torch.ones_like(table), grid) - 1).abs().sum()) < 1e-4
    incoming_sums = v.reshape(num, 3, levels, features).sum((0, 2))
    assert torch.allclose(v_table.sum(1), incoming_sums, atol=1e-4)


@repeatable(25)
@given(channels=st.integers(1, 8), height=SIDES, width=SIDES, seed=st.integers(0, 99))
def test_similarity_of_images_of_any_size(channels: int, height: int, width: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    image, target = torch.rand(2, channels, height, width, generator=draw)
    part, exact = image.clone().requires_grad_(), image.double().requires_grad_()
    got, wanted = ssim(part, target), ssim_twin(exact, target.double())
    got.backward()
    wanted.backward()
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), abs=5e-6)
    assert part.grad is not None
    assert exact.grad is not None
    assert float((part.grad - exact.grad).abs().max()) <= 1e-3 * float(exact.grad.abs().max())
    assert float(ssim(target, image)) == pytest.approx(float(got.detach()), abs=1e-6)
    assert float(ssim(target, target)) == pytest.approx(1, abs=1e-6)
