"""`fiag-dist bench`: each benchmark runs, small, through the command line; its JSON holds together; the references compute what the kernels do."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numba
import pytest
import tiny_identity
import torch
from bench_calls import measured, refused

from fiag_dist.bench import reference
from fiag_dist.bench.contest import Contender, agreement, contest
from fiag_dist.bench.parts import PARTS, Stopwatch, watched
from fiag_dist.bench.scene import head_scene
from fiag_dist.bench.step import Bench as StepBench
from fiag_dist.bench.step import build
from fiag_dist.config import DensityConfig
from fiag_dist.images.raster import rasterize
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.storage import open_storage
from fiag_dist.types import Camera

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of two demo people."""
    out = str(tmp_path_factory.mktemp("demo"))
    words = ["--out", out, "--identities", "2", "--seconds", "1", "--size", "64", "--jobs", "1"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, ROOT / "shards" / "make_demo.py", *words], check=True, capture_output=True, env=env)
    return out


def assert_times_hold_together(found: dict) -> None:
    assert found["ratio"] == pytest.approx(found["reference_ms"] / found["total_ms"], rel=2e-3)
    for name in ("forward_ms", "backward_ms", "total_ms"):
        low, high = found["spread"][name]
        assert 0 < found["minimum"][name] <= low <= found[name] <= high
    assert found["minimum"]["total_ms"] >= 0.99 * (found["minimum"]["forward_ms"] + found["minimum"]["backward_ms"])
    assert found["reference_minimum_ms"] <= found["reference_ms"]


def assert_says_where(found: dict, name: str, torch_threads: int | None = None) -> None:
    assert found["benchmark"] == name
    assert found["command"].startswith(f"fiag-dist bench {name}")
    about = found["machine"]
    assert about["torch"] == torch.__version__
    assert about["cpu"]
    assert about["cores"] >= 1
    assert about["date"][:2] == "20"
    assert about["threads"] == {"torch": torch_threads or torch.get_num_threads(), "kernels": numba.get_num_threads()}


@pytest.mark.parametrize("channels", [3, 5])
def test_raster(capsys: pytest.CaptureFixture[str], channels: int) -> None:
    words = ("--num-gaussians", "400", "--size", "70", "--channels", str(channels), "--repeat", "2")
    found = measured(capsys, "raster", *words)
    assert_times_hold_together(found)
    assert_says_where(found, "raster")
    assert (
        found["settings"] | {"num_gaussians": 400, "size": 70, "channels": channels, "repeat": 2} == found["settings"]
    )
    assert set(found["difference"]) == {"image", "alpha"} | {
        f"gradient of {name}" for name in ("means", "quats", "scales", "opacities", "colors")
    }
    assert found["difference"]["image"]["mean"] < 1e-5
    assert 0.3 < found["scene"]["mean_alpha"] < 0.7


