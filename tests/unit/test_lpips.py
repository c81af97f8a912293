"""LPIPS: zero for equal images, grows with distortion, differentiable, and its file can't run code."""

import pickle
from pathlib import Path

import pytest
import torch

from fiag_dist import weights
from fiag_dist.errors import WeightsError
from fiag_dist.images import lpips

present = pytest.mark.skipif(not weights.present("lpips-alex"), reason="needs: fiag-dist weights fetch")


def blobs(seed: int) -> torch.Tensor:
    noise = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (96, 96), mode="bicubic").clamp(0, 1)


@pytest.mark.weights
@present
def test_distances_are_ordered() -> None:
    metric, image = lpips.Lpips(weights.path("lpips-alex")), blobs(0)
    blurred = torch.nn.functional.avg_pool2d(image, 9, 1, 4, count_include_pad=False)
    with torch.no_grad():
        same, near, far = metric(image, image), metric(image, blurred), metric(image, blobs(1))
    assert float(same) == 0
    assert 0 < float(near) < float(far)
    shifted = (image * 0.95).clamp(0, 1)
    assert float(metric(image, shifted)) < float(far)


@pytest.mark.weights
@present
def test_structure_costs_more_than_brightness() -> None:
    metric = lpips.Lpips(weights.path("lpips-alex"))
    black, stripes = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    stripes[..., ::8] = 1
    assert float(metric(black, stripes)) > 5 * float(metric(black, black + 1 / 255))


@pytest.mark.weights
@present
def test_gradient_matches_a_finite_difference() -> None:
    metric = lpips.Lpips(weights.path("lpips-alex")).double()
    a, b = blobs(2).double().requires_grad_(), blobs(3).double()
    metric(a, b).sum().backward()
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        slope = (metric(a + step * direction, b) - metric(a - step * direction, b)) / (2 * step)
    assert a.grad is not None
    assert float((a.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-3)
    assert not any(p.requires_grad for p in metric.parameters())


class Evil:
    def __reduce__(self) -> tuple:
        return (print, ("this must not run",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": Evil()}))
    with pytest.raises(WeightsError, match="is not an array"):
        lpips.Lpips(path)
    assert "must not run" not in capsys.readouterr().out
