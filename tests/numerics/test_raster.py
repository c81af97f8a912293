"""The CPU rasteriser, projection and blending together, against a float64 twin, finite differences and itself; gsplat without a GPU."""

import inspect
from importlib.metadata import version

import pytest
import torch
from numeric_twins import assert_close, render
from scenes import NAMES, SCENES, gradients, image_gradients, leaves, scene

from fiag_dist import raster
from fiag_dist.errors import ConfigError
from fiag_dist.kernels.projection import project
from fiag_dist.kernels.raster import blend
from fiag_dist.raster import rasterize
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
    for what, a, b in zip(NAMES, gradients(fast), gradients(exact), strict=True):
        assert_close(a, b, f"{what} gradient", norm=5e-3)


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
    assert got.image.shape == (3, 45, 61)
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
    turned = Camera(viewmat=camera.viewmat.T.contiguous().T, K=camera.K.T.contiguous().T, width=61, height=45)
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


def test_call_of_gsplat_fits_its_signature_and_its_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """gsplat's own kernels need CUDA; in their place stand ours, behind gsplat's signature, defaults and shapes."""
    rendering = pytest.importorskip("gsplat.rendering")
    assert version("gsplat").startswith("1.5.")
    signature = inspect.signature(rendering.rasterization)

    def stand_in(**arguments):
        full = signature.bind(**arguments)
        full.apply_defaults()
        a = full.arguments
        assert (a["sh_degree"], a["render_mode"], a["rasterize_mode"], a["camera_model"]) == (
            None,
            "RGB",
            "classic",
            "pinhole",
        )
        assert (a["packed"], a["near_plane"], a["far_plane"], a["eps2d"], a["radius_clip"]) == (
            False,
            0.01,
            1e10,
            0.3,
            0.0,
        )
        size = (a["width"], a["height"])
        gaussians = (a["means"], a["quats"], a["scales"], a["opacities"])
        means2d_N2, conics, depths, radii = project(*gaussians, a["viewmats"][0], a["Ks"][0], *size)
        means2d_1N2 = means2d_N2[None]
        image, alpha = blend(
            means2d_1N2[0], conics, a["colors"], a["opacities"], radii, depths, a["backgrounds"][0], *size
        )
        meta = {"means2d": means2d_1N2, "radii": radii.int()[None]}
        return image.permute(1, 2, 0)[None], alpha[None, :, :, None], meta

    monkeypatch.setattr(rendering, "rasterization", stand_in)
    values, camera = scene(100, 5)
    ours, theirs = leaves(values), leaves(values)
    background = torch.linspace(0, 1, 5)
    a = rasterize(*ours, camera, background)
    b = raster._rasterize_gsplat(*theirs, camera, background)
    for field in ("image", "alpha", "means2d", "radii"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field
    (a.image**2).sum().backward()
    (b.image**2).sum().backward()
    assert a.means2d.grad is not None
    assert b.means2d.grad is not None
    assert torch.equal(a.means2d.grad, b.means2d.grad)
    assert all(
        torch.equal(p.grad, q.grad)
        for p, q in zip(ours, theirs, strict=True)
        if p.grad is not None and q.grad is not None
    )


@pytest.mark.gpu
@pytest.mark.parametrize("num", [0, 300])
def test_gsplat_matches_the_cpu(num: int) -> None:
    pytest.importorskip("gsplat")
    values, camera = scene(300, 5)
    values = [x[:num] for x in values]
    v_image, v_alpha = image_gradients(camera, 5)
    results = {}
    for device in ("cpu", "cuda"):
        parts = [x.to(device).clone().requires_grad_() for x in values]
        view = Camera(viewmat=camera.viewmat.to(device), K=camera.K.to(device), width=61, height=45)
        got = rasterize(*parts, view, torch.linspace(0, 1, 5, device=device))
        if num:
            ((got.image * v_image.to(device)).sum() + (got.alpha * v_alpha.to(device)).sum()).backward()
        gradients = [got.means2d.grad, *(p.grad for p in parts)]
        results[device] = [got.image, got.alpha, got.radii, *(g for g in gradients if g is not None)]
    assert len(results["cpu"]) == len(results["cuda"])
    for name, a, b in zip(
        ("image", "alpha", "radii", "means2d", *NAMES), results["cuda"], results["cpu"], strict=False
    ):
        if b.any():
            assert_close(a.cpu(), b, name, norm=5e-3)
        else:
            assert not a.any()