@pytest.mark.parametrize("words", [(), ("--features", "2", "--levels", "4", "--no-points-gradient")])
def test_encoder(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    found = measured(capsys, "encoder", "--num-gaussians", "300", "--repeat", "2", *words)
    assert_times_hold_together(found)
    assert_says_where(found, "encoder")
    assert ("gradient of points" in found["difference"]) == (not words)
    assert found["difference"]["gradient of table"]["max"] < 1e-3


def test_network(capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(capsys, "network", "--num-gaussians", "300", "--repeat", "2", "--widths", "9", "16", "4")
    assert_times_hold_together(found)
    assert_says_where(found, "network")
    assert set(found["difference"]) == {"outputs", *(f"gradient of {x}" for x in ("inputs", "weights 0", "weights 1"))}


def test_ssim_beside_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pytorch_msssim")
    found = measured(capsys, "ssim", "--size", "64", "--repeat", "2")
    assert_times_hold_together(found)
    assert_says_where(found, "ssim")
    assert found["reference"] == "pytorch-msssim"
    assert found["difference"]["ssim"]["max"] < 1e-5


def test_ssim_without_the_library_says_what_it_is_compared_with(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = measured(capsys, "ssim", "--size", "32", "--repeat", "1")
    assert_times_hold_together(found)
    assert "convolutions" in found["reference"]
    assert "pip install pytorch-msssim" in found["reference"]


def test_step(capsys: pytest.CaptureFixture[str], demo: str) -> None:
    words = ("--data", demo, "--num-gaussians", "300", "--warm-up", "2", "--repeat", "4")
    found = measured(capsys, "step", *words)
    assert_says_where(found, "step", torch_threads=1)
    low, high = found["spread"]["step_ms"]
    assert 0 < found["minimum"]["step_ms"] <= low <= found["step_ms"] <= high
    assert list(found["parts_ms"]) == list(PARTS)
    assert all(value > 0 for value in found["parts_ms"].values()), found["parts_ms"]
    assert 0.3 < sum(found["parts_ms"].values()) / found["parts_step_ms"] < 2  # medians, not of one step
    assert {"face", "mouth_coverage", "motion", "landmarks", "contrast"} <= set(found["terms"])
    assert (found["stage"], found["num_gaussians"]) == ("motion", {"face": 273, "mouth": 27})


def test_parts_of_a_step_add_up_and_leave_the_training_as_it_was(demo: str) -> None:
    data = open_storage(demo)
    config = StepBench(num_gaussians=300)._config()
    assert config.density.start > config.steps > DensityConfig().start
    training = build(config, data, read_manifest(data), torch.device("cpu"))
    before = training.step, torch.autograd.backward, len(training.head.face_field)
    training.learn(training.feed.next(training.step))
    with watched(training) as watch:
        began = time.perf_counter()
        with watch.part("rest"):
            training.learn(training.feed.next(training.step))
        whole_ms = 1e3 * (time.perf_counter() - began)
    assert sum(watch.take().values()) == pytest.approx(whole_ms, rel=0.02)
    for owner, name in ((training.head, "forward"), (training.engine, "backward_and_step"), (training.pool, "step")):
        assert name not in vars(owner)
    training.learn(training.feed.next(training.step))
    training.feed.close()
    assert not any(watch.take().values())
    assert (training.step - 3, torch.autograd.backward, len(training.head.face_field)) == before


def test_inner_parts_are_not_the_outer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = iter([0.0, 1.0, 3.0, 3.5, 4.0, 8.0, 8.25, 9.0])
    monkeypatch.setattr("fiag_dist.bench.parts.now_s", lambda: next(clock_s))
    watch = Stopwatch()
    with watch.part("rest"):
        with watch.part("losses"), watch.part("forward_motion", inside="forward_raster"):
            pass  # a network that a loss asks
        with watch.part("forward_raster"), watch.part("forward_motion", inside="forward_raster"):
            pass
    wanted = {"rest": 2250, "losses": 2000, "forward_raster": 750, "forward_motion": 4000}
    assert {name: found for name, found in watch.take().items() if found} == wanted
    assert next(clock_s, None) is None


def test_scale(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("--config", str(ROOT / "configs" / "pretrain.yaml"), "--gpus", "1", "8", "64", "--people", "10", "64")
    found = measured(capsys, "scale", *words)
    rows = {(row["people"], row["gpus"]): row for row in found["rows"]}
    assert rows[10, 64] == {"people": 10, "gpus": 64, "refused": "more ranks than identities"}
    assert rows[64, 1]["personal_mib"] > 7 * rows[64, 8]["personal_mib"] > 7 * rows[64, 64]["personal_mib"]
    assert rows[64, 1]["efficiency"] == 1 > rows[64, 8]["efficiency"] > rows[64, 64]["efficiency"]
    assert rows[10, 8]["step_ms"] == rows[64, 8]["step_ms"], "a step does not know how many people there are"
    (tmp_path / "dist.json").write_text(json.dumps({"machine_model": found["machine_model"] | {"frame_ms": 1000.0}}))
    slower = measured(capsys, "scale", *words, "--measured", str(tmp_path / "dist.json"))
    assert slower["rows"][0]["step_ms"] == pytest.approx(1000.0 + found["machine_model"]["fixed_ms"])
    assert "no machine_model in it" in refused(capsys, "scale", *words, "--measured", str(tmp_path / "none.json"))


@pytest.mark.slow
def test_dist(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--num-gaussians", "330", "--size", "64", "--warm-up", "5", "--repeat", "2")
    found = measured(capsys, "dist", *words)
    alone, two = found["one_rank"]["engines"], found["ranks"]["2"]
    assert list(alone) == ["apart", "ddp", "zero_0", "zero_1"]
    for name, times in two["engines"].items():
        assert times["ratio"] == pytest.approx(times["step_ms"] / alone[name]["step_ms"], rel=1e-2)
        assert times["over_apart"] == pytest.approx(times["step_ms"] / two["engines"]["apart"]["step_ms"], rel=1e-2)
        if name != "apart":
            assert times["loss"] == pytest.approx(two["engines"]["ddp"]["loss"], rel=1e-2), "they trained the same"
    assert two["model"]["of_measured"] == pytest.approx(
        two["model"]["step_ms"] / two["engines"]["zero_1"]["step_ms"], rel=1e-2
    )
    assert found["machine_model"]["frame_ms"] > 0


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.clips
def test_pack(capsys: pytest.CaptureFixture[str], clips: Path) -> None:
    found = measured(capsys, "pack", "--clip", str(clips / "speaker_h.mp4"), "--workers", "1", "--max-seconds", "4")
    assert_says_where(found, "pack")
    assert found["seconds_used"] == pytest.approx(4, abs=0.04)
    assert found["workers"] == {"1": {"frames_per_s": found["frames_per_s"], "ratio": 1}}
    assert sum(found["parts_cpu_ms_per_frame"].values()) == pytest.approx(found["cpu_ms_per_frame"], rel=0.02)
    assert {"landmarks", "person matte", "flow tracks", "head poses", "masks"} <= set(found["parts_cpu_ms_per_frame"])
    assert 300 < found["worker_peak_mib"] < 1500


def test_render_makes_an_identity(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--num-gaussians", "300", "--size", "64", "--frames", "5", "--repeat", "2")
    found = measured(capsys, "render", *words)
    assert_says_where(found, "render")
    for name in ("frames_per_s", "frames_per_s_encoded"):
        low, high = found["spread"][name]
        assert 0 < low <= found[name] <= high <= found["best"][name] * 1.001
    assert found["frame_ms"] == pytest.approx(1e3 / found["frames_per_s"], rel=0.9)
    assert (found["size"], found["num_gaussians"]) == (64, {"face": 300, "mouth": 30})


def test_render_takes_a_finished_identity(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = tiny_identity.pack(tmp_path / "shards")
    folder = tiny_identity.make_identity(tmp_path / "ids", data)
    found = measured(capsys, "render", "--identity", str(folder), "--frames", "3", "--repeat", "1")
    assert (found["identity"], found["size"]) == (str(folder), tiny_identity.SIZE)
    assert "no finished identity" in refused(capsys, "render", "--identity", str(tmp_path))


@pytest.mark.parametrize("size", [16, 45])
def test_the_reference_rasteriser_agrees_with_the_kernels(size: int) -> None:
    values, camera = head_scene(500, 3, size)
    values[0][::7, 2] += 3.0  # behind the camera
    values[0][1::7, 0] += 1.0  # off the image
    values[3][2::7] = 1e-3  # too faint
    values[3][3::7] = 1.0  # clamped
    leaves = {name: x.requires_grad_() for name, x in zip(("m", "q", "s", "o", "c"), values, strict=True)}
    wide = Camera(camera.viewmat, camera.K, size + 13, size)
    background = torch.tensor([0.1, 0.4, 0.7])
    draw = torch.Generator().manual_seed(0)
    incoming = {
        "image": torch.randn(3, size, size + 13, generator=draw),
        "alpha": torch.randn(1, size, size + 13, generator=draw),
    }

    def kernels() -> dict[str, torch.Tensor]:
        rendering = rasterize(*values, wide, background)
        return {"image": rendering.image, "alpha": rendering.alpha}

    def tiles() -> dict[str, torch.Tensor]:
        return dict(zip(("image", "alpha"), reference.rasterize(*values, wide, background), strict=True))

    ours, theirs = Contender(kernels, leaves, incoming), Contender(tiles, leaves, incoming)
    assert all(found["relative"] < 1e-3 for found in agreement(ours, theirs, tolerance=1e-3).values())


def test_the_reference_rasteriser_draws_nothing_of_nothing() -> None:
    values, camera = head_scene(9, 3, 40)
    background = torch.tensor([0.2, 0.3, 0.4])
    image, alpha = reference.rasterize(*(x[:0] for x in values), camera, background)
    assert torch.equal(image, background[:, None, None].expand(3, 40, 40))
    assert not alpha.any()


def test_a_reference_that_computes_something_else_is_noticed() -> None:
    x = torch.linspace(0, 1, 9, requires_grad=True)
    one = {"y": torch.ones(9)}
    square, wrong = (Contender(lambda k=k: {"y": k * x * x}, {"x": x}, one) for k in (1.0, 1.02))
    with pytest.raises(AssertionError, match="y differs"):
        agreement(square, wrong, tolerance=1e-2)
    assert agreement(square, wrong, tolerance=3e-2)["y"]["max"] == pytest.approx(0.02, rel=1e-3)


def test_the_slower_one_has_the_higher_time() -> None:
    x = torch.ones(3, requires_grad=True)

    def slow() -> dict[str, torch.Tensor]:
        time.sleep(0.02)
        return {"y": x * x}

    one = {"y": torch.ones(3)}
    found = contest(Contender(lambda: {"y": x * x}, {"x": x}, one), Contender(slow, {"x": x}, one), repeat=3)
    assert found["ratio"] > 3
    assert found["reference_forward_ms"] >= 20 > found["reference_backward_ms"]


def test_the_result_is_written_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "results" / "2026-11-22_cpu_encoder.json"
    found = measured(capsys, "encoder", "--num-gaussians", "50", "--repeat", "1", "--out", str(out))
    assert json.loads(out.read_text()) == found


def test_threads_are_set_for_the_benchmark_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads(), numba.get_num_threads()
    found = measured(capsys, "ssim", "--size", "32", "--repeat", "1", "--threads", "1")
    assert found["machine"]["threads"] == {"torch": 1, "kernels": 1}
    assert (torch.get_num_threads(), numba.get_num_threads()) == before
