"""The CPU rasteriser, projection and blending together, against a float64 twin, finite differences and itself; gsplat without a GPU."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numeric_twins import assert_close, render
from scenes import NAMES, SCENES, gradients, image_gradients, leaves, scene

from fiag_dist.errors import ConfigError
from fiag_dist.images.raster import rasterize
from fiag_dist.kernels.tiles import deal, near_to_far
from fiag_dist.types import Camera


@pytest.mark.parametrize("name", SCENES)
def test_image_and_every_gradient_match_the_twin(name: str) -> None:
    values, camera = SCENES[name]()
    background = torch.tensor([0.2, 0.5, 0.3])
    v_image, v_alpha = image_gradients(camera, 3)
    exact, fast = leaves(values, torch.float64), leaves(values)
    image, alpha, centers = render(*exact, camera, background)
    ((image * v_image).sum() + (alpha * v_alpha).sum()).backward()
    got = rasterize(*fast, camera, background)
    ((got.image * v_image).sum() + (got.alpha * v_alpha).sum()).backward()
    assert_close(got.image, image, "image")
    assert_close(got.alpha, alpha, "alpha")
    seen = got.radii[:, 0] > 0
    assert 0 < int(seen.sum()) < len(seen)
    assert_close(got.means2d[seen], centers[seen], "means2d")
    assert got.means2d.grad is not None
    assert centers.grad is not None
    assert_close(got.means2d.grad, centers.grad, "means2d gradient", norm=5e-3)
    typical = 5e-4 if name == "needles" else 3e-4  # their sums cancel
    for what, a, b in zip(NAMES, gradients(fast), gradients(exact), strict=True):
        assert_close(a, b, f"{what} gradient", norm=5e-3, typical=typical)


def test_finite_differences() -> None:
    """Wide Gaussians on a tiny image: no pixel is near a threshold, so differences are smooth."""
    draw = torch.Generator().manual_seed(3)
    values = [
        0.02 * torch.randn(3, 3, generator=draw),
        torch.randn(3, 4, generator=draw),
        0.08 + 0.04 * torch.rand(3, 3, generator=draw),
        torch.tensor([0.5, 0.7, 0.6]),
        torch.rand(3, 3, generator=draw),
    ]
    camera = Camera(viewmat=torch.eye(4), K=torch.tensor([[60.0, 0, 4], [0, 60, 4], [0, 0, 1]]), width=9, height=7)
    camera.viewmat[2, 3] = 1.0
    v_image, v_alpha = image_gradients(camera, 3)

    def loss(parts: list[torch.Tensor]) -> torch.Tensor:
        got = rasterize(*parts, camera, torch.tensor([0.2, 0.5, 0.3]))
        return (got.image.double() * v_image).sum() + (got.alpha.double() * v_alpha).sum()

    parts = leaves(values)
    loss(parts).backward()
    for part, name in enumerate(NAMES):
        step = 1e-3 if name in ("quats", "opacities", "colors") else 2e-4
        for entry in range(values[part].numel()):
            sides = []
            for sign in (1, -1):
                moved = [x.clone() for x in values]
                moved[part].view(-1)[entry] += sign * step
                sides.append(float(loss(moved)))
            numeric = (sides[0] - sides[1]) / (2 * step)
            gradient = parts[part].grad
            assert gradient is not None
            assert float(gradient.view(-1)[entry]) == pytest.approx(
                numeric, rel=0.02, abs=0.02 * float(gradient.abs().max())
            ), name


@pytest.mark.parametrize("num", [0, 1])
def test_no_gaussian_and_one(num: int) -> None:
    values, camera = scene(40)
    parts = leaves([x[5 : 5 + num] for x in values])
    background = torch.tensor([0.2, 0.5, 0.3])
    got = rasterize(*parts, camera, background)
    (got.image.sum() + got.alpha.sum()).backward()
    assert got.image.shape == (3, 37, 83)
    assert [p.grad.shape for p in parts if p.grad is not None] == [p.shape for p in parts]
    if num == 0:
        assert torch.equal(got.image, background[:, None, None].expand_as(got.image))
        assert not got.alpha.any()
    else:
        assert_close(got.image, render(*(x.double() for x in parts), camera, background)[0], "image")


def test_strided_inputs_and_inputs_without_gradient() -> None:
    values, camera = scene(100)
    background = torch.zeros(3)
    wanted = rasterize(*values, camera, background)
    assert not wanted.image.requires_grad
    strided = [x.repeat_interleave(2, 0)[::2] for x in values]
    strided[4] = values[4].T.contiguous().T
    assert not strided[0].is_contiguous()
    turned = Camera(viewmat=camera.viewmat.T.contiguous().T, K=camera.K.T.contiguous().T, width=83, height=37)
    assert torch.equal(rasterize(*strided, turned, background).image, wanted.image)
    colors = values[4].clone().requires_grad_()
    got = rasterize(*values[:4], colors, camera, background)
    got.image.sum().backward()  # an expanded gradient
    assert colors.grad is not None
    assert colors.grad.any()


def test_in_place_change_before_backward_is_refused() -> None:
    values, camera = scene(60)
    parts = leaves(values)
    got = rasterize(*parts, camera, torch.zeros(3))
    got.image.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        got.image.sum().backward()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gsplat_without_cuda_is_refused() -> None:
    values, camera = scene(3)
    with pytest.raises(ConfigError, match=r"no CUDA device.*use backend auto or cpu"):
        rasterize(*values, camera, torch.zeros(3), backend="gsplat")


def test_gaussians_are_sorted_by_depth_and_ties_stay_in_order() -> None:
    draw = torch.Generator().manual_seed(0)
    depths = torch.cat(
        [torch.rand(3000, generator=draw) * 3 + 0.01, torch.full((50,), 1.25), torch.tensor([1e-30, 1e10])]
    )
    depths = depths[torch.randperm(len(depths), generator=draw)]
    assert near_to_far(depths.numpy()).tolist() == torch.argsort(depths, stable=True).tolist()


def test_tiles_are_dealt_so_that_threads_have_the_same_work() -> None:
    work = np.random.default_rng(0).exponential(1.0, 37).astype(np.float32) ** 2
    for threads in (1, 2, 3, 8):
        order = deal(work, threads)
        assert sorted(order) == list(range(37))
        ends = [k * 37 // threads for k in range(threads + 1)]
        shares = [work[order[a:b]].sum() for a, b in pairwise(ends)]
        assert max(shares) < max(1.1 * work.sum() / threads, 1.05 * work.max())
