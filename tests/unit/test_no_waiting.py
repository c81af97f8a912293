"""Nothing that we write makes a host wait for its device: no value read back, no tensor brought over, no size that depends on values."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from splat_frames import frame
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fiag_dist.config import AudioConfig, GridConfig
from fiag_dist.images import raster, ssim
from fiag_dist.images.raster import Splats
from fiag_dist.model import grid
from fiag_dist.model.audio import Listener, held
from fiag_dist.types import Camera

META = torch.device("meta")


class NoSequences(TorchFunctionMode):
    """Refuses Python's numbers that become a tensor of the device: they are brought over each time, unseen by NoTraffic."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device == META:
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            from_host = [part for part in parts if isinstance(part, list | tuple | range | np.ndarray)]
            assert not from_host, f"an index brings {from_host} from the host"
        made = func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == META
        assert not made, f"{func.__name__} brings {args[:1]} from the host"
        return func(*args, **kwargs)


class NoTraffic(TorchDispatchMode):
    """Refuses what would make a host wait for its device: values read back, tensors brought over, results whose size depends on values."""

    WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique", "aten.item")

    def __enter__(self) -> "NoTraffic":
        self._sequences = NoSequences()
        self._sequences.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._sequences.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert not str(func).startswith(self.WAITS), f"{func} waits for the device"
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        by_mask = str(func).startswith("aten.index") and any(x.dtype == torch.bool for x in tensors[1:])
        assert not by_mask, f"{func} with a mask waits for the device"
        if any(x.device == META for x in tensors) or kwargs.get("device") == META:
            from_host = [x for x in tensors if x.device != META and x.dim() > 0]
            assert not from_host, f"{func} brings {[tuple(x.shape) for x in from_host]} from the host"
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    "bad",
    [
        lambda x: x[:, torch.tensor([0, 1])],
        lambda x: x[..., (0, 1)],
        lambda x: x[[0, 1]],
        lambda x: x[np.array([0, 1])],
        lambda x: x.clone().__setitem__([0, 1], 0.0),
        lambda x: torch.tensor([0.5, 1.0, 2.0], device=META) + x,
        lambda x: torch.ones(3).to(META),
        lambda x: x + torch.ones(3).to(META),
        lambda x: (x > 0).nonzero(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
        lambda x: x.sum().item(),
    ],
)
def test_waiting_is_noticed(bad: Callable[[Tensor], Any]) -> None:
    x = torch.ones(5, 3, device=META)
    with pytest.raises(AssertionError, match=r"waits for the device|from the host"), NoTraffic():
        bad(x)


@pytest.mark.parametrize("config", [GridConfig(), GridConfig(levels=6, features=2, finest=200.0, log2_table=8)])
def test_torch_encoder_waits_for_nothing(config: GridConfig) -> None:
    encoder = grid.TriPlane(config).to(META)
    points = torch.rand(50, 3, device=META, requires_grad=True)
    with NoTraffic():
        features = encoder(points)
        features.sum().backward()
    assert features.shape == (50, config.dim)
    assert points.grad is not None
    assert encoder.table.grad is not None


@pytest.mark.parametrize("code", ["pca", "lips", "net"])
def test_listener_waits_for_nothing(code: Literal["pca", "lips", "net"]) -> None:
    listener = Listener(AudioConfig(code=code), 80, 4).to(META)
    windows = torch.rand(8, 80, 4, device=META)
    with NoTraffic():
        assert listener(windows).device == META
        assert held(windows).shape == windows.shape


def test_torch_ssim_waits_for_nothing_after_its_first_call() -> None:
    image, target = torch.rand(3, 30, 30, device=META, requires_grad=True), torch.rand(3, 30, 30, device=META)
    ssim.ssim(image, target)
    with NoTraffic():
        ssim.ssim(image, target).backward()
    assert image.grad is not None


def test_colors_wait_for_nothing() -> None:
    camera = Camera(torch.rand(4, 4, device=META), torch.rand(3, 3, device=META), 8, 8)
    sh = torch.rand(9, 16, 3, device=META, requires_grad=True)
    with NoTraffic():
        raster.view_colors(sh[:, 0], sh[:, 1:], torch.rand(9, 3, device=META), camera).sum().backward()
    assert sh.grad is not None


def test_gsplats_call_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering = pytest.importorskip("gsplat.rendering")

    def stand_in(**a: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        batch, num = a["means"].shape[:2]
        means2d = a["means"][:, None, :, :2] * 2
        light = (means2d.sum() + a["opacities"].sum() + a["scales"].sum()) * a["colors"].sum((0, 1))
        image = light.expand(batch, 1, a["height"], a["width"], -1)
        radii = torch.ones(batch, 1, num, 2, dtype=torch.int32, device=META)
        return image, image[..., :1], {"means2d": means2d, "radii": radii}

    monkeypatch.setattr(rendering, "rasterization", stand_in)
    frames = [frame(seed) for seed in (0, 1)]
    splats = [Splats(*(p.detach().to(META).requires_grad_() for p in vars(s).values())) for s, _ in frames]
    cameras = [Camera(c.viewmat.to(META), c.K.to(META), c.width, c.height) for _, c in frames]
    background = torch.zeros(3, device=META)
    with NoTraffic():
        got = raster._draw_gsplat(splats, cameras, background)
        torch.stack([r.image.sum() for r in got]).sum().backward()
    assert all(r.means2d.grad is not None and r.means2d.grad.shape == (40, 2) for r in got)
    assert splats[1].colors.grad is not None


def test_layout_is_no_part_of_a_checkpoint_and_follows_the_module() -> None:
    encoder = grid.TriPlane(GridConfig())
    assert list(encoder.state_dict()) == ["table"]
    assert {buffer.device for buffer in encoder.to(META).buffers()} == {META}
