"""Demo shards and runs that the end-to-end tests share, made through the command line as a user would."""

import json
import sys
from pathlib import Path

import pytest
from commands import ROOT, command, torchrun

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
