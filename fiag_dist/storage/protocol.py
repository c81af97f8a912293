"""What every storage can do, and the three ways in which a file can fail one: it is missing, it is damaged, or nobody can say."""

import hashlib
import os
import re
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import PurePosixPath
from typing import Protocol, runtime_checkable

from fiag_dist.errors import DataError

Paths = list[str]  # the storages have a method called list


class MissingError(DataError):
    """There is no such file: the place was reached and said so."""


class DamagedError(DataError):
    """A file is there, and its bytes are not the expected ones."""


class UnreachableError(DataError):
    """A remote place gave no answer that counts, whatever was tried: nothing is known of what lies there."""


class Content(Protocol):
    """What a file's bytes must be; an entry of a manifest is one."""

    @property
    def bytes(self) -> int: ...

    @property
    def sha256(self) -> str: ...


@runtime_checkable
class Storage(Protocol):
    """A folder of files named by relative paths with forward slashes. Every method raises DataError with the full URL on failure."""

    url: str

    def read(self, path: str) -> bytes:
        """All bytes of a file."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Puts a complete file in place: a reader sees the old bytes or the new ones, never a part."""
        ...

    def exists(self, path: str) -> bool:
        """Whether a file, or a folder with anything in it, has this name."""
        ...

    def size(self, path: str) -> int:
        """Bytes of a file."""
        ...

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every file in the folder `prefix`, however deep, by path, sorted; empty when there is no such folder."""
        ...

    def list(self, prefix: str = "") -> Paths:
        """Paths of every file in the folder `prefix`, however deep, sorted."""
        ...

    def children(self, prefix: str = "") -> Paths:
        """Names directly in the folder `prefix`, sorted; folders end with a slash."""
        ...

    def delete(self, prefix: str, names: re.Pattern[str] | None = None) -> None:
        """Removes the file, or the folder and all in it; nothing there is fine.

        names: of a folder, only the files directly in it that are called so, and those that somebody left unfinished there.
        """
        ...

    def claim(self, prefix: str) -> AbstractContextManager[None]:
        """A folder that nobody else may claim meanwhile; it is made where it is not there, and goes again where it stays empty.

        Who dies loses the claim. S3, and file systems that know no locks, claim nothing. Raises DataError where another process holds the claim.
        """
        ...

    def open(self, path: str, content: Content | None = None) -> BufferedReader:
        """A file, opened to read on this machine: itself on disk, a copy in a bounded cache of an S3 object.

        With `content` its size and SHA-256 are compared, once for as long as the file does not change; a cached copy that differs is fetched again.
        Raises DamagedError when the bytes are not the content's.
        """
        ...


class Inspection:
    """Compares opened files with what they must hold, and remembers which it has seen unchanged."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int, int, int, str]] = set()

    def difference(self, stream: BufferedReader, content: Content) -> str | None:
        """How the file's bytes differ from `content`, None when they do not; the stream stands at its start again."""
        stat = os.fstat(stream.fileno())
        if stat.st_size != content.bytes:
            return f"{stat.st_size} bytes found, {content.bytes} expected"
        mark = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, content.sha256)
        if mark not in self._seen:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            if found != content.sha256:
                return f"SHA-256 {found[:12]}... found, {content.sha256[:12]}... expected, the size is right"
            self._seen.add(mark)
        return None


def relative(path: str) -> str:
    """`path` without slashes around it. Raises DataError when it could leave its folder."""
    if path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise DataError(f"path {path!r}: must be relative and stay inside its folder")
    return path.strip("/")
