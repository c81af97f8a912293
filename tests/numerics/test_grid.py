"""The tri-plane encoder against a plain four-corner loop in float64, on every backend that runs here."""

import numba
import pytest
import torch
from numeric_twins import assert_close, encode

from fiag_dist.config import GridConfig
from fiag_dist.errors import ConfigError
from fiag_dist.kernels.grid import layout
from fiag_dist.model.grid import TriPlane, tcnn_available
from fiag_dist.types import BOUND_M

THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]

GRIDS = {
    "dense": GridConfig(levels=3, finest=38.4, init=1.0),
    "wraps": GridConfig(levels=2, finest=24.8, init=1.0),  # the last half cell reaches beyond the finest level's side
    "hashed": GridConfig(levels=4, features=2, base=8, finest=200.0, log2_table=9, init=1.0),
    "one level": GridConfig(levels=1, base=16, finest=16.0, init=1.0),
}


def points(num: int = 24) -> torch.Tensor:
    """Points in the cube, its corners among them, and some outside."""
    inside = (torch.rand(num, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1) * BOUND_M
    corners = torch.tensor([[1.0, 1, 1], [-1, -1, -1], [1, -1, 1]]) * BOUND_M
    outside = torch.tensor([[0.16, 0, 0], [0, -0.2, 0], [0.1, 0.1, 0.151], [float("nan"), 0, 0]])
    return torch.cat([inside, corners, outside])


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_features_and_gradients_match_a_loop(name: str, backend: str) -> None:
    config = GRIDS[name]
    torch.manual_seed(0)
    grid = TriPlane(config, backend=backend)  # type: ignore[arg-type]
    x = points().requires_grad_()
    # Rounded to float32 as the encoder rounds it: a point must not change cells between the two.
    unit = (x.detach() / (2 * BOUND_M) + 0.5).nan_to_num(9.0).double().requires_grad_()
    table = grid.table.detach().double().requires_grad_()
    wanted = encode(unit, table, config.base, grid.layout.growth, config.levels, config.log2_table)
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


def test_layout_is_tiny_cuda_nns() -> None:
    """Sizes worked out by hand from scale = base * growth^level - 1, side = ceil(scale) + 1, rows = min(round up to 8 (side^2), 2^T)."""
    grid = layout(levels=2, base=16, finest=38.4, log2_table=17)
    assert grid.sides.tolist() == [16, 39]
    assert grid.offsets.tolist() == [0, 256, 256 + 1528]
    assert not grid.hashed.any()
    grid = layout(levels=3, base=16, finest=64.0, log2_table=10)
    assert grid.sides.tolist() == [16, 32, 64]
    assert grid.offsets.tolist() == [0, 256, 1280, 2304]
    assert grid.hashed.tolist() == [False, False, True]
    assert layout(12, 16, 128.0, 17).sides[-1] == 128


@pytest.mark.parametrize("finest", [38.4, 64.0, 128.0, 256.0])
def test_no_side_hangs_on_a_rounding_error(finest: float) -> None:
    """tiny-cuda-nn works the scales out in float32 on its own: they must not lie where the last bit decides a side."""
    grid = layout(12, 16, finest, 17)
    up, down = grid.scales[1:] * (1 + 1e-6), grid.scales[1:] * (1 - 1e-6)
    assert (torch.ceil(torch.tensor(up)) == torch.ceil(torch.tensor(down))).all()


def test_no_point_and_strided_points() -> None:
    grid = TriPlane(GridConfig(levels=3, init=1.0))
    empty = torch.zeros(0, 3, requires_grad=True)
    grid(empty).sum().backward()
    assert empty.grad is not None
    x = points()
    assert torch.equal(grid(x.T.contiguous().T), grid(x))
    with torch.no_grad():
        assert not grid(x).requires_grad


@pytest.mark.skipif(THREADS < 2, reason="NUMBA_NUM_THREADS is 1")
def test_same_bits_with_any_number_of_threads() -> None:
    grid = TriPlane(GridConfig(init=1.0))
    results = []
    for threads in (1, THREADS):
        numba.set_num_threads(threads)
        grid.table.grad = None
        x = points(5000).requires_grad_()
        out = grid(x)
        (out**2).sum().backward()
        results.append([out, x.grad, grid.table.grad])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_initial_table_and_state() -> None:
    grid = TriPlane(GridConfig())
    largest = float(grid.table.detach().abs().max())
    assert 0.99e-4 < largest <= 1e-4
    assert list(grid.state_dict()) == ["table"]
    assert grid.table.shape == (3, grid.layout.rows, 1)


def test_settings_that_make_no_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match="base <= finest"):
        TriPlane(GridConfig(base=64, finest=38.4))
    if not tcnn_available():
        with pytest.raises(ConfigError, match="use backend auto or torch"):
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
