"""Checked mode refuses numbers that are not finite, by name and place; without it they do what the docstrings say."""

import os
from collections.abc import Callable

import pytest
import torch
from scenes import NAMES, gradients, leaves, scene
from torch import Tensor

from fiag_dist.ending import guarded
from fiag_dist.errors import CHECKED, NumericsError
from fiag_dist.images.raster import rasterize
from fiag_dist.kernels.grid import encode, layout
from fiag_dist.kernels.mlp import mlp
from fiag_dist.kernels.projection import project
from fiag_dist.kernels.raster import blend
from fiag_dist.kernels.ssim import ssim

NAN, INF = float("nan"), float("inf")
GRID = layout(3, 8, 20.0, 17)


def inputs() -> dict[str, tuple[Callable[..., Tensor], dict[str, Tensor]]]:
    """Each kernel as a function of its tensors, by the names that an error gives them; all finite."""
    (means, quats, scales, opacities, colors), camera = scene(40)
    size = (camera.width, camera.height)
    gaussians = {"means": means, "quats": quats, "scales": scales, "opacities": opacities}
    means2d, conics, depths, radii = project(*gaussians.values(), camera.viewmat, camera.K, *size)
    seen = {"means2d": means2d, "conics": conics, "colors": colors, "opacities": opacities, "radii": radii}
    draw = torch.Generator().manual_seed(0)
    image, target = torch.rand(2, 3, 20, 20, generator=draw)
    points, table = torch.rand(9, 3, generator=draw), torch.rand(3, GRID.rows, 2, generator=draw)
    return {
        "project": (
            lambda *parts: torch.cat([x.flatten() for x in project(*parts, *size)[:2]]),
            {**gaussians, "viewmat": camera.viewmat, "K": camera.K},
        ),
        "blend": (
            lambda *parts: torch.cat([x.flatten() for x in blend(*parts, *size)]),
            {**seen, "depths": depths, "background": torch.zeros(3)},
        ),
        "encode": (lambda points, table: encode(points, table, GRID), {"points": points, "table": table}),
        "mlp": (
            mlp,
            {
                "inputs": points,
                "weights_0": torch.rand(4, 3, generator=draw),
                "weights_1": torch.rand(2, 4, generator=draw),
            },
        ),
        "ssim": (ssim, {"image": image, "target": target}),
    }


CASES = [(kernel, name) for kernel, (_, tensors) in inputs().items() for name in tensors]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(("kernel", "name"), CASES)
def test_what_enters_a_kernel_is_refused(kernel: str, name: str, value: float) -> None:
    function, tensors = inputs()[kernel]
    function(*tensors.values())
    broken = tensors[name].clone()
    place = tuple(size - 1 for size in broken.shape)
    broken[place] = value
    found = (
        rf"^{kernel}: 1 of {broken.numel()} values of {name} .*, the first {value} at \[{', '.join(map(str, place))}\]"
    )
    with pytest.raises(NumericsError, match=found):
        function(*(tensors | {name: broken}).values())


@pytest.mark.parametrize("kernel", ["project", "blend", "encode", "ssim"])
def test_gradients_that_enter_a_kernel_are_refused(kernel: str) -> None:
    function, tensors = inputs()[kernel]
    first = next(iter(tensors))
    out = function(*(tensors | {first: tensors[first].clone().requires_grad_()}).values())
    with pytest.raises(NumericsError, match=f"^{kernel}'s gradient: 1 of .* are not finite, the first nan at"):
        (out.flatten()[0] * NAN).backward()


