"""Which backend does the work: chosen once, said in words, refused with the fix; and one call of gsplat a step."""

import fcntl
import inspect
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from splat_frames import frame
from torch import Tensor

from fiag_dist.config import GridConfig
from fiag_dist.errors import ConfigError
from fiag_dist.images import raster, ssim
from fiag_dist.images.backend import Choice, fault_of, must_agree
from fiag_dist.images.raster import Splats, rasterize, rasterize_frames
from fiag_dist.kernels.projection import project
from fiag_dist.kernels.raster import blend
from fiag_dist.model import grid

HOST, META, CUDA = torch.device("cpu"), torch.device("meta"), torch.device("cuda", 7)


def gradients(splats: Splats) -> list[Tensor]:
    return [p.grad for p in vars(splats).values() if p.grad is not None]


# Frames


def test_frames_are_what_one_call_each_gives() -> None:
    background = torch.tensor([0.1, 0.2, 0.3])
    together, apart = [frame(seed) for seed in (0, 1, 2)], [frame(seed) for seed in (0, 1, 2)]
    one_call = rasterize_frames([s for s, _ in together], [c for _, c in together], background)
    many = [rasterize(*vars(s).values(), c, background) for s, c in apart]
    for a, b, (splats_a, _), (splats_b, _) in zip(one_call, many, together, apart, strict=True):
        for rendering in (a, b):
            (rendering.image.square().sum() + rendering.alpha.sum()).backward()
        assert torch.equal(a.image, b.image)
        assert a.means2d.grad is not None
        assert torch.equal(a.means2d.grad, b.means2d.grad)  # type: ignore[arg-type]
        assert len(gradients(splats_a)) == 5
        assert all(torch.equal(x, y) for x, y in zip(gradients(splats_a), gradients(splats_b), strict=True))
    assert not torch.equal(one_call[0].image, one_call[1].image)
    assert rasterize_frames([], [], background) == []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """gsplat's kernels need CUDA; in their place stand ours, behind gsplat's own signature, defaults and shapes. The arguments of each call."""
    rendering = pytest.importorskip("gsplat.rendering")
    assert version("gsplat").startswith("1.5.")
    signature = inspect.signature(rendering.rasterization)
    seen: list[dict[str, Any]] = []

    def stand_in(**arguments: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        full = signature.bind(**arguments)
        full.apply_defaults()
        a = full.arguments
        seen.append(a)
        batch, num = a["means"].shape[:2]
        assert a["means"].shape == (batch, num, 3)
        assert a["quats"].shape == (batch, num, 4)
        assert a["scales"].shape == (batch, num, 3)
        assert a["opacities"].shape == (batch, num)
        assert a["colors"].shape[:2] == (batch, num)
        assert a["viewmats"].shape == (batch, 1, 4, 4)
        assert a["Ks"].shape == (batch, 1, 3, 3)
        assert a["backgrounds"].shape == (batch, 1, a["colors"].shape[2])
        size = (a["width"], a["height"])
        names = ("means", "quats", "scales", "opacities")
        projected = [
            project(*(a[k][b] for k in names), a["viewmats"][b, 0], a["Ks"][b, 0], *size) for b in range(batch)
        ]
        means2d_B1N2 = torch.stack([p[0] for p in projected])[:, None]
        images, alphas = [], []
        for b, (_, conics, depths, radii) in enumerate(projected):
            image, alpha = blend(
                means2d_B1N2[b, 0],
                conics,
                a["colors"][b],
                a["opacities"][b],
                radii,
                depths,
                a["backgrounds"][b, 0],
                *size,
            )
            images.append(image.permute(1, 2, 0)[None])
            alphas.append(alpha[None, :, :, None])
        radii_B1N2 = torch.stack([p[3].int() for p in projected])[:, None]
        return torch.stack(images), torch.stack(alphas), {"means2d": means2d_B1N2, "radii": radii_B1N2}

    monkeypatch.setattr(rendering, "rasterization", stand_in)
    return seen


@pytest.mark.parametrize(("count", "channels"), [(1, 3), (3, 5)])
def test_call_of_gsplat_fits_its_signature_and_its_shapes(calls: list[dict], count: int, channels: int) -> None:
    background = torch.linspace(0, 1, channels)
    ours, theirs = ([frame(seed, channels=channels) for seed in range(count)] for _ in range(2))
    a = rasterize_frames([s for s, _ in ours], [c for _, c in ours], background)
    b = raster._draw_gsplat([s for s, _ in theirs], [c for _, c in theirs], background)
    assert len(calls) == 1  # however many frames
    named = {"sh_degree": None, "render_mode": "RGB", "rasterize_mode": "classic", "camera_model": "pinhole"}
    named |= {
        "packed": False,
        "near_plane": 0.01,
        "far_plane": 1e10,
        "eps2d": 0.3,
        "radius_clip": 0.0,
        "absgrad": False,
    }
    assert {name: calls[0][name] for name in named} == named
    for renderings in (a, b):
        torch.stack([(k + 1) * r.image.square().sum() for k, r in enumerate(renderings)]).sum().backward()
    for x, y in zip(a, b, strict=True):
        for name in ("image", "alpha", "means2d", "radii"):
            assert torch.equal(getattr(x, name), getattr(y, name)), name
            assert getattr(x, name).dtype == getattr(y, name).dtype
        assert x.means2d.grad is not None
        assert x.means2d.grad.any()
        assert torch.equal(x.means2d.grad, y.means2d.grad)  # type: ignore[arg-type]
    for (x, _), (y, _) in zip(ours, theirs, strict=True):
        assert len(gradients(x)) == len(gradients(y)) == 5
        assert all(torch.equal(p, q) for p, q in zip(gradients(x), gradients(y), strict=True))


def test_no_gradient_is_asked_of_gsplat_where_none_is_wanted(calls: list[dict]) -> None:
    splats, camera = frame(0)
    with torch.no_grad():
        got = raster._draw_gsplat([splats], [camera], torch.zeros(3))[0]
    assert len(calls) == 1
    assert not got.image.requires_grad
    assert got.means2d.grad is None


@pytest.mark.parametrize("other", [{"num": 30}, {"channels": 5}, {"side": 40}])
def test_gsplat_refuses_frames_of_several_sizes(calls: list[dict], other: dict[str, int]) -> None:
    (a, camera_a), (b, camera_b) = frame(0), frame(1, **other)
    with pytest.raises(ConfigError, match=r"40 x 3 at 33x29.*the rule is one size for all"):
        raster._draw_gsplat([a, b], [camera_a, camera_b], torch.zeros(3))
    assert not calls


def test_nothing_to_draw_never_reaches_gsplat(calls: list[dict]) -> None:
    frames = [frame(0, num=0), frame(1, num=0)]
    got = raster._draw_gsplat([s for s, _ in frames], [c for _, c in frames], torch.tensor([0.5, 0.2, 0.1]))
    assert not calls
    assert [r.image.shape for r in got] == [(3, 29, 33)] * 2
    assert torch.equal(got[1].image[:, 3, 4], torch.tensor([0.5, 0.2, 0.1]))
    assert not got[1].alpha.any()
    assert got[1].radii.shape == (0, 2)


# Choices


TRIALS = [(raster, "cpu"), (grid, "cpu"), (grid, "torch"), (ssim, "cpu"), (ssim, "torch")]


@pytest.mark.parametrize(("module", "backend"), TRIALS)
def test_backends_of_the_host_pass_their_trials(module: Any, backend: str) -> None:
    module.try_out(backend, HOST)


def test_gsplats_trial_draws_frames_as_training_does(calls: list[dict]) -> None:
    raster.try_out("gsplat", HOST)
    assert calls[0]["means"].shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("module", "backend", "place", "name"),
    [
        (raster, "cpu", raster, "blend"),
        (grid, "cpu", grid.kernel, "encode"),
        (ssim, "cpu", ssim.kernel, "ssim"),
        (ssim, "torch", ssim, "_by_convolution"),
    ],
)
def test_wrong_numbers_fail_a_trial(
    monkeypatch: pytest.MonkeyPatch, module: Any, backend: str, place: Any, name: str
) -> None:
    right = getattr(place, name)

    def wrong(*arguments: Any) -> Any:
        result = right(*arguments)
        return tuple(1.01 * x for x in result) if isinstance(result, tuple) else 1.01 * result

    monkeypatch.setattr(place, name, wrong)
    with pytest.raises(RuntimeError, match=r"is off by 1.0e-02 of its norm"):
        module.try_out(backend, HOST)


