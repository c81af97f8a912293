"""A folder on disk as a storage."""

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from fiag_dist.errors import DataError
from fiag_dist.storage.protocol import Content, DamagedError, Inspection, Paths, relative
from fiag_dist.storage.retry import Failure, judge_local, persist

T = TypeVar("T")

TEMPORARY = ".part-"
"""Start of the names of files that are still being written; listings leave them out."""
NOWHERE = (errno.ENOENT, errno.ELOOP)
"""Errors of a file that was deleted by another process meanwhile, and of a link that leads nowhere or to itself."""
NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""Errors of file systems that can't lock a folder, as NFS can't."""


class LocalStorage:
    """A folder on disk."""

    def __init__(self, folder: str) -> None:
        if not folder:
            raise DataError("the folder's name is empty; give a local folder or s3://bucket/prefix")
        self.url = folder.rstrip("/") or "/"
        self._root = Path(folder).expanduser()
        self._inspection = Inspection()

    @property
    def folder(self) -> Path:
        """Where it lies, with ~ filled in."""
        return self._root

    def read(self, path: str) -> bytes:
        return self._try("reading", path, self._at(path).read_bytes)

    def write(self, path: str, data: bytes) -> None:
        def put() -> None:
            target = self._at(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
            try:
                with part.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
            folder = os.open(target.parent, os.O_RDONLY)  # the name itself must survive a power cut too
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

        self._try("writing", path, put)

    def exists(self, path: str) -> bool:
        target = self._at(path)
        return self._try("reading", path, lambda: target.is_file() or (target.is_dir() and any(target.iterdir())))

    def size(self, path: str) -> int:
        return self._try("reading", path, lambda: self._at(path).stat().st_size)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        return self._try("listing", prefix, lambda: self._sizes(prefix))

    def _sizes(self, prefix: str) -> dict[str, int]:
        found = {}
        for folder, folders, names in os.walk(self._at(prefix), onerror=_unless_gone, followlinks=True):
            folders[:] = [name for name in folders if not _is_circle(Path(folder, name))]
            for file in (Path(folder, name) for name in names if not name.startswith(TEMPORARY)):
                try:
                    found[file.relative_to(self._root).as_posix()] = file.stat().st_size
                except OSError as error:
                    _unless_gone(error)
        return dict(sorted(found.items()))

    def list(self, prefix: str = "") -> Paths:
        return [*self.sizes(prefix)]

    def children(self, prefix: str = "") -> Paths:
        folder = self._at(prefix)

        def names() -> Paths:
            if not folder.is_dir():
                return []
            return sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith(TEMPORARY))

        return self._try("listing", prefix, names)

    def delete(self, prefix: str, names: re.Pattern[str] | None = None) -> None:
        target = self._at(prefix)

        def remove() -> None:
            if names is None:
                shutil.rmtree(target) if target.is_dir() else target.unlink(True)
            elif target.is_dir():
                for file in target.iterdir():
                    if names.fullmatch(file.name) or file.name.startswith(TEMPORARY):
                        file.unlink(missing_ok=True)

        persist(f"{self.url}/{prefix}", "deleting", remove, _judge_deleting)

    @contextmanager
    def claim(self, prefix: str) -> Iterator[None]:
        target = self._at(prefix)
        folder = persist(f"{self.url}/{prefix}", "claiming", lambda: _claimed(target), _judge_claiming)
        try:
            yield
        finally:
            with suppress(OSError):  # something is in it
                target.rmdir()
            os.close(folder)

    def open(self, path: str, content: Content | None = None) -> BufferedReader:
        return self._try("reading", path, lambda: self._opened(path, content))

    def _opened(self, path: str, content: Content | None) -> BufferedReader:
        stream = self._at(path).open("rb")
        difference = self._inspection.difference(stream, content) if content else None
        if difference:
            stream.close()
            raise DamagedError(f"{self.url}/{path}: {difference}")
        return stream

    def _at(self, path: str) -> Path:
        return self._root / relative(path)

    def _try(self, doing: str, path: str, action: Callable[[], T]) -> T:
        return persist(f"{self.url}/{path}".rstrip("/") or "/", doing, action, judge_local)


def _unless_gone(error: OSError) -> None:
    """Listings leave out what was deleted meanwhile, links that lead nowhere, and folders that are files."""
    if error.errno not in (*NOWHERE, errno.ENOTDIR):
        raise error


def _claimed(folder: Path) -> int:
    """The folder, opened and locked. Raises BlockingIOError where another holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise BlockingIOError  # who had it has removed it since, and another made a new one
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _judge_claiming(error: Exception) -> Failure:
    """Who holds a claim may be about to end, or to be dead."""
    if isinstance(error, BlockingIOError | FileNotFoundError):
        return Failure(True, "another process is writing there", "wait until it has ended, or give another place")
    return judge_local(error)


def _judge_deleting(error: Exception) -> Failure:
    """Another process may write into a folder, or delete it, at the same time."""
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTEMPTY):
        return Failure(True, "another process is at work there", "wait until it has ended")
    return judge_local(error)


def _is_circle(folder: Path) -> bool:
    """Whether it is a link to a folder that it lies in."""
    return folder.is_symlink() and any(folder.resolve() == above.resolve() for above in folder.parents)