def test_debug_turns_checked_mode_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(CHECKED, "0")
    bad = torch.full((1, 4, 4), NAN)

    def main(argv: list[str]) -> int:
        ssim(bad, bad)
        return 0

    assert guarded(main, []) == 0
    assert guarded(main, ["--debug"]) == 2
    assert os.environ[CHECKED] == "1"
    assert "fiag-dist: ssim: 16 of 16 values of image are not finite" in capsys.readouterr().err


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", NAMES[:4])
def test_unchecked_a_gaussian_that_is_not_finite_is_not_drawn(
    name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHECKED, "0")
    values, camera = scene(60)
    background = torch.tensor([0.2, 0.5, 0.3])
    wanted_parts = leaves(values)
    wanted = rasterize(*wanted_parts, camera, background)
    wanted.image.sum().backward()
    column = NAMES.index(name)
    for entry in range(values[column][0].numel()):
        broken = [torch.cat([x, x[-1:]]) for x in values]
        broken[column].view(61, -1)[60, entry] = value
        parts = leaves(broken)
        got = rasterize(*parts, camera, background)
        got.image.sum().backward()
        assert torch.equal(got.image, wanted.image)
        assert not got.radii[60].any()
        for before, after in zip(gradients(wanted_parts), gradients(parts), strict=True):
            assert torch.equal(after[:60], before)
            assert not after[60].any()


@pytest.mark.parametrize("scale", [1e15, 1e25])
def test_unchecked_a_gaussian_too_large_for_float32_is_not_drawn(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite itself, but its inverse covariance isn't, or is 0 all over."""
    monkeypatch.setenv(CHECKED, "0")
    values, camera = scene(60)
    wanted = rasterize(*values, camera, torch.zeros(3))
    broken = [torch.cat([x, x[-1:]]) for x in values]
    broken[2][60] = scale
    parts = leaves(broken)
    got = rasterize(*parts, camera, torch.zeros(3))
    got.image.sum().backward()
    assert not got.radii[60].any()
    assert torch.equal(got.image, wanted.image)
    assert not any(v[60].any() for v in gradients(parts))


def test_unchecked_a_color_spoils_the_pixels_it_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECKED, "0")
    values, camera = scene(60)
    wanted = rasterize(*values, camera, torch.zeros(3)).image
    values[4][7, 1] = NAN
    got = rasterize(*values, camera, torch.zeros(3)).image
    spoilt = got.isnan()
    assert spoilt.any()
    assert not spoilt[[0, 2]].any()
    assert torch.equal(got[~spoilt], wanted[~spoilt])


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_unchecked_a_point_that_is_not_finite_lies_outside(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECKED, "0")
    draw = torch.Generator().manual_seed(0)
    points, table = torch.rand(9, 3, generator=draw), torch.rand(3, GRID.rows, 2, generator=draw)
    wanted_parts = leaves([points[:8], table])
    wanted = encode(*wanted_parts, GRID)
    wanted.sum().backward()
    points[8, 1] = value
    parts = leaves([points, table])
    got = encode(*parts, GRID)
    got.sum().backward()
    assert torch.equal(got[:8], wanted)
    assert not got[8].any()
    v_points, v_table = gradients(parts)
    assert torch.equal(v_points[:8], gradients(wanted_parts)[0])
    assert not v_points[8].any()
    assert torch.equal(v_table, gradients(wanted_parts)[1])


def test_unchecked_a_table_entry_spoils_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECKED, "0")
    draw = torch.Generator().manual_seed(0)
    points, table = torch.rand(500, 3, generator=draw), torch.rand(3, GRID.rows, 1, generator=draw)
    wanted = encode(points, table, GRID)
    table[1, 9 * 3 + 4] = NAN  # vertex (3, 3) or so of the coarsest level, on the plane of y and z
    got = encode(points, table, GRID)
    spoilt = got.isnan()
    assert 0 < int(spoilt.sum()) < 60
    assert not spoilt[:, [0, 1, 2, 4, 5, 6, 7, 8]].any()
    assert torch.equal(got[~spoilt], wanted[~spoilt])


def test_unchecked_similarity_is_nan_and_so_are_gradients_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECKED, "0")
    draw = torch.Generator().manual_seed(0)
    image, target = torch.rand(2, 1, 60, 60, generator=draw)
    image[0, 30, 30] = NAN
    part = image.clone().requires_grad_()
    value = ssim(part, target)
    value.backward()
    assert value.isnan()
    assert part.grad is not None
    assert part.grad[0, 30, 30].isnan()
    assert torch.isfinite(part.grad[0, :19]).all()
