"""The machine a number was measured on: without it a time says nothing."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numba
import torch

from fiag_dist import __version__
from fiag_dist.errors import CHECKED

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, when it is one."""
PACKAGES = ("torch", "numba", "numpy", "gsplat", "tinycudann", "pytorch-msssim", "av")


def machine(load_1_min: float | None = None) -> dict[str, Any]:
    """Processor, cores, threads in use, GPU, versions, load (now, unless given), date and commit."""
    about: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": {"torch": torch.get_num_threads(), "kernels": numba.get_num_threads()},
        "load_1_min": os.getloadavg()[0] if load_1_min is None else load_1_min,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "fiag-dist": __version__,
    }
    about |= {name: version for name in PACKAGES if (version := _version(name))}
    about |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": _commit()}
    if os.environ.get(CHECKED) == "1":
        about["checked_mode"] = True  # every kernel looks at its inputs first: not the times of a usual run
    return about


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", path.read_text()) if path.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str | None:
    """The checkout's commit, `-dirty` when files differ from it; None when this is no checkout or git is not there."""
    if not (ROOT / ".git").exists():
        return None
    try:
        words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
