"""A disk that really fills up while a checkpoint is saved: one line, and the checkpoint before is as it was."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fiag_dist.dist.checkpoint import load, newest
from fiag_dist.dist.process import Process
from fiag_dist.dist.saving import save
from fiag_dist.errors import CheckpointError
from fiag_dist.storage import open_storage


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "small", str(tmp_path)]
        subprocess.run(mount, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here (root is needed): {error}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True, timeout=20)


def save_at(folder: Path, step: int, mib: float) -> str:
    shared = {"w": torch.full((int(mib * 2**18),), float(step))}
    return save(open_storage(folder), "checkpoints", step, shared, {}, {"anna": {"net": torch.ones(3)}}, {}, Process())


def test_a_full_disk_keeps_the_checkpoint_before(small_disk: Path) -> None:
    save_at(small_disk, 1, mib=1.5)
    with pytest.raises(CheckpointError) as caught:
        save_at(small_disk, 2, mib=2.0)
    text = str(caught.value)
    assert text.startswith(
        f"checkpoint of step 2: rank 0 could not write: {small_disk}/checkpoints/step-00000002/shared"
    )
    assert text.endswith("the disk is full; free space or give another folder; the checkpoints before it are untouched")
    storage = open_storage(small_disk)
    assert newest(storage, "checkpoints") == "checkpoints/step-00000001"
    assert load(storage, "checkpoints/step-00000001").shared["w"].unique().tolist() == [1.0]
    save_at(small_disk, 3, mib=1.0)  # what was begun has left no part behind
    assert newest(storage, "checkpoints") == "checkpoints/step-00000003"