@pytest.mark.parametrize("detached", ["means", "opacities"])
def test_a_missing_gradient_fails_a_trial(monkeypatch: pytest.MonkeyPatch, detached: str) -> None:
    right = raster.project

    def wrong(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, *rest: Any) -> Any:
        return right(means.detach(), quats, scales, opacities, *rest)

    if detached == "means":
        monkeypatch.setattr(raster, "project", wrong)
    else:
        monkeypatch.setattr(raster, "blend", lambda m, c, f, o, *rest: blend(m, c, f, o.detach(), *rest))
    with pytest.raises(RuntimeError, match=f"the gradient of {detached}: there is none"):
        raster.try_out("cpu", HOST)


def test_not_a_number_never_agrees() -> None:
    with pytest.raises(RuntimeError, match="off by nan"):
        must_agree(torch.tensor([1.0, float("nan")]), torch.ones(2), "it")


def test_faults_are_one_line_and_short() -> None:
    def fail() -> None:
        raise RuntimeError("cannot\n   load " + 400 * "x")

    assert fault_of(fail).startswith("cannot load x")
    assert len(fault_of(fail)) == 300
    assert fault_of(lambda: None) == ""
    with torch.no_grad():
        assert fault_of(lambda: torch.ones(1, requires_grad=True).sum().backward()) == ""


