"""Which clips are meant by the paths that a user gives, what identities they become, and whether they changed since."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fiag_dist.errors import DataError

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
PREPARED = "transforms_train.json"
"""What a folder of already prepared frames holds (`--layout instag`)."""
IDENTITIES = ({"identity.json"}, {"backdrop.mp4", "poses.npz"})
"""What a folder holds that adapt has made of a clip, or was about to when it was cut off: the videos beside it are no clips. (Folders of shards hold no
videos but the clips they were made of.)"""

_LONGEST = 64


def find_clips(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Clips, however deep in the folders, by the name of the identity that each becomes, in order.

    Hidden files and folders and those of identities are passed over; links are followed, each folder is entered once. Raises DataError for a missing path
    or a folder without clips.
    """
    found: dict[str, list[Path]] = {}
    for path in paths:
        with _readable(path):
            is_folder, is_file = path.is_dir(), path.is_file()
        if is_folder:
            walked = _walk(path, passing=IDENTITIES)
            inside = [Path(folder, name) for folder, names in walked for name in names if _is_clip(name)]
            if not inside:
                raise DataError(f"{path}: no clips in this folder; give one with {', '.join(SUFFIXES)} files")
        elif is_file:
            inside = [path]
        else:
            raise DataError(f"{path}: no such file or folder; give video clips, or a folder of them")
        for clip in inside:
            _add(found, clip, clip.stem)
    if not found:
        raise DataError("no clips were given; name video files, or a folder of them")
    return found


def find_prepared(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Folders of prepared frames, however deep, by the name of the identity that each becomes. Raises DataError where there is none."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        with _readable(path):
            is_folder = path.is_dir()
        inside = [Path(folder) for folder, names in _walk(path) if PREPARED in names] if is_folder else []
        if not inside:
            raise DataError(f"{path}: no folder with {PREPARED} here; give one that the relatives' preprocessing made")
        for folder in inside:
            _add(found, folder, folder.resolve().name)
    if not found:
        raise DataError(f"no folders were given; name folders that hold {PREPARED}")
    return found


def identity_name(stem: str) -> str:
    """1 to 64 letters, digits, - and _ for any file name: accents are taken off, what is no letter becomes _.

    A hash of the file name tells apart those that lose more than that: letters of other scripts, bytes that are no text, what is beyond the 64.
    """
    spelled = unicodedata.normalize("NFKD", stem)
    plain = spelled.encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", plain).strip("_-")
    lost = any(not c.isascii() and (c.isalnum() or unicodedata.category(c) == "Cs") for c in spelled)
    if name and len(name) <= _LONGEST and not lost:
        return name
    mark = hashlib.sha256(stem.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{name[: _LONGEST - 1 - len(mark)].rstrip('_-') or 'clip'}-{mark}"


def fingerprint(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file, or of all files in a folder with their names. Raises DataError when something can't be read."""
    if path.is_dir():
        digest, size = hashlib.sha256(), 0
        for folder, names in _walk(path):
            for file in (Path(folder, name) for name in names):
                file_size, file_digest = fingerprint(file)
                digest.update(f"{file.relative_to(path).as_posix()} {file_digest}\n".encode("utf-8", "surrogateescape"))
                size += file_size
        return size, digest.hexdigest()
    with _readable(path), path.open("rb") as stream:
        return os.fstat(stream.fileno()).st_size, hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Around what looks at a user's file or folder: what can't be read becomes a DataError."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise DataError(f"{where}: can't be read ({error.strerror}); check its rights, or leave it out") from error


def _walk(path: Path, passing: Sequence[set[str]] = ()) -> Iterator[tuple[str, list[str]]]:
    """Each folder once, with its files' names, both sorted. passing: folders that hold all files of one of these are passed over, with all that is in them.

    Raises DataError for a folder that can't be read: clips in it would be missed in silence.
    """
    entered = set()

    def unreadable(error: OSError) -> None:
        with _readable(path):
            raise error

    for folder, folders, names in os.walk(path, onerror=unreadable, followlinks=True):
        if any(files <= {*names} for files in passing):
            folders.clear()
            continue
        entered.add(Path(folder).resolve())
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and Path(folder, name).resolve() not in entered
        )
        yield folder, sorted(name for name in names if not name.startswith("."))


def _is_clip(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _add(found: dict[str, list[Path]], path: Path, stem: str) -> None:
    """One more clip under its name, unless the same file is there."""
    same = found.setdefault(identity_name(stem), [])
    if not any(_one_file(path, other) for other in same):
        same.append(path)


def _one_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # a link that leads nowhere, or in a circle
        return path == other
