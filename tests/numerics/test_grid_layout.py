"""The encoder's table is laid out as tiny-cuda-nn lays it out: by hand, and against a stored file that plain Python made from its rules."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from fiag_dist.config import GridConfig
from fiag_dist.kernels.grid import encode, layout
from fiag_dist.model.grid import TriPlane
from fiag_dist.types import BOUND_M

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
STORED = FIXTURES / "grid_layout.json"
CASES: dict[str, dict[str, Any]] = json.loads(STORED.read_text())["cases"]
POINTS = torch.tensor(json.loads(STORED.read_text())["points"])


def table(rows: int, features: int) -> torch.Tensor:
    """What the stored features were made with: [3, rows, features], a value from each entry's place."""
    plane, row, feature = torch.meshgrid(torch.arange(3), torch.arange(rows), torch.arange(features), indexing="ij")
    return (row * 37 + feature * 101 + plane * 59) % 257 / 256 - 0.5


def test_stored_file_is_what_its_script_makes() -> None:
    script = runpy.run_path(str(FIXTURES / "make_grid_layout.py"))
    assert script["text"](script["fixture"]()) == STORED.read_text()


@pytest.mark.parametrize("name", CASES)
def test_layout_is_the_stored_one(name: str) -> None:
    case = CASES[name]
    config = case["config"]
    grid = layout(config["levels"], config["base"], config["finest"], config["log2_table"])
    assert grid.growth == pytest.approx(case["growth"], rel=1e-7)
    assert grid.offsets.tolist() == case["offsets"]
    assert grid.sides.tolist() == case["sides"]
    assert grid.hashed.tolist() == case["hashed"]
    assert grid.scales.tolist() == pytest.approx(case["scales"], rel=1e-6)
    assert TriPlane(GridConfig(**config)).table.shape == (3, case["offsets"][-1], config["features"])


@pytest.mark.parametrize("name", CASES)
def test_features_are_the_stored_ones(name: str) -> None:
    case = CASES[name]
    config, wanted = case["config"], torch.tensor(case["features"])
    grid = layout(config["levels"], config["base"], config["finest"], config["log2_table"])
    values = table(grid.rows, config["features"])
    got = encode(POINTS, values, grid)
    # At 512 vertices float32 knows a place within a cell to 3e-5, and neighbouring entries differ by up to 1.
    assert float((got - wanted).abs().max()) < 1e-4
    plain = TriPlane(GridConfig(**config), backend="torch")
    with torch.no_grad():
        plain.table.copy_(values)
        got = plain((POINTS - 0.5) * 2 * BOUND_M)
    assert float((got - wanted).abs().max()) < 2e-4


def test_layout_by_hand() -> None:
    """scale = base * growth^level - 1, side = ceil(scale) + 1, rows = min(round up to 8 (side^2), 2^T)."""
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
