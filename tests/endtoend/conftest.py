"""Demo shards and runs that the end-to-end tests share, made through the command line as a user would, once for all processes of a test run."""

import fcntl
import json
import os
import sys
from collections.abc import Callable
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
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def once(path: Path, make: Callable[[], object]) -> Path:
    """`path`, which `make` makes in the process that comes first; the others wait for it."""
    made = path.with_name(f"{path.name}.made")
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            make()
            made.touch()
    return path


@pytest.fixture(scope="session")
def shards(together: Path) -> Path:
    """Four small demo identities."""
    out = together / "demo"
    words = ("--identities", "4", "--seconds", "2.4", "--size", "64")
    return once(out, lambda: command(sys.executable, ROOT / "shards" / "make_demo.py", "--out", out, *words))


@pytest.fixture(scope="session")
def config(shards: Path, together: Path) -> Path:
    """A run of 48 steps on three of them."""
    folder = together / "runs"
    names = sorted(i["name"] for i in json.loads((shards / "manifest.json").read_text())["identities"])[:3]
    folder.mkdir(exist_ok=True)
    path = folder / "tiny.yaml"
    text = f"data: {shards}\nruns: {folder}\nname: two\nidentities: {json.dumps(names)}\n{TINY}"
    once(path, lambda: path.write_text(text))
    return path


@pytest.fixture(scope="session")
def pretrained(config: Path) -> Path:
    """The run folder after two ranks trained it to its end."""
    return once(config.parent / "two", lambda: command(*torchrun(2), config))
