"""Adaptations to disturb: demo heads, a run to start from, and the processes that work on an identity."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
LOG = "adapt.log"
PRETRAIN = """
data: {data}
runs: {runs}
name: pre
train:
  steps: 12
  frames_per_step: 2
  images_every: 0
  checkpoint_every: 14
  stages: {{landmark_steps: 2}}
  model:
    field: {{num_face: 600, num_mouth: 100, capacity_face: 700, capacity_mouth: 140}}
"""
ADAPT = """
train:
  steps: {steps}
  frames_per_step: 1
  log_every: 5
  images_every: 0
  checkpoint_every: {checkpoint_every}
  stages: {{landmark_steps: 2}}
  loss: {{triplet: 0.0, contrast: 0.0, lpips: 0.0}}
plateau: {{every: 5}}
retries: {retries}
"""


def environment() -> dict[str, str]:
    """Of a command: the test's own, S3 keys among it."""
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"}


def run(*words: str | Path, timeout_s: float = 900) -> None:
    """Runs a command that must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(),
        cwd=ROOT,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def prepared(folder: Path, num: int, size: int = 64, seconds: float = 1.2) -> tuple[Path, Path]:
    """Shards of `num` demo heads and a run that was trained on two of them."""
    data = folder / "shards"
    sizes = ("--identities", str(num), "--seconds", str(seconds), "--size", str(size))
    run("shards/make_demo.py", "--out", data, *sizes)
    names = sorted(i["name"] for i in json.loads((data / "manifest.json").read_text())["identities"])[:2]
    (folder / "pre.yaml").write_text(
        PRETRAIN.format(data=data, runs=folder / "runs") + f"identities: {json.dumps(names)}\n"
    )
    run("-m", "fiag_dist.cli", "pretrain", folder / "pre.yaml")
    return data, folder / "runs" / "pre"


def start(data: Path, checkpoint: Path, out: Path | str, config: Path, *more: str) -> subprocess.Popen[str]:
    """The command, begun; what it prints goes to adapt.log beside `config`."""
    words = ("adapt", data, "--from", checkpoint, "--out", out, "--config", config, *more)
    with config.with_name(LOG).open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fiag_dist.cli", *map(str, words)],
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            cwd=ROOT,
        )


def workers(driver: int) -> list[psutil.Process]:
    """Ray's workers below a command."""
    try:
        found = psutil.Process(driver).children(recursive=True)
        return [process for process in found if process.name().startswith("ray::")]
    except psutil.NoSuchProcess:
        return []


def at_work_on(driver: int, folder: Path) -> list[psutil.Process]:
    """The workers that have a file of an identity's folder open."""
    found = []
    for process in workers(driver):
        try:
            if any(Path(file.path).is_relative_to(folder) for file in process.open_files()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def tensors(out: Path) -> dict[str, str]:
    """SHA-256 of the tensors of each finished identity."""
    return {
        done.parent.name: hashlib.sha256((done.parent / "identity.safetensors").read_bytes()).hexdigest()
        for done in out.glob("*/done.json")
    }


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
