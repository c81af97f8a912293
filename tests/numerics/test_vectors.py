"""Vectors as values of numba code, against numpy."""

import numpy as np
import pytest
from numba import njit

from fiag_dist.kernels.vectors import (
    BLOCK_X,
    LANES,
    anywhere,
    choose,
    columns,
    everywhere,
    exp2_of_negative,
    load,
    rows,
    store,
    total,
)


@njit
def _combined(a, b, out):
    """Fills out with a * b + a / b - (a - b) where a > b, else with ten times the lane's row and its column; returns the sum of a."""
    found = everywhere(np.float32(0))
    for at in range(0, len(a), LANES):
        x, y = load(a, at), load(b, at)
        found += x
        store(
            out,
            at,
            choose((x > y) & (y <= x), x * y + x / y - (x - y), everywhere(np.float32(10)) * rows() + columns()),
        )
    return total(found)


@njit
def _exponentials(x, out):
    for at in range(0, len(x), LANES):
        store(out, at, exp2_of_negative(load(x, at)))


@njit
def _above(x, number):
    return anywhere(load(x, 0) >= everywhere(number)), anywhere(load(x, 0) < everywhere(number))


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


def test_arithmetic_and_choices_are_those_of_each_lane(draw: np.random.Generator) -> None:
    a, b = draw.uniform(0.5, 2.0, (2, 5 * LANES)).astype(np.float32)
    out = np.empty_like(a)
    found = _combined(a, b, out)
    x, y, lane = a.astype(np.float64), b.astype(np.float64), np.arange(LANES)
    expected = np.where(a > b, x * y + x / y - (x - y), np.tile(lane // BLOCK_X * 10 + lane % BLOCK_X, 5))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    assert found == pytest.approx(x.sum(), rel=1e-6)


def test_loads_and_stores_need_no_alignment(draw: np.random.Generator) -> None:
    memory = draw.uniform(-80, 0, 3 * LANES + 1).astype(np.float32)
    out = np.zeros_like(memory)
    _exponentials(memory[1 : 1 + 2 * LANES], out[1 : 1 + 2 * LANES])
    assert not out[0]
    assert not out[1 + 2 * LANES :].any()


def test_exponential_is_exact_to_float32_rounding(draw: np.random.Generator) -> None:
    x = np.concatenate([-np.geomspace(1e-8, 126, 63 * LANES), np.zeros(LANES)]).astype(np.float32)
    out = np.empty_like(x)
    _exponentials(x, out)
    assert np.abs(out / np.exp2(x.astype(np.float64)) - 1).max() < 3e-7


def test_anywhere_looks_at_all_lanes() -> None:
    for k in range(LANES):
        x = np.zeros(LANES, np.float32)
        x[k] = 1
        assert _above(x, np.float32(1)) == (True, True)
        assert _above(x, np.float32(2)) == (False, True)
        assert _above(x, np.float32(0)) == (True, False)
