"""On a CUDA device: every backend computes what the CPU kernels compute, and nothing but gsplat's own count of tiles makes the host wait."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "shards"))
import gpu_pairs
import gpu_step
from make_demo import Demo, make_demo

from fiag_dist import doctor
from fiag_dist.bench.scene import head_scene
from fiag_dist.config import GridConfig
from fiag_dist.images import raster, ssim
from fiag_dist.images.raster import Splats, rasterize_frames
from fiag_dist.model import grid
from fiag_dist.types import Camera

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def waits() -> Iterator[list[str]]:
    """Where the host waited for the device in the body: torch's own notes of it."""
    found: list[str] = []
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found += [f"{w.filename}:{w.lineno}" for w in caught if "called a synchronizing CUDA operation" in str(w.message)]


def test_gsplat_draws_here(device: torch.device) -> None:
    assert raster.choose("auto", device).name == "gsplat"
    raster.try_out("gsplat", device)


def test_doctor_finds_all_backends() -> None:
    checks = [check for check in doctor.backends() if check.what.endswith("on cuda")]
    assert [check.state for check in checks] == ["ok"] * 3, checks


@pytest.mark.parametrize("pairs", gpu_pairs.PAIRS.values(), ids=gpu_pairs.PAIRS)
def test_same_numbers_as_on_the_cpu(pairs: Callable, device: torch.device) -> None:
    found = pairs(device)
    assert found["passed"], {name: pair["errors"] for name, pair in found["pairs"].items() if not pair["passed"]}


def test_a_training_step_is_the_cpus(device: torch.device, tmp_path: Path) -> None:
    make_demo(str(tmp_path), 4, Demo(seconds=1.0, size=96, seed=0), jobs=1)
    found = gpu_step.step_pair(str(tmp_path), device, num_gaussians=2000, frames=2)
    assert found["passed"], found["worst"]


def test_waits_are_noticed(device: torch.device) -> None:
    with waits() as found:
        torch.ones(3, device=device).sum().item()
    assert len(found) == 1


def test_encoder_ssim_and_colors_wait_for_nothing(device: torch.device) -> None:
    encoder = grid.TriPlane(GridConfig()).to(device)
    points = (0.1 * torch.rand(1000, 3, device=device)).requires_grad_()
    image, target = torch.rand(3, 64, 64, device=device, requires_grad=True), torch.rand(3, 64, 64, device=device)
    camera = Camera(torch.eye(4, device=device), torch.eye(3, device=device), 64, 64)
    sh = torch.rand(1000, 16, 3, device=device, requires_grad=True)

    def all_three() -> None:
        colors = raster.view_colors(sh[:, 0], sh[:, 1:], points, camera)
        (encoder(points).sum() + ssim.ssim(image, target) + colors.sum()).backward()

    all_three()  # trials, and what is brought to the device once
    with waits() as found:
        all_three()
    assert not found


@pytest.mark.parametrize("count", [1, 4])
def test_any_number_of_frames_waits_once(device: torch.device, count: int) -> None:
    scenes = [head_scene(500, 3, 64, seed) for seed in range(count)]
    splats = [Splats(*(x.to(device).requires_grad_() for x in values)) for values, _ in scenes]
    cameras = [Camera(c.viewmat.to(device), c.K.to(device), c.width, c.height) for _, c in scenes]
    background = torch.zeros(3, device=device)

    def draw() -> None:
        renderings = rasterize_frames(splats, cameras, background)
        torch.stack([r.image.sum() for r in renderings]).sum().backward()

    draw()
    with waits() as found:
        draw()
    assert len(found) <= 1, found  # gsplat's count of tiles


def test_memory_of_a_call_is_given_back(device: torch.device) -> None:
    values, camera = head_scene(2000, 3, 128)
    view = Camera(camera.viewmat.to(device), camera.K.to(device), 128, 128)
    before = None
    for _ in range(4):
        splats = Splats(*(x.to(device).requires_grad_() for x in values))
        rasterize_frames([splats], [view], torch.zeros(3, device=device))[0].image.sum().backward()
        del splats
        now = torch.cuda.memory_allocated(device)
        assert before is None or now <= before
        before = now
