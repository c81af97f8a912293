"""The tri-plane encoder against a plain four-corner loop in float64, on every backend that runs here."""

import pytest
import torch
from numeric_twins import assert_close
from numeric_twins import encode as encode_twin
from scenes import gradients, incoming, leaves

from fiag_dist.config import GridConfig
from fiag_dist.errors import ConfigError
from fiag_dist.kernels.grid import encode, layout
from fiag_dist.model.grid import TriPlane
from fiag_dist.types import BOUND_M

GRIDS = {
    "dense": GridConfig(levels=3, finest=38.4, init=1.0),
    "wraps": GridConfig(levels=2, finest=24.8, init=1.0),  # the last half cell reaches beyond the finest level's side
    "hashed": GridConfig(levels=4, features=2, base=8, finest=200.0, log2_table=9, init=1.0),
    "one level": GridConfig(levels=1, base=16, finest=16.0, init=1.0),
    "four features": GridConfig(levels=3, features=4, base=8, finest=40.0, log2_table=10, init=1.0),
}


def points(num: int = 24) -> torch.Tensor:
    """Points in the cube, its corners among them, and some outside."""
    inside = (torch.rand(num, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1) * BOUND_M
    corners = torch.tensor([[1.0, 1, 1], [-1, -1, -1], [1, -1, 1]]) * BOUND_M
    outside = torch.tensor([[0.16, 0, 0], [0, -0.2, 0], [0.1, 0.1, 0.151], [-0.15001, 0, 0]])
    return torch.cat([inside, corners, outside])


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_features_and_gradients_match_a_loop(name: str, backend: str) -> None:
    config = GRIDS[name]
    torch.manual_seed(0)
    grid = TriPlane(config, backend=backend)  # type: ignore[arg-type]
    x = points().requires_grad_()
    # Rounded to float32 as the encoder rounds it: a point must not change cells between the two.
    unit = (x.detach() / (2 * BOUND_M) + 0.5).double().requires_grad_()
    table = grid.table.detach().double().requires_grad_()
    wanted = encode_twin(unit, table, config.base, grid.layout.growth, config.levels, config.log2_table)
    got = grid(x)
    assert got.shape == (len(x), config.dim)
    assert got.dtype == torch.float32
    assert_close(got, wanted, "features", quantile=1.0)
    v = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    (got * v).sum().backward()
    (wanted * v).sum().backward()
    assert x.grad is not None
    assert unit.grad is not None
    assert grid.table.grad is not None
    assert table.grad is not None
    assert_close(grid.table.grad, table.grad, "table gradient", quantile=1.0)
    assert_close(x.grad, unit.grad / (2 * BOUND_M), "points' gradient", quantile=1.0)
    assert not got[-4:].any()
    assert not x.grad[-4:].any()


@pytest.mark.parametrize("name", ["dense", "hashed", "four features"])
def test_finite_differences(name: str) -> None:
    """The table acts linearly; points move within their cells, where features are quadratic."""
    config = GRIDS[name]
    grid = layout(config.levels, config.base, config.finest, config.log2_table)
    draw = torch.Generator().manual_seed(3)
    table = torch.rand(3, grid.rows, config.features, generator=draw) - 0.5
    unit = torch.rand(400, 3, generator=draw)
    # Points whose coordinates lie in the middle of their cells on every level: a step stays inside.
    place = unit[..., None] * torch.from_numpy(grid.scales) + 0.5
    unit = unit[((place - place.floor() - 0.5).abs() < 0.45).all(-1).all(-1)][:6]
    assert len(unit) == 6
    (v,) = incoming((6, config.dim))

    def loss(unit: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return (encode(unit, table, grid).double() * v).sum()

    parts = leaves([unit, table])
    loss(*parts).backward()
    v_unit, v_table = gradients(parts)
    step = 0.04 / float(grid.scales[-1])
    numeric = torch.zeros_like(unit)
    for entry in range(unit.numel()):
        moved = torch.zeros_like(unit)
        moved.view(-1)[entry] = step
        numeric.view(-1)[entry] = (loss(unit + moved, table) - loss(unit - moved, table)) / (2 * step)
    assert_close(v_unit, numeric, "points' gradient", norm=2e-3, quantile=1.0, typical=2e-3)
    touched = v_table.view(-1).abs().topk(30).indices.tolist()
    numeric = torch.zeros(30)
    for place, entry in enumerate(touched):
        moved = torch.zeros_like(table)
        moved.view(-1)[entry] = 1.0
        numeric[place] = (loss(unit, table + moved) - loss(unit, table - moved)) / 2
    assert_close(v_table.view(-1)[touched], numeric, "table gradient", quantile=1.0)
    untouched = (v_table == 0).nonzero()[:: v_table.numel() // 5]
    for plane, row, feature in untouched.tolist():
        moved = torch.zeros_like(table)
        moved[plane, row, feature] = 1.0
        assert float(loss(unit, table + moved) - loss(unit, table)) == 0


def test_no_point_and_strided_points() -> None:
    grid = TriPlane(GridConfig(levels=3, init=1.0))
    empty = torch.zeros(0, 3, requires_grad=True)
    grid(empty).sum().backward()
    assert empty.grad is not None
    x = points()
    assert torch.equal(grid(x.T.contiguous().T), grid(x))
    with torch.no_grad():
        assert not grid(x).requires_grad


def test_initial_table_and_state() -> None:
    grid = TriPlane(GridConfig())
    largest = float(grid.table.detach().abs().max())
    assert 0.99e-4 < largest <= 1e-4
    assert list(grid.state_dict()) == ["table"]
    assert grid.table.shape == (3, grid.layout.rows, 1)


def test_settings_that_make_no_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match="base <= finest"):
        TriPlane(GridConfig(base=64, finest=38.4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_tcnn_without_cuda_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no CUDA device.*use backend auto or torch"):
        TriPlane(GridConfig(), backend="tcnn")


@pytest.mark.gpu
@pytest.mark.parametrize("name", GRIDS)
def test_cuda_matches_the_cpu(name: str) -> None:
    """Through tiny-cuda-nn where it is installed, else torch."""
    grid = TriPlane(GRIDS[name])
    results = []
    for device in ("cpu", "cuda"):
        grid.to(device)
        grid.table.grad = None
        x = points().to(device).requires_grad_()
        out = grid(x)
        (out**2).sum().backward()
        assert x.grad is not None
        assert grid.table.grad is not None
        results.append([out.cpu(), x.grad[:24].cpu(), grid.table.grad.cpu()])
    for what, a, b in zip(("features", "points' gradient", "table gradient"), *results, strict=True):
        assert_close(b, a, what)
