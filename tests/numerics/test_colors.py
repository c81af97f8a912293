"""The kernel of Gaussians' colours against the same in torch operations, which are held against gsplat's in test_projection.py."""

import pytest
import torch
from torch import Tensor

from fiag_dist.errors import NumericsError
from fiag_dist.images.raster import view_colors
from fiag_dist.kernels.colors import shown_colors
from fiag_dist.model.head import at_most
from fiag_dist.types import Camera


def gaussians(num: int, degree: int) -> list[Tensor]:
    """Coefficients, some of which give colours below 0 and above 1, and centres."""
    draw = torch.Generator().manual_seed(degree)
    dc, means = torch.randn(2, num, 3, generator=draw)
    return [2 * dc, 0.3 * torch.randn(num, (degree + 1) ** 2 - 1, 3, generator=draw), 0.1 * means]


def camera() -> Camera:
    viewmat = torch.eye(4)
    viewmat[:3, 3] = torch.tensor([0.1, -0.2, 1.3])
    return Camera(viewmat, torch.eye(3), 16, 16)


@pytest.mark.parametrize("num", [0, 1, 1500])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_colors_and_gradients_are_those_of_torch_operations(num: int, degree: int) -> None:
    dc, rest, means = gaussians(num, degree)
    incoming = torch.randn(num, 3, generator=torch.Generator().manual_seed(9))
    mine, exact = ([x.clone().requires_grad_() for x in (dc, rest)] for _ in range(2))
    found = shown_colors(*mine, means, camera().center)
    wanted = at_most(view_colors(*exact, means, camera()), 1.0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)
    assert num < 100 or {0.0, 1.0} <= set(found.flatten().tolist())
    found.backward(incoming)
    wanted.backward(incoming)
    for a, b in zip(mine, exact, strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, torch.zeros_like(a) if b.grad is None else b.grad, rtol=1e-5, atol=2e-6)


def test_what_is_not_finite_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    dc, rest, means = gaussians(5, 1)
    rest[2, 1, 0] = torch.inf
    monkeypatch.setenv("FIAG_CHECKED", "1")
    with pytest.raises(NumericsError, match="1 of 45 values of sh_rest"):
        shown_colors(dc, rest, means, torch.zeros(3))
