"""Projection and blending, each alone, against float64 twins; projection and spherical harmonics against gsplat's own reference in torch."""

import pytest
import torch
from numeric_twins import assert_close
from numeric_twins import blend as blend_twin
from numeric_twins import project as project_twin
from scenes import SCENES, gradients, image_gradients, incoming, leaves, scene

from fiag_dist.errors import ConfigError
from fiag_dist.images.raster import view_colors
from fiag_dist.kernels.projection import project
from fiag_dist.kernels.raster import blend
from fiag_dist.types import Camera


def size_of(camera: Camera) -> tuple[int, int]:
    return camera.width, camera.height


@pytest.mark.parametrize("name", SCENES)
def test_projection_and_its_gradients_match_the_twin(name: str) -> None:
    values, camera = SCENES[name]()
    parts, exact = leaves(values[:3]), leaves(values[:3], torch.float64)
    means2d, conics, depths, radii = project(*parts, values[3], camera.viewmat, camera.K, *size_of(camera))
    wanted_means2d, wanted_conics, wanted_depths = project_twin(*exact, camera.viewmat, camera.K, size_of(camera))
    seen = radii[:, 0] > 0
    assert 0 < int(seen.sum()) < len(seen)
    assert_close(means2d[seen], wanted_means2d[seen], "means2d", quantile=1.0)
    assert_close(depths, wanted_depths, "depths", quantile=1.0)
    # Needles: their conics' largest entries are 1 / blur, what is small between them is a difference of such numbers.
    assert_close(conics[seen], wanted_conics[seen], "conics")

    v_means2d, v_conics = incoming((len(seen), 2), (len(seen), 3))
    (v_means2d * means2d).sum().add((v_conics * conics).sum()).backward()
    (v_means2d * wanted_means2d)[seen].sum().add((v_conics * wanted_conics)[seen].sum()).backward()
    for what, a, b in zip(("means", "quats", "scales"), gradients(parts), gradients(exact), strict=True):
        assert_close(a, b, f"{what} gradient")
        assert not a[~seen].any(), f"{what} of what is not seen"


@pytest.mark.parametrize("name", SCENES)
def test_extents_reach_to_where_alpha_falls_below_a_255th(name: str) -> None:
    values, camera = SCENES[name]()
    opacities = values[3].double()
    means2d, conics, depths = project_twin(*(x.double() for x in values[:3]), camera.viewmat, camera.K, size_of(camera))
    a, b, c = conics.unbind(-1)
    variances = torch.stack([c, a], -1) / (a * c - b * b)[:, None]
    sigmas = (2 * (255 * opacities).clamp(min=1).log()).sqrt().clamp(max=3.33)
    extents = (sigmas[:, None] * variances.sqrt()).ceil()
    inside = (means2d + extents > 0) & (means2d - extents < torch.tensor(size_of(camera)))
    wanted = torch.where(((depths > 0.01) & (opacities >= 1 / 255) & inside.all(-1))[:, None], extents, 0.0)
    radii = project(*values[:4], camera.viewmat, camera.K, *size_of(camera))[3]
    assert torch.equal(radii, radii.round())
    assert float((radii != wanted).double().mean()) < 0.01  # a whole number of pixels is where rounding decides
    assert float(((radii - wanted).abs() > 1).double().mean()) < 0.005


@pytest.mark.parametrize("name", SCENES)
def test_blending_and_its_gradients_match_the_twin(name: str) -> None:
    values, camera = SCENES[name]()
    with torch.no_grad():
        means2d, conics, depths, radii = project(*values[:4], camera.viewmat, camera.K, *size_of(camera))
    background = torch.tensor([0.2, 0.5, 0.3])
    inputs = [means2d, conics, values[4], values[3]]
    parts, exact = leaves(inputs), leaves(inputs, torch.float64)
    image, alpha = blend(*parts, radii, depths, background, *size_of(camera))
    seen = radii[:, 0] > 0
    wanted_image, wanted_alpha = blend_twin(
        *(x[seen] for x in exact), depths[seen].double(), background, size_of(camera)
    )
    v_image, v_alpha = image_gradients(camera, 3)
    (v_image * image).sum().add((v_alpha[0] * alpha).sum()).backward()
    (v_image * wanted_image).sum().add((v_alpha[0] * wanted_alpha).sum()).backward()
    assert_close(image, wanted_image, "image")
    assert_close(alpha, wanted_alpha, "alpha")
    for what, a, b in zip(
        ("means2d", "conics", "colors", "opacities"), gradients(parts), gradients(exact), strict=True
    ):
        assert_close(a, b, f"{what} gradient", norm=5e-3)
        assert not a[~seen].any(), f"{what} of what is not seen"


@pytest.mark.parametrize(("opacity", "alpha"), [(1.0, 0.999), (0.9, 0.9)])
def test_alpha_at_its_clamp_hands_on_no_gradient(opacity: float, alpha: float) -> None:
    """One Gaussian so wide that every pixel sees its middle."""
    parts = leaves(
        [torch.tensor([[20.0, 4.0]]), torch.tensor([[1e-6, 0, 1e-6]]), torch.rand(1, 3), torch.tensor([opacity])]
    )
    image, got = blend(*parts, torch.full((1, 2), 99.0), torch.ones(1), torch.zeros(3), 40, 8)
    (image.sum() + got.sum()).backward()
    assert float((got - alpha).detach().abs().max()) < 1e-3
    v_means2d, v_conics, v_colors, v_opacities = gradients(parts)
    assert torch.allclose(v_colors, got.detach().sum().expand(1, 3))
    for v in (v_means2d, v_conics, v_opacities):
        assert v.any() == (opacity < 0.999)


