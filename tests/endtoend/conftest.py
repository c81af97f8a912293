"""Demo shards and runs that the end-to-end tests share, made through the command line as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = """
train:
  steps: 40
  frames_per_step: 2
  log_every: 4
  images_every: 20
  checkpoint_every: 20
  keep: 10
  stages: {landmark_steps: 8}
  density: {start: 8, every: 8, grad_face: 1.0e-5, grad_mouth: 1.0e-5}
  model:
    field: {num_face: 600, num_mouth: 100, capacity_face: 700, capacity_mouth: 140}
"""


def command(*words: str | Path, timeout_s: float = 240, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command of this checkout; on failure the test shows what it printed."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=timeout_s, env=env, cwd=ROOT)
    if check:
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def fiag_dist(*words: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return command(sys.executable, "-m", "fiag_dist.cli", *words, **options)


def torchrun(ranks: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        "fiag_dist.pretrain",
    ]


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small demo identities."""
    out = tmp_path_factory.mktemp("demo")
    command(
        sys.executable,
        ROOT / "shards" / "make_demo.py",
        "--out",
        out,
        "--identities",
        "4",
        "--seconds",
        "2.4",
        "--size",
        "64",
    )
    return out


@pytest.fixture(scope="session")
def config(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 48 steps on three of them."""
    folder = tmp_path_factory.mktemp("runs")
    names = sorted(i["name"] for i in json.loads((shards / "manifest.json").read_text())["identities"])[:3]
    path = folder / "tiny.yaml"
    path.write_text(f"data: {shards}\nruns: {folder}\nname: two\nidentities: {json.dumps(names)}\n{TINY}")
    return path


@pytest.fixture(scope="session")
def pretrained(config: Path) -> Path:
    """The run folder after two ranks trained it to its end."""
    command(*torchrun(2), config)
    return config.parent / "two"