def test_choices_on_the_host() -> None:
    assert raster.choose("auto", HOST) == raster.choose("cpu", HOST) == Choice("cpu", "tensors in host memory")
    assert grid.choose("auto", HOST) == grid.choose("cpu", HOST) == Choice("cpu", "points in host memory")
    assert ssim.choose("auto", HOST) == ssim.choose("cpu", HOST) == Choice("cpu", "images in host memory")
    assert grid.choose("torch", HOST).name == ssim.choose("torch", HOST).name == "torch"


@pytest.mark.parametrize(
    ("choose", "wanted", "device", "message"),
    [
        (raster.choose, "gsplat", HOST, r"raster backend gsplat: .*the rule is a CUDA device; use backend auto or cpu"),
        (raster.choose, "cpu", CUDA, r"tensors are on cuda:7, the rule is host memory; use backend auto or gsplat"),
        (raster.choose, "auto", META, r"tensors are on meta, the rule is host memory or a CUDA device"),
        (grid.choose, "tcnn", HOST, r"points are on cpu, the rule is a CUDA device; use backend auto or torch"),
        (grid.choose, "tcnn", None, r"torch sees no CUDA device, the rule is a CUDA device"),
        (grid.choose, "cpu", CUDA, r"points are on cuda:7, the rule is cpu; use backend auto or torch"),
        (ssim.choose, "cpu", CUDA, r"images are on cuda:7, the rule is host memory; use backend auto or torch"),
    ],
)
def test_what_cannot_run_is_refused(choose: Callable, wanted: str, device: torch.device | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(wanted, device)


def test_each_function_takes_the_backend_it_is_told() -> None:
    splats, camera = frame(0)
    with pytest.raises(ConfigError, match="raster backend gsplat"):
        rasterize(*vars(splats).values(), camera, torch.zeros(3), backend="gsplat")
    image = torch.rand(3, 20, 20)
    with pytest.raises(ConfigError, match="ssim backend cpu"):
        ssim.ssim(image.to(META), image.to(META), "cpu")
    assert ssim.ssim(image.double(), image, "cpu").dtype == torch.float32
    assert ssim.ssim(image.double(), image.double(), "torch").dtype == torch.float64
    points = 0.1 * torch.rand(9, 3)
    with pytest.raises(ConfigError, match="encoder backend cpu"):
        grid.TriPlane(GridConfig(), "cpu")(points.to(META))


# Trials on CUDA devices, without one: what is decided from a trial's outcome, and that it is made once.


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[str, torch.device]]]:
    """Trials pass, and are counted."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "builds"))
    made: list[tuple[str, torch.device]] = []
    for module in (raster, grid):
        monkeypatch.setattr(module, "try_out", lambda name, device: made.append((name, device)))
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(raster.metadata, "version", lambda name: "1.5.3")
    _forget()
    yield made
    _forget()


def _forget() -> None:
    raster._gsplat_fault.cache_clear()
    grid._tcnn_fault.cache_clear()


def test_auto_on_cuda_is_decided_once_for_each_device(trials: list[tuple[str, torch.device]]) -> None:
    for _ in range(3):
        assert (
            raster.choose("auto", CUDA)
            == raster.choose("gsplat", CUDA)
            == Choice("gsplat", "it drew a small scene right")
        )
        assert grid.choose("auto", CUDA).name == grid.choose("tcnn", CUDA).name == "tcnn"
    assert trials == [("gsplat", CUDA), ("tcnn", CUDA)]
    raster.choose("auto", torch.device("cuda", 6))
    assert len(trials) == 3


def test_ranks_try_gsplat_one_after_the_other(monkeypatch: pytest.MonkeyPatch, trials: list, tmp_path: Path) -> None:
    def see(name: str, device: torch.device) -> None:
        with (tmp_path / "builds" / ".fiag-gsplat").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        trials.append(name)

    monkeypatch.setattr(raster, "try_out", see)
    assert raster.choose("auto", CUDA).name == "gsplat"
    assert trials == ["gsplat"]


def test_a_trial_that_fails_decides_too(monkeypatch: pytest.MonkeyPatch, trials: list) -> None:
    def fail(name: str, device: torch.device) -> None:
        trials.append(name)
        raise RuntimeError("features is off by 1.0e-01 of its norm")

    monkeypatch.setattr(raster, "try_out", fail)
    monkeypatch.setattr(grid, "try_out", fail)
    for _ in range(2):
        assert grid.choose("auto", CUDA) == Choice("torch", "tiny-cuda-nn: features is off by 1.0e-01 of its norm")
        with pytest.raises(ConfigError, match=r"off by 1.0e-01 of its norm; run: pip install .*tiny-cuda-nn"):
            grid.choose("tcnn", CUDA)
        with pytest.raises(ConfigError, match=r"off by 1.0e-01 .* or use the CPU: CUDA_VISIBLE_DEVICES= "):
            raster.choose("auto", CUDA)
    assert trials == ["tcnn", "gsplat"]


def test_what_is_not_installed_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch, trials: list) -> None:
    for module in (raster, grid):
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert grid.choose("auto", CUDA) == Choice("torch", "tiny-cuda-nn: not installed")
    with pytest.raises(ConfigError, match=r"not installed; run: pip install .*tiny-cuda-nn"):
        grid.choose("tcnn", CUDA)
    for wanted in ("auto", "gsplat"):
        with pytest.raises(ConfigError, match=r"not installed; run: bash launch/install.sh ingest,cuda"):
            raster.choose(wanted, CUDA)  # type: ignore[arg-type]
    assert not trials


def test_another_gsplat_is_refused_untried(monkeypatch: pytest.MonkeyPatch, trials: list) -> None:
    monkeypatch.setattr(raster.metadata, "version", lambda name: "1.6.0")
    with pytest.raises(
        ConfigError, match=r"version 1.6.0, the rule is >=1.5.3,<1.6; run: bash launch/install.sh ingest,cuda"
    ):
        raster.choose("auto", CUDA)
    assert not trials
