"""What all tests share: shape checks at run time, threads that leave the machine usable, and markers that skip with a reason."""

import os
from pathlib import Path

# Read by OpenMP and numba when they are first imported, hence before anything else. Tests that run side by side (pytest -n) share the cores.
os.environ.setdefault(
    "OMP_NUM_THREADS",
    str(max(1, min(4, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))),
)
os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own default lets its workers starve beside other tests
os.environ["FIAG_CHECKED"] = "1"  # kernels refuse numbers that are not finite, in the processes that tests start too

import pytest
import shape_checks

shape_checks.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine can't run, and says why."""
    from fiag_dist import weights

    clips = os.environ.get("FIAG_CLIPS")
    if not clips:
        no_clips = "FIAG_CLIPS is not set; it names a folder of clips"
    elif not Path(clips).is_dir():
        no_clips = f"FIAG_CLIPS={clips} is no folder"
    else:
        no_clips = None
    marked = {name: [item for item in items if item.get_closest_marker(name)] for name in ("clips", "weights", "gpu")}
    if no_clips:
        _skip(marked["clips"], no_clips)
    if marked["weights"]:
        missing = [name for name in weights.REGISTRY if not weights.present(name)]
        if missing:
            _skip(marked["weights"], f"weights missing: {', '.join(missing)}; run: fiag-dist weights fetch")
    if marked["gpu"]:
        import torch

        if not torch.cuda.is_available():
            _skip(marked["gpu"], "no CUDA device")


def _skip(items: list[pytest.Item], reason: str) -> None:
    for item in items:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def clips() -> Path:
    """Folder of real clips; ask for it only in tests marked `clips`."""
    return Path(os.environ["FIAG_CLIPS"]).resolve()
