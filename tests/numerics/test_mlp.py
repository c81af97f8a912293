"""The small networks' kernel against the plain formula in float64, whatever the numbers of points, inputs, outputs and layers."""

import math

import pytest
import torch
from drawn import repeatable
from hypothesis import given
from hypothesis import strategies as st
from numeric_twins import assert_close
from numeric_twins import mlp as mlp_twin
from scenes import gradients, incoming, leaves
from torch import Tensor

from fiag_dist.kernels.lanes import CHUNK
from fiag_dist.kernels.mlp import PARTS, mlp

NETWORKS = {
    "identity": (36, 64, 64, 23),
    "motion": (38, 64, 64, 10),
    "two layers": (36, 32, 6),
    "odd": (5, 3, 7, 1, 2),
    "one layer": (9, 17),
    "wide": (3, 130, 4),
}


def network(num: int, widths: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    """Inputs of `num` points, and weights at a scale that keeps numbers near 1."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(widths[0], num, generator=draw).T
    shapes = zip(widths[1:], widths[:-1], strict=True)
    return [inputs, *(torch.randn(*shape, generator=draw) * math.sqrt(2 / shape[1]) for shape in shapes)]


def compare(parts: list[Tensor]) -> None:
    """Outputs and every gradient, beside the twin's."""
    ours, exact = leaves(parts), [part.double().requires_grad_() for part in parts]
    got, wanted = mlp(*ours), mlp_twin(*exact)
    (v,) = incoming(tuple(got.shape))
    (got.double() * v).sum().backward()
    (wanted * v).sum().backward()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)
    for k, (a, b) in enumerate(zip(gradients(ours), gradients(exact), strict=True)):
        if not b.any():  # no hidden number above 0: nothing passes
            assert not a.any()
            continue
        # Where a hidden number is 0 within rounding, ReLU's gradient is there in one and not in the other.
        assert_close(a, b, f"gradient of {f'weights {k}' if k else 'inputs'}", quantile=0.99)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_match_the_formula(name: str) -> None:
    compare(network(700, NETWORKS[name]))


@pytest.mark.parametrize("num", [1, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK * PARTS + 3, 3 * CHUNK * PARTS])
def test_any_number_of_points(num: int) -> None:
    compare(network(num, (7, 12, 5)))


@repeatable(25)
@given(num=st.integers(1, 600), widths=st.lists(st.integers(1, 40), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_any_shape(num: int, widths: list[int], seed: int) -> None:
    compare(network(num, tuple(widths), seed))


def test_a_gradient_that_nearly_cancels_is_as_exact_as_its_terms() -> None:
    """A sum of 0.004 over terms of 186 in all: no float32 sum is right to a share of what is left."""
    inputs, first, last = network(341, (29, 1, 1), 29)
    mine = leaves([inputs, first, last])
    got = mlp(*mine)
    (v,) = incoming(tuple(got.shape))
    (got.double() * v).sum().backward()
    terms = torch.relu(inputs.double() @ first.double().T) * v
    assert terms.sum().abs() < 1e-4 * terms.abs().sum()
    error = (gradients(mine)[2].double() - terms.sum()).abs()
    assert float(error.max()) < torch.finfo(torch.float32).eps * float(terms.abs().sum())


def test_no_points() -> None:
    parts = leaves(network(0, (4, 8, 3)))
    out = mlp(*parts)
    out.sum().backward()
    assert out.shape == (0, 3)
    assert not any(gradient.any() for gradient in gradients(parts[1:]))


def test_finite_differences() -> None:
    parts = leaves(network(5, (4, 6, 3)))
    (v,) = incoming((5, 3))

    def loss(*parts: Tensor) -> float:
        return float((mlp(*parts).double() * v).sum())

    (mlp(*parts).double() * v).sum().backward()
    step = 1e-3  # outputs are linear between ReLU's kinks: a large step costs nothing
    for part, gradient in zip(parts, gradients(parts), strict=True):
        for place in range(0, part.numel(), 5):
            moved = [p.detach().clone(memory_format=torch.contiguous_format) for p in parts]
            mine = next(k for k, p in enumerate(parts) if p is part)
            values = []
            for sign in (1, -1):
                moved[mine].view(-1)[place] = part.detach().reshape(-1)[place] + sign * step
                values.append(loss(*moved))
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(gradient.reshape(-1)[place]), abs=2e-2)


def test_inputs_that_want_no_gradient_get_none() -> None:
    inputs, *weights = network(300, (6, 8, 4))
    weights = leaves(weights)
    mlp(inputs, *weights).sum().backward()
    assert inputs.grad is None
    together = leaves([part.detach() for part in (inputs, *weights)])
    mlp(*together).sum().backward()
    for a, b in zip(gradients(weights), gradients(together[1:]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_what_is_not_a_number_stays_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """ReLU must not turn it into a zero: a training would go on as if nothing had happened."""
    monkeypatch.delenv("FIAG_CHECKED", raising=False)
    inputs, *weights = network(300, (6, 8, 4))
    inputs = inputs.clone()
    inputs[7, 2] = torch.nan
    out = mlp(inputs, *weights)
    assert out[7].isnan().all()
    assert out.isnan().any(1).sum() == 1
