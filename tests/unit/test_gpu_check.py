"""The GPU check, run small with the CPU on both sides: its comparisons notice errors, and its report is whole whatever happens."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_check
import gpu_pairs
import gpu_step
from gpu_report import Report

HOST = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "gpu_check.sh"


def test_whole_check_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "results" / "check.json"
    assert gpu_check.main(["--out", str(out), "--device", "cpu", "--quick"]) == 0
    report = json.loads(out.read_text())
    assert report["passed"] is True
    assert {part["state"] for part in report["parts"].values()} == {"passed"}
    assert len(report["parts"]) == 13
    assert report["machine"]["torch"] == torch.__version__
    step = report["parts"]["step: same numbers"]
    assert "gradient of face_field.means" in step["errors"]
    assert 0 < step["errors"]["gradient of face_field.quats"]["norm"] < 1e-4  # two encoders, two rounding orders
    assert report["parts"]["step at 48: times"]["frames=1"]["step_ms"]["median"] > 0
    assert report["parts"]["training"]["steps"] == 80


def test_missing_device_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(gpu_check.ConfigError, match=r"no CUDA device.*--device cpu --quick"):
        gpu_check.main(["--out", "x.json"])


@pytest.mark.parametrize("name", ["image", "alpha", "radii", "gradient of quats", "gradient of centres"])
def test_a_wrong_rasteriser_fails(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    right = gpu_pairs.compared

    def one_off(got: dict[str, Tensor], wanted: dict[str, Tensor], *rest: Any) -> dict[str, Any]:
        return right(got | {name: 1.02 * got[name]}, wanted, *rest)

    scene = gpu_pairs.SCENES["mixed"]()
    assert gpu_pairs._raster_pair([scene], HOST)["passed"]
    monkeypatch.setattr(gpu_pairs, "compared", one_off)
    assert not gpu_pairs._raster_pair([scene], HOST)["passed"]


def test_a_wrong_encoder_and_a_wrong_ssim_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_pairs, "GRIDS", {"dense": gpu_pairs.GRIDS["dense"]})
    right = gpu_pairs.grid.TorchGrid.forward
    monkeypatch.setattr(gpu_pairs.grid.TorchGrid, "forward", lambda self, unit, table: right(self, unit.flip(1), table))
    assert not gpu_pairs.encoder_pairs(HOST)["passed"]
    monkeypatch.setattr(gpu_pairs.ssim, "_by_convolution", lambda image, target: (image - target).square().mean())
    assert not gpu_pairs.ssim_pairs(HOST)["passed"]


def test_comparison() -> None:
    wanted = {"x": torch.linspace(1, 2, 1000), "zeros": torch.zeros(5)}
    assert gpu_pairs.compared({k: v.clone() for k, v in wanted.items()}, wanted)["passed"]
    one_flip = wanted["x"].clone()
    one_flip[7] += 0.3  # a threshold fell on the other side: rare, and small in norm
    assert gpu_pairs.compared(wanted | {"x": one_flip}, wanted)["passed"]
    for x in (wanted["x"] * 1.02, wanted["x"] + 3e-3, torch.full((1000,), float("nan"))):
        assert not gpu_pairs.compared(wanted | {"x": x}, wanted)["passed"]
    assert not gpu_pairs.compared(wanted | {"zeros": torch.tensor([0, 0, 0, 0, 1e-9])}, wanted)["passed"]
    assert not gpu_pairs.compared({"zeros": torch.zeros(5)}, wanted)["passed"]


def test_random_numbers_are_drawn_on_the_host() -> None:
    meta = torch.device("meta")
    found = []
    for device in (HOST, meta):
        torch.manual_seed(3)
        with gpu_step.DrawnOnHost():
            draws = [
                torch.rand(2, 3, device=device),
                torch.randperm(7, device=device),
                torch.randn_like(draws_like(device)),
            ]
        found.append(draws)
        assert {x.device for x in draws} == {device}
        found.append(torch.rand(4))  # the host's generator went as far
    assert torch.equal(found[1], found[3])


def draws_like(device: torch.device) -> Tensor:
    return torch.zeros(5, 2, device=device)


# The report


def test_report_is_whole_after_every_part(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    report = Report(out, {"device": "none"}, 100)
    assert json.loads(out.read_text()) == {"passed": False, "device": "none", "parts": {}}

    def fails() -> dict[str, Any]:
        raise RuntimeError("cannot\n load")

    report.part("one", 10, lambda: {"ms": 1.23456789})
    assert json.loads(out.read_text())["passed"] is True
    report.part("two", 10, fails)
    report.part("three", 10, lambda: {"passed": False, "error of image": float("nan")})
    report.part("four", 10, dict, "one", "two")
    found = json.loads(out.read_text())
    assert found["passed"] is False
    parts = found["parts"]
    assert [part["state"] for part in parts.values()] == ["passed", "error", "failed", "left out"]
    assert parts["one"]["ms"] == 1.235
    assert parts["two"]["error"] == "RuntimeError: cannot load"
    assert parts["two"]["at"][-1].endswith(" fails")
    assert parts["three"]["error of image"] == "nan"
    assert parts["four"]["why"] == "it needs what did not pass: two"
    assert [path.name for path in tmp_path.iterdir()] == ["check.json"]


def test_a_part_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_report.LEAST_S", 0.0)
    report, rang = Report(tmp_path / "check.json", {}, 100), []

    def hangs() -> dict[str, Any]:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                rang.append("swallowed")

    handler = signal.signal(signal.SIGALRM, lambda *_: rang.append("outer"))
    outer = signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        report.part("endless", 0.2, hangs)
        time.sleep(0.5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *outer)
        signal.signal(signal.SIGALRM, handler)
    part = report.content["parts"]["endless"]
    assert part["state"] == "error"
    assert "OutOfTime: longer than its 0 s" in part["error"]
    assert rang == ["outer"]  # another's alarm goes on


def test_no_part_is_begun_without_time(tmp_path: Path) -> None:
    report = Report(tmp_path / "check.json", {}, 1.0)
    report.part("late", 100, lambda: pytest.fail("it was begun"))
    assert report.content["parts"]["late"]["state"] == "left out"
    assert "of the budget were left" in report.content["parts"]["late"]["why"]
    assert report.content["passed"] is False


@pytest.mark.skipif(shutil.which("nvcc") is not None, reason="there is a CUDA compiler")
def test_a_build_without_compiler_says_so() -> None:
    pytest.importorskip("gsplat")
    with pytest.raises(RuntimeError, match="no CUDA toolkit: is nvcc on PATH"):
        gpu_check.build_gsplat(60)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_fails_leaves_a_whole_report(tmp_path: Path) -> None:
    report = Report(tmp_path / "check.json", {}, 100)
    gpu_check.check(report, torch.device("cuda", 0), replace(gpu_check.QUICK, people=0), tmp_path)
    parts = json.loads((tmp_path / "check.json").read_text())["parts"]
    assert parts["gsplat builds"]["state"] == "error"
    assert parts["raster: same numbers"]["why"] == "it needs what did not pass: gsplat builds"
    assert parts["encoder: same numbers"]["state"] == "error"
    assert "CUDA" in parts["encoder: same numbers"]["error"]
    assert "need at least 1 identity" in parts["demo heads"]["error"]
    assert parts["training"]["why"] == "it needs what did not pass: gsplat builds, demo heads"


# The script around it


def script(tmp_path: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "FIAG_GPU_KEEP": str(tmp_path / "keep"),
    } | environment
    command = ["bash", str(ROOT / "launch" / "gpu_check.sh"), *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def executable(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("/absent",), "/absent is no folder; give the folder that --wheels filled"),
        (("--wheels",), "--wheels: which folder?"),
        ((), "can't import torch; name a Python that can: FIAG_PYTHON="),
    ],
)
def test_script_refuses_in_one_line(tmp_path: Path, args: tuple[str, ...], message: str) -> None:
    done = script(tmp_path, *args, FIAG_PYTHON="false")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "keep").exists()


def test_script_without_a_device_says_how_to_try_it(tmp_path: Path) -> None:
    python = executable(tmp_path / "python", '[[ "$2" == "import torch" ]]')  # has torch, and nothing it can run on
    done = script(tmp_path, FIAG_PYTHON=python)
    assert done.returncode == 2
    assert "sees no CUDA device" in done.stderr
    assert "--device cpu --quick" in done.stderr


def test_script_gets_wheels_for_another_machine(tmp_path: Path) -> None:
    python = executable(tmp_path / "python", 'printf "%s\\n" "$@" >"$HOME/asked"')
    done = script(tmp_path, "--wheels", str(tmp_path / "wheels"), "scipy", FIAG_PYTHON=python)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:3] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "manylinux_2_28_x86_64", "gsplat", "tyro", "scipy"} <= set(asked)
    assert asked[asked.index("--python-version") + 1] == "3.12"
    assert "torch" not in asked
    assert f"bash launch/gpu_check.sh {tmp_path / 'wheels'}" in done.stdout


ALONE = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed | sys.stdlib_module_names:
            raise ModuleNotFoundError(name)
allowed = set(sys.argv[1].split())
sys.meta_path.insert(0, Nothing())
import gpu_check
"""


def test_script_knows_every_package_that_the_check_imports() -> None:
    """With nothing there but Python, torch, what torch needs, and the script's list, the check starts."""
    listed = re.search(r"needs=\((.*?)\)", SCRIPT.read_text(), re.DOTALL)
    assert listed
    of_torch = {re.split(r"[ ;<>=!\[]", line)[0].replace("-", "_").lower() for line in requires("torch") or []}
    allowed = set(re.findall(r"(\w+):[\w-]+", listed[1])) | of_torch | {"torch", "torchgen", "functorch", "mpmath"}
    own = {path.stem for folder in ("benchmarks", "shards", "tests/numerics") for path in (ROOT / folder).glob("*.py")}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])}
    command = [sys.executable, "-c", ALONE, " ".join(allowed | own | {"fiag_dist"})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
