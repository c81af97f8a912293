"""What this machine can run, found out by running it small: versions, cores, GPUs, backends, weights, S3; and what to mend."""

import argparse
import os
import platform
import shutil
import socket
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from rich.console import Console
from rich.text import Text

from fiag_dist import weights
from fiag_dist.ending import guarded
from fiag_dist.errors import ConfigError, FiagError
from fiag_dist.images import raster, ssim
from fiag_dist.images.backend import fault_of
from fiag_dist.model import grid
from fiag_dist.storage import open_storage
from fiag_dist.tables import tabulate

PACKAGES = ("torch", "numpy", "numba", "deepspeed", "ray", "webdataset", "s3fs", "tensorboard", "av")
OPTIONAL = {
    "mediapipe": "pack needs it: bash launch/install.sh ingest",
    "dlib-bin": "pack needs it: bash launch/install.sh ingest",
    "gsplat": "only CUDA devices use it: bash launch/install.sh ingest,cuda",
    "tinycudann": "optional on CUDA devices; the torch encoder does the same, slower",
}
TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Check:
    """One line of the report. Only `broken` makes the command fail; `fix` says what to do about anything but `ok`."""

    what: str
    found: str
    state: Literal["ok", "note", "broken"] = "ok"
    fix: str = ""


def versions() -> Iterator[Check]:
    """Python and the packages; a missing optional one is a note."""
    python = platform.python_version()
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        yield Check("python", python)
    else:
        yield Check("python", python, "broken", "install Python 3.11 or 3.12")
    for name in PACKAGES:
        version = _version(name)
        yield Check(name, version) if version else Check(name, "missing", "broken", "run: bash launch/install.sh")
    for name, fix in OPTIONAL.items():
        version = _version(name)
        yield Check(name, version) if version else Check(name, "not installed", "note", fix)


def machine() -> Iterator[Check]:
    """Cores, memory, disk, compiler and GPUs."""
    yield Check("CPU cores", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}")
    yield Check("memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB")
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Check(
        "free disk here", f"{free_gib:.0f} GiB", "ok" if free_gib > 5 else "note", "shards and runs take a few GiB"
    )
    yield compiler()
    if not torch.cuda.is_available():
        yield Check("GPUs", "none: torch sees no CUDA device, everything runs on the CPU")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, capability {device.major}.{device.minor}, CUDA {torch.version.cuda}"
        yield Check(f"GPU {index}", found)


def compiler() -> Check:
    """g++ and Python's headers, with which DeepSpeed builds one small operator at its first start."""
    path = shutil.which("g++")
    if not path:
        return Check("g++", "missing", "broken", "DeepSpeed builds one small operator: apt-get install g++")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return Check(
            "g++",
            f"{path}, but no Python.h",
            "broken",
            "DeepSpeed builds one small operator: apt-get install python3-dev",
        )
    return Check("g++", path)


def backends() -> Iterator[Check]:
    """What `auto` takes on each kind of device and why, after a small forward and backward pass with it that must come out right."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda", torch.cuda.current_device()))
    for device in devices:
        for name, module in (("raster", raster), ("encoder", grid), ("ssim", ssim)):
            yield _backend(f"{name} on {device.type}", module, device)


def _backend(what: str, module: Any, device: torch.device) -> Check:
    """`module`: one of those that have choose and try_out."""
    start = time.perf_counter()
    try:
        choice = module.choose("auto", device)
    except ConfigError as error:
        return Check(what, "none", "broken", str(error))
    if fault := fault_of(lambda: module.try_out(choice.name, device)):
        on_cpu = "run: bash launch/install.sh"
        fix = on_cpu if device.type == "cpu" else "or choose the CPU: CUDA_VISIBLE_DEVICES= fiag-dist ..."
        return Check(what, f"{choice.name} failed: {fault}", "broken", fix)
    return Check(what, f"{choice.name} ({choice.why}), tried in {time.perf_counter() - start:.1f} s")


def pretrained() -> Check:
    """Files of the pretrained extractors."""
    missing = [name for name in weights.REGISTRY if not weights.present(name)]
    if not missing:
        return Check("weights", f"all {len(weights.REGISTRY)} in {weights.cache_folder()}")
    return Check(
        "weights", f"missing: {', '.join(missing)}", "note", "pack and evaluate need them: fiag-dist weights fetch"
    )


def s3(url: str | None) -> Check:
    """Whether S3 answers: the prefix `url` when given, else the configured endpoint's port; nothing is sent when nothing is configured."""
    if url:
        if not url.startswith("s3://"):
            return Check("S3", f"{url}: no address on S3", "broken", "give s3://bucket/prefix")
        try:
            return Check("S3", f"{url}: {len(open_storage(url).children())} entries")
        except FiagError as error:
            return Check(
                "S3",
                str(error),
                "broken",
                "check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's name",
            )
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    credentials = any(
        os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE")
    )
    if not endpoint and not credentials:
        return Check("S3", "not configured (no AWS_ENDPOINT_URL, no credentials); local folders work")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    address = urlsplit(endpoint or f"https://s3.{region}.amazonaws.com")
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        return Check(
            "S3", f"{address.geturl()} does not answer: {error}", "note", "start the server or correct AWS_ENDPOINT_URL"
        )
    return Check("S3", f"{address.geturl()} answers")


def examine(url: str | None = None) -> list[Check]:
    """All checks, in the order of the report. `url`: an s3:// prefix to list, or None."""
    return [*versions(), *machine(), *backends(), pretrained(), s3(url)]


def main(argv: Sequence[str] | None = None) -> int:
    """`fiag-dist doctor [--s3 URL]`: prints the report. Returns 0 when everything runs on the CPU, else 1 after the fixes."""
    parser = argparse.ArgumentParser(
        prog="fiag-dist doctor", description="What this machine can run, and what to mend."
    )
    parser.add_argument("--s3", metavar="URL", help="an s3://bucket/prefix that must be readable")
    url = parser.parse_args(argv).s3
    console = Console()
    with console.status("trying the backends; the first time, kernels are compiled: half a minute"):
        checks = examine(url)
    colors = {"ok": "green", "note": "yellow", "broken": "red"}
    rows = [(check.what, check.found, Text(check.state, colors[check.state])) for check in checks]
    console.print(tabulate(("what", "found", "state"), rows, title="fiag-dist doctor", folded=("found",)))
    for check in checks:
        if check.state != "ok":
            console.print(f"{check.what}: {check.fix}", markup=False, highlight=False, soft_wrap=True)
    broken = [check.what for check in checks if check.state == "broken"]
    console.print(
        f"broken: {', '.join(broken)}" if broken else "the CPU path works", style="red" if broken else "green"
    )
    return 1 if broken else 0


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(guarded(main))
