"""A disk that really fills up while a checkpoint is saved or a video is written: one line, and the checkpoint before is as it was."""

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from fiag_dist.dist.checkpoint import load, newest
from fiag_dist.dist.process import Process
from fiag_dist.dist.saving import save
from fiag_dist.ending import guarded
from fiag_dist.errors import CheckpointError, DataError
from fiag_dist.media.video import VideoWriter
from fiag_dist.monitoring.monitor import Monitor
from fiag_dist.render import PngFolder
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


def test_a_full_disk_met_by_the_record_is_one_line(small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def trains(_: list[str]) -> int:
        with closing(Monitor(small_disk, Process())) as monitor:
            with (small_disk / "rest").open("wb") as rest:
                rest.write(bytes(3 << 20))
            for step in range(1, 9999):
                monitor.add(step, {"loss/total": 1.0}, every=1)
        return 0

    assert guarded(trains, []) == 2
    assert capfd.readouterr().err.splitlines() == [
        "fiag-dist: No space left on device; make room, and give the same command again"
    ]


def noise(size: int, seed: int = 0) -> np.ndarray:
    """A frame that can't be compressed."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def write_frames(path: Path, size: int, count: int) -> None:
    with VideoWriter(path, size, size, 25, crf=0) as video:
        for seed in range(count):
            video.write(noise(size, seed))


@pytest.mark.parametrize(("size", "count"), [(256, 60), (1600, 2)])  # full on the way, or by what was held back
def test_a_full_disk_leaves_no_part_of_a_video(small_disk: Path, size: int, count: int) -> None:
    with pytest.raises(DataError) as caught:
        write_frames(small_disk / "full.mp4", size, count)
    line = f"{small_disk}/full.mp4: can't be written (No space left on device); make room, or give another place"
    assert str(caught.value) == line
    assert not list(small_disk.iterdir())


def fill(folder: PngFolder) -> None:
    for _ in range(9):
        folder.write(noise(512))


def test_a_full_disk_ends_png_frames_in_a_line(small_disk: Path) -> None:
    folder = PngFolder(small_disk / "frames")
    with pytest.raises(DataError, match=r"/00000\d.png: can't be written \(No space left on device\); make room"):
        fill(folder)
    with pytest.raises(DataError, match=r"/provenance.json: can't be written \(No space left on device\); make room"):
        folder.close({"text": "x" * 3_000_000})