@pytest.mark.parametrize("name", SCENES)
def test_projection_matches_gsplats_reference(name: str) -> None:
    reference = pytest.importorskip("gsplat.cuda._torch_impl")
    values, camera = SCENES[name]()
    means, quats, scales = exact = leaves(values[:3], torch.float64)
    covariances = reference._quat_scale_to_covar_preci(quats, scales, compute_preci=False)[0]
    radii, means2d, depths, conics, _ = reference._fully_fused_projection(
        means, covariances, camera.viewmat.double()[None], camera.K.double()[None], *size_of(camera)
    )
    parts = leaves(values[:3])
    ours = project(*parts, values[3], camera.viewmat, camera.K, *size_of(camera))
    seen = ours[3][:, 0] > 0
    # gsplat's reference does not narrow extents by opacity: whatever we see, it sees, and no smaller.
    assert bool((radii[0][seen] >= ours[3][seen] - 1).all())
    assert_close(ours[0][seen], means2d[0][seen], "means2d", quantile=1.0)
    assert_close(ours[1][seen], conics[0][seen], "conics")
    assert_close(ours[2], depths[0], "depths", quantile=1.0)
    v_means2d, v_conics = incoming((len(seen), 2), (len(seen), 3))
    (v_means2d * ours[0]).sum().add((v_conics * ours[1]).sum()).backward()
    (v_means2d * means2d[0])[seen].sum().add((v_conics * conics[0])[seen].sum()).backward()
    for what, a, b in zip(("means", "quats", "scales"), gradients(parts), gradients(exact), strict=True):
        assert_close(a, b, f"{what} gradient")


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("zoom", [0.5, 4])
def test_a_picture_of_another_size_is_the_same_one(name: str, zoom: float) -> None:
    """Centres and covariances, with what blurs them, grow by the same factor."""
    values, camera = SCENES[name]()
    K, size = camera.K.clone(), [int(zoom * side) for side in size_of(camera)]
    K[:2] *= zoom
    means2d, conics, depths, radii = project(*values[:4], camera.viewmat, camera.K, *size_of(camera))
    at = project(*values[:4], camera.viewmat, K, *size, zoom)
    seen = (radii[:, 0] > 0) & (at[3][:, 0] > 0)
    assert int(seen.sum()) > 0.9 * int((radii[:, 0] > 0).sum())
    assert_close(at[0][seen], zoom * means2d[seen].double(), "means2d", quantile=1.0)
    assert_close(at[1][seen], conics[seen].double() / zoom**2, "conics", typical=1e-3)
    assert torch.equal(at[2], depths)
    other = (at[3][seen] - zoom * radii[seen]).abs() > max(zoom, 1)
    assert float(other.double().mean()) < 0.01  # of the huge ones a rounding is more than a pixel


def test_nothing_in_view_leaves_background_and_zero_gradients() -> None:
    """All behind the camera, and all fainter than a 255th."""
    for what in ("behind", "faint"):
        values, camera = scene(40)
        if what == "behind":
            values[0] -= 3 * camera.viewmat[2, :3]
        else:
            values[3] = torch.full_like(values[3], 0.9 / 255)
        parts = leaves(values)
        background = torch.tensor([0.2, 0.5, 0.3])
        means2d, conics, depths, radii = project(*parts[:4], camera.viewmat, camera.K, *size_of(camera))
        image, alpha = blend(means2d, conics, parts[4], parts[3], radii, depths, background, *size_of(camera))
        (image.sum() + alpha.sum()).backward()
        assert not radii.any(), what
        assert torch.equal(image, background[:, None, None].expand_as(image)), what
        assert not alpha.any(), what
        assert not any(v.any() for v in gradients(parts)), what


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_view_colors_match_gsplats_reference(degree: int) -> None:
    reference = pytest.importorskip("gsplat.cuda._torch_impl")
    values, camera = scene(50)
    draw = torch.Generator().manual_seed(4)
    sh = torch.randn(50, (degree + 1) ** 2, 3, generator=draw)
    means = values[0].clone().requires_grad_()
    dc, rest = sh[:, 0].clone().requires_grad_(), sh[:, 1:].clone().requires_grad_()
    colors = view_colors(dc, rest, means, camera)
    center = torch.linalg.inv(camera.viewmat)[:3, 3]
    wanted = reference._spherical_harmonics(degree, values[0] - center, sh) + 0.5
    assert torch.allclose(colors, wanted.clamp(min=0), atol=1e-5)
    colors.sum().backward()
    assert means.grad is None
    assert dc.grad is not None
    assert torch.equal(dc.grad == 0, colors == 0)
    assert degree == 0 or (rest.grad is not None and rest.grad.any())


def test_view_colors_refuses_a_count_that_is_no_degree() -> None:
    _, camera = scene(1)
    with pytest.raises(ConfigError, match="4 coefficients above degree 0, the rule is 0, 3, 8 or 15"):
        view_colors(torch.zeros(1, 3), torch.zeros(1, 4, 3), torch.zeros(1, 3), camera)
