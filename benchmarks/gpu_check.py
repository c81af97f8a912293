"""The GPU check: every backend pair compared, timed, and the demo heads trained on one device; one JSON file says what was found.

python benchmarks/gpu_check.py --out benchmarks/results/NAME.json             all of it, on a CUDA device (bash launch/gpu_check.sh prepares one)
python benchmarks/gpu_check.py --out check.json --device cpu --quick          the same code, small, with the CPU on both sides

Correctness comes first, times next, the training last. Each part has its time, and the file is whole after each. Ends with 0 when all parts passed.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shards"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import gpu_step
import gpu_times
from gpu_pairs import PAIRS
from gpu_report import Report
from make_demo import Demo, make_demo

from fiag_dist.bench.machine import machine
from fiag_dist.ending import guarded
from fiag_dist.errors import ConfigError
from fiag_dist.images import raster, ssim
from fiag_dist.kernels.warm import warm
from fiag_dist.model import grid

BUDGET_S = 520.0
"""Of nine minutes, what is left when packages are installed."""


@dataclass(frozen=True)
class Sizes:
    """How large the check is."""

    num: int
    """Gaussians of the face."""
    size: int
    """Side of the images that are timed, pixels."""
    shards: tuple[int, ...]
    """Sides of the demo heads' frames, pixels; the first is trained on."""
    frames: tuple[int, ...]
    """Frames in one call of the rasteriser."""
    repeat: int
    frames_a_step: tuple[int, ...]
    steps: int
    """Of the training."""
    people: int
    """Demo heads; half of them are in a step, so that each has somebody to be told from."""
    seconds: float
    """Of each demo head's clip."""


FULL = Sizes(10_000, 512, (256, 512), (1, 4, 16), 30, (1, 4), 400, people=8, seconds=3.0)
QUICK = Sizes(300, 64, (48,), (1, 2), 2, (1,), 60, people=2, seconds=0.9)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check. Returns 0 when every part passed."""
    parser = argparse.ArgumentParser(prog="gpu_check.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file that is written")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small scenes, few steps: does it run?")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds for all parts (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device; check nvidia-smi, or give --device cpu --quick")
    device = torch.device("cuda", torch.cuda.current_device()) if args.device == "cuda" else torch.device("cpu")
    report = Report(args.out, _about(device), args.budget_s)
    with tempfile.TemporaryDirectory(prefix="fiag-gpu-check-") as folder:
        check(report, device, QUICK if args.quick else FULL, Path(folder))
    states = {name: part["state"] for name, part in report.content["parts"].items()}
    print(f"gpu_check: {args.out}: " + ", ".join(f"{name} {state}" for name, state in states.items()), flush=True)
    return 0 if report.content["passed"] else 1


def check(report: Report, device: torch.device, sizes: Sizes, folder: Path) -> None:
    """All parts in their order; the demo heads lie in `folder`."""
    num, people = sizes.num, sizes.people // 2
    shards = {size: str(folder / f"demo_{size}") for size in sizes.shards}
    trained_on = shards[sizes.shards[0]]
    drawn = ("gsplat builds",) if device.type == "cuda" else ()
    headed = (*drawn, "demo heads")
    if drawn:
        report.part(drawn[0], 330, lambda: build_gsplat(330))
    report.part("CPU kernels compile", 240, _warm_kernels)
    report.part("backends", 60, lambda: _backends(device), *drawn)
    for name, pairs in PAIRS.items():
        report.part(f"{name}: same numbers", 120, partial(pairs, device), *(drawn if name == "raster" else ()))
    report.part("demo heads", 120, lambda: _demo_heads(shards, sizes))
    report.part("step: same numbers", 120, partial(gpu_step.step_pair, trained_on, device, num, people), *headed)
    run = partial(gpu_times.raster_times, device, num, sizes.size, sizes.frames, sizes.repeat)
    report.part("raster: times", 40, run, *drawn)
    report.part("encoder: times", 40, partial(gpu_times.encoder_times, device, num, sizes.repeat))
    report.part("ssim: times", 40, partial(gpu_times.ssim_times, device, sizes.size, sizes.repeat))
    for size, url in shards.items():
        run = partial(gpu_times.step_times, url, device, num, sizes.frames_a_step, sizes.repeat)
        report.part(f"step at {size}: times", 60, run, *headed)
        run = partial(gpu_times.render_times, url, device, num, people, sizes.repeat)
        report.part(f"render at {size}: times", 40, run, *headed)
    limit_s = 150.0
    end = time.monotonic() + min(limit_s, report.left_s) - 20  # it stops by itself in time to be scored
    run = partial(gpu_step.train, trained_on, device, num, people, sizes.steps, lambda: end - time.monotonic())
    report.part("training", limit_s, run, *headed)


def build_gsplat(limit_s: float) -> dict[str, Any]:
    """Compiles gsplat's CUDA code in a process of its own, or finds it compiled. Raises RuntimeError with the last line it printed."""
    words = [
        sys.executable,
        "-c",
        "from gsplat.cuda._backend import _C; assert _C is not None, 'no CUDA toolkit: is nvcc on PATH?'",
    ]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        printed, _ = process.communicate(timeout=limit_s)
    finally:  # the compiler's processes too
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    lines = [line for line in printed.splitlines() if line.strip()]
    if process.returncode:
        raise RuntimeError("; ".join([line for line in lines if "error" in line.lower()][:2] + lines[-1:]))
    return {"version": metadata.version("gsplat"), "said": lines[-1:]}


def _warm_kernels() -> dict[str, Any]:
    warm()
    return {"threads": machine()["threads"]}


def _demo_heads(shards: dict[int, str], sizes: Sizes) -> dict[str, Any]:
    for size, url in shards.items():
        make_demo(url, sizes.people, Demo(sizes.seconds, size, seed=0), jobs=1 if sizes.people < 4 else 0)
    return {"people": sizes.people, "seconds_each": sizes.seconds, "sizes": list(shards)}


def _backends(device: torch.device) -> dict[str, Any]:
    """What `auto` takes on the device, and why."""
    choices = {
        "raster": raster.choose("auto", device),
        "encoder": grid.choose("auto", device),
        "ssim": ssim.choose("auto", device),
    }
    return {name: {"auto": choice.name, "why": choice.why} for name, choice in choices.items()}


def _about(device: torch.device) -> dict[str, Any]:
    """The machine and the device, with the versions that matter."""
    about: dict[str, Any] = {
        "command": " ".join(["python benchmarks/gpu_check.py", *sys.argv[1:]]),
        "device": str(device),
    }
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        about |= {
            "gpu": found.name,
            "gpu_mib": found.total_memory // 2**20,
            "capability": f"{found.major}.{found.minor}",
            "cuda": torch.version.cuda,
        }
    return about | {"machine": machine()}


if __name__ == "__main__":
    sys.exit(guarded(lambda argv: main(argv)))
