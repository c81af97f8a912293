"""The kernel that lays a layer and a frame over one backdrop, against the same in float64 torch operations."""

import pytest
import torch
from drawn import repeatable
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fiag_dist.errors import NumericsError
from fiag_dist.images.compositing import compare


def parts(height: int, width: int, seed: int = 0) -> list[Tensor]:
    """Layer, alpha, frame, what is shown of it, mask and backdrop; masks of photographs are 0 or 1 nearly everywhere."""
    draw = torch.Generator().manual_seed(seed)
    layer, frame, backdrop = torch.rand(3, 3, height, width, generator=draw)
    alpha, shown, soft = torch.rand(3, 1, height, width, generator=draw)
    return [layer, alpha, frame, shown, (soft * 3 - 1).clamp(0, 1), backdrop]


def by_definition(
    layer: Tensor, alpha: Tensor, frame: Tensor, shown: Tensor, mask: Tensor, backdrop: Tensor
) -> list[Tensor]:
    image, target = layer + (1 - alpha) * backdrop, frame * shown + (1 - shown) * backdrop
    uncovered = ((1 - alpha) * mask + alpha * (1 - mask)).mean()
    return [image, target, (image - target).abs().mean(), uncovered]


@repeatable(25)
@given(height=st.integers(1, 40), width=st.integers(1, 70), seed=st.integers(0, 1000))
def test_values_and_gradients_are_those_of_the_definition(height: int, width: int, seed: int) -> None:
    values = parts(height, width, seed)
    layer, alpha = (x.clone().requires_grad_() for x in values[:2])
    found = compare(layer, alpha, *values[2:])
    exact_layer, exact_alpha = (x.double().requires_grad_() for x in values[:2])
    exact = by_definition(exact_layer, exact_alpha, *(x.double() for x in values[2:]))
    for mine, true in zip(vars(found).values(), exact, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-6)
    incoming = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed + 1))
    ((found.image * incoming).sum() + 5 * found.error - 2 * found.uncovered).backward()
    ((exact[0] * incoming).sum() + 5 * exact[2] - 2 * exact[3]).backward()
    for mine, true in ((layer.grad, exact_layer.grad), (alpha.grad, exact_alpha.grad)):
        assert mine is not None
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=1e-5)


def test_a_layer_equal_to_its_target_has_no_error_and_no_gradient_of_it() -> None:
    _, _, frame, _, mask, _ = parts(20, 30)
    color = torch.tensor([0.1, 0.6, 0.3])[:, None, None].expand(3, 20, 30)
    layer, alpha = (frame * mask).requires_grad_(), mask.clone().requires_grad_()
    found = compare(layer, alpha, frame, mask, mask, color)
    assert found.error < 1e-7
    (found.target.sum() * 0 + found.image.sum()).backward()
    assert torch.equal(layer.grad, torch.ones_like(frame))  # type: ignore[arg-type]
    assert not found.target.requires_grad


def test_what_is_not_finite_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIAG_CHECKED", "1")
    values = parts(8, 8)
    values[1][0, 3, 4] = torch.nan
    with pytest.raises(NumericsError, match="1 of 64 values of alpha"):
        compare(*values)
