"""Copies of remote files on this machine: bounded, least recently used first out, one download at a time of each, whatever the number of processes."""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from fiag_dist.errors import ConfigError

CACHE_GIB = 20.0
"""Bound of the copies; the environment variable FIAG_CACHE_GIB overrides it."""

PART = ".part-"
"""Start of the names of files that are being fetched: .part-BYTES-NAME counts as BYTES from its first moment."""
LOCKS = 64
"""Lock files; two downloads that happen to share one take turns."""


def user_folder() -> Path:
    """What this project keeps for a user: fiag_dist in XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fiag_dist"


def cache_folder() -> Path:
    """Where copies of remote files live: FIAG_CACHE, else the user's folder."""
    return Path(os.environ.get("FIAG_CACHE") or user_folder())


def cache_bound() -> int:
    """Bytes that the copies may take. Raises ConfigError when FIAG_CACHE_GIB is no number above 0."""
    text = os.environ.get("FIAG_CACHE_GIB") or str(CACHE_GIB)
    with suppress(ValueError, OverflowError):
        bound = int(float(text) * 2**30)
        if bound > 0:
            return bound
    raise ConfigError(f"FIAG_CACHE_GIB={text}: must be a number of GiB above 0; for example FIAG_CACHE_GIB=20")


class Cache:
    """A folder of copies. Each name stands for certain bytes for ever; processes may share the folder, and each may die at any moment.

    One file that is larger than the bound is kept alone, since it is needed.
    """

    def __init__(self, folder: Path, bound: int) -> None:
        self.folder, self.bound = folder, bound
        self._locks = folder / "locks"

    def open(self, name: str, size: int, fetch: Callable[[Path], object]) -> BufferedReader:
        """The copy called `name`, opened: it stays readable when it is dropped. When there is none, `fetch(path)` makes it, of `size` bytes.

        What `fetch` raises leaves nothing behind. Raises ConfigError where the folder can't be read or written.
        """
        file = self.folder / name
        stream = _used(file)
        if stream:
            return stream
        with _usable(self.folder):
            self._locks.mkdir(parents=True, exist_ok=True)
        with _locked(self._lock_of(name)):
            stream = _used(file)  # another process may have been faster
            if stream is None:
                with _usable(self.folder):
                    part = self._make_room(name, size)
                try:
                    fetch(part)
                    stream = part.open("rb")
                    with _locked(self._locks / "room"):  # who counts must find it under one name or the other
                        part.replace(file)
                finally:
                    part.unlink(missing_ok=True)
            return stream

    def drop(self, name: str) -> None:
        """Forgets a copy, if there is one."""
        (self.folder / name).unlink(missing_ok=True)

    def _make_room(self, name: str, size: int) -> Path:
        """Removes the copies used longest ago until `size` more bytes fit the bound, and takes their place with an empty part."""
        with _locked(self._locks / "room"):
            copies = []
            total = size
            for file in self.folder.iterdir():
                try:
                    stat = file.stat()
                except FileNotFoundError:
                    continue  # became a copy, or was dropped, meanwhile
                if file.name.startswith(PART):
                    reserved, _, owner = file.name.removeprefix(PART).partition("-")
                    if owner == name or self._is_abandoned(owner):
                        file.unlink(missing_ok=True)
                    else:
                        total += int(reserved)
                elif file.is_file():
                    total += stat.st_size
                    copies.append((stat.st_atime_ns, stat.st_size, file))
            for _, freed, file in sorted(copies):
                if total <= self.bound:
                    break
                file.unlink(missing_ok=True)
                total -= freed
            part = self.folder / f"{PART}{size}-{name}"
            part.touch()
            return part

    def _is_abandoned(self, name: str) -> bool:
        """Whether whoever was fetching `name` has died: a lock goes with its process."""
        with self._lock_of(name).open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def _lock_of(self, name: str) -> Path:
        return self._locks / f"{int(hashlib.sha256(name.encode()).hexdigest(), 16) % LOCKS:02d}"


def _used(file: Path) -> BufferedReader | None:
    """The copy, opened and marked as the last one used, if it is there."""
    with _usable(file.parent):
        try:
            stream = file.open("rb")
        except FileNotFoundError:
            return None
    with suppress(OSError):  # in a cache that several people share, the copy may be another's
        os.utime(stream.fileno(), ns=(time.time_ns(), os.fstat(stream.fileno()).st_mtime_ns))
    return stream


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Around what uses the cache's own files: where that can't be done, the user chooses another folder."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder}: copies of remote files can't be kept there ({error.strerror or error}); give FIAG_CACHE another folder"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for the lock file and holds it: between processes, and between threads of one."""
    with _usable(path.parent):
        stream = path.open("ab")
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
