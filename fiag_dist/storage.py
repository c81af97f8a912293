"""Local folders and s3:// prefixes behind one small protocol. Nothing else in the project opens a URL."""

import errno
import hashlib
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from fiag_dist.errors import DataError

T = TypeVar("T")
Paths = list[str]  # the classes below have a method called list

ATTEMPTS = 4
"""Tries of an operation whose error can pass; the waits between them double from FIRST_WAIT_S."""
FIRST_WAIT_S = 0.5
CACHE_GIB = 20.0
"""Bound of the local copies of S3 objects; the environment variable FIAG_CACHE_GIB overrides it."""
TEMPORARY = ".part-"
"""Start of the names of files that are still being written; listings leave them out."""

_PASSING = {errno.EAGAIN, errno.EBUSY, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED}


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

    def delete(self, prefix: str) -> None:
        """Removes the file, or the folder and all in it; nothing there is fine."""
        ...

    def local(self, path: str) -> Path:
        """A file on this machine with the same bytes: itself on disk, a bounded cached copy of an S3 object."""
        ...


def open_storage(url: str | os.PathLike[str]) -> Storage:
    """The storage at a local folder (need not exist yet) or an s3://bucket/prefix. Raises DataError for any other scheme."""
    text = os.fspath(url)
    if text.startswith("s3://"):
        return S3Storage(text)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text:
        raise DataError(
            f"{text}: the scheme {text.split('://')[0]!r} is not supported; give a local folder or s3://bucket/prefix"
        )
    return LocalStorage(text)


class LocalStorage:
    """A folder on disk."""

    def __init__(self, folder: str) -> None:
        if not folder:
            raise DataError("the folder's name is empty; give a local folder or s3://bucket/prefix")
        self.url = folder.rstrip("/") or "/"
        self._root = Path(folder).expanduser()

    def read(self, path: str) -> bytes:
        return self._try(path, self._at(path).read_bytes)

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

        self._try(path, put)

    def exists(self, path: str) -> bool:
        target = self._at(path)
        return target.is_file() or (target.is_dir() and any(target.iterdir()))

    def size(self, path: str) -> int:
        return self._try(path, lambda: self._at(path).stat().st_size)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self._at(prefix)):
            for name in names:
                if not name.startswith(TEMPORARY):
                    file = Path(folder, name)
                    found[file.relative_to(self._root).as_posix()] = file.stat().st_size
        return dict(sorted(found.items()))

    def list(self, prefix: str = "") -> Paths:
        return [*self.sizes(prefix)]

    def children(self, prefix: str = "") -> Paths:
        folder = self._at(prefix)
        if not folder.is_dir():
            return []
        return sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith(TEMPORARY))

    def delete(self, prefix: str) -> None:
        target = self._at(prefix)
        self._try(prefix, lambda: shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True))

    def local(self, path: str) -> Path:
        self.size(path)
        return self._at(path)

    def _at(self, path: str) -> Path:
        return self._root / _relative(path)

    def _try(self, path: str, action: Callable[[], T]) -> T:
        return _retry(f"{self.url}/{path}", action, lambda e: isinstance(e, OSError) and e.errno in _PASSING)


class S3Storage:
    """A bucket's prefix through s3fs. Credentials, region and endpoint come from the environment (AWS_ENDPOINT_URL and its kin)."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._root = self.url.removeprefix("s3://")
        if not self._root.split("/")[0]:
            raise DataError(f"{url}: no bucket is named; give s3://bucket/prefix")
        self._client: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}

    def read(self, path: str) -> bytes:
        return self._try(path, lambda: self._fs.cat_file(self._at(path)))

    def write(self, path: str, data: bytes) -> None:
        # complete bytes in one call: closing a half-written s3fs file would publish the half
        self._try(path, lambda: self._fs.pipe_file(self._at(path), data))

    def exists(self, path: str) -> bool:
        return self._try(path, lambda: self._fs.exists(self._at(path)))

    def size(self, path: str) -> int:
        return int(self._info(path)["size"])

    def sizes(self, prefix: str = "") -> dict[str, int]:
        entries = self._try(prefix, lambda: self._fs.find(self._at(prefix), detail=True))
        return {k[len(self._root) + 1 :]: int(v["size"]) for k, v in sorted(entries.items()) if v["type"] == "file"}

    def list(self, prefix: str = "") -> Paths:
        return [*self.sizes(prefix)]

    def children(self, prefix: str = "") -> Paths:
        at = self._at(prefix)
        try:
            entries = self._try(prefix, lambda: self._fs.ls(at, detail=True))
        except DataError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        return sorted(
            e["name"].rsplit("/", 1)[-1] + "/" * (e["type"] == "directory") for e in entries if e["name"] != at
        )

    def delete(self, prefix: str) -> None:
        found = [f"{self._root}/{p}" for p in self.list(prefix)]
        if found:
            self._try(prefix, lambda: self._fs.rm(found))

    def local(self, path: str) -> Path:
        info = self._info(path)
        mark = hashlib.sha256(f"{self.url}/{path} {info.get('ETag')} {info['size']}".encode()).hexdigest()[:32]
        cache = cache_folder() / "objects"
        file = cache / f"{mark}-{PurePosixPath(path).name}"
        if file.is_file():
            os.utime(file)
            return file
        cache.mkdir(parents=True, exist_ok=True)
        _evict(cache, int(info["size"]))
        part = cache / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            self._try(path, lambda: self._fs.get_file(self._at(path), str(part)))
            found = part.stat().st_size
            if found != info["size"]:
                raise DataError(f"{self.url}/{path}: {found} bytes arrived, {info['size']} expected; try again")
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
        return file

    @property
    def _fs(self) -> Any:
        if self._client is None or self._client[0] != os.getpid():  # a client does not survive a fork
            import s3fs  # here: only processes that touch S3 pay for the import

            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            config = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 1}}
            fs = s3fs.S3FileSystem(
                endpoint_url=endpoint, config_kwargs=config, use_listings_cache=False, skip_instance_cache=True
            )
            fs.retries = 1  # the retries are ours, bounded and in one place
            self._client = (os.getpid(), fs)
        return self._client[1]

    def _info(self, path: str) -> dict[str, Any]:
        info = self._try(path, lambda: self._fs.info(self._at(path)))
        if info["type"] != "file":
            raise DataError(f"{self.url}/{path}: is a folder, a file was expected")
        return info

    def _at(self, path: str) -> str:
        return f"{self._root}/{_relative(path)}".rstrip("/")

    def _try(self, path: str, action: Callable[[], T]) -> T:
        return _retry(f"{self.url}/{path}", action, _can_pass_on_s3)


def cache_folder() -> Path:
    """Where copies of remote files live: FIAG_CACHE, else fiag_dist in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FIAG_CACHE") or Path(home) / "fiag_dist")


def _relative(path: str) -> str:
    if path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise DataError(f"path {path!r}: must be relative and stay inside its folder")
    return path.strip("/")


def _retry(url: str, action: Callable[[], T], can_pass: Callable[[Exception], bool]) -> T:
    """The action's result; waits and tries again after errors that can pass. Raises DataError that names the URL."""
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except DataError:
            raise
        except FileNotFoundError as error:
            raise DataError(f"{url}: no such file") from error
        except Exception as error:
            if attempt + 1 < ATTEMPTS and can_pass(error):
                time.sleep(FIRST_WAIT_S * 2**attempt * random.uniform(0.75, 1.25))
                continue
            raise DataError(f"{url}: {_reason(error)}") from error
    raise AssertionError("unreachable")


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"access denied ({error.strerror or error}); check the folder's rights, or the AWS_* variables for S3"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full; free space or give another folder"
    if type(error).__name__ == "NoCredentialsError":
        return "no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _can_pass_on_s3(error: Exception) -> bool:
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500) >= 500
    passing = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, TimeoutError, ConnectionError)
    return isinstance(error, passing) or (isinstance(error, OSError) and error.errno in _PASSING)


def _evict(cache: Path, incoming: int) -> None:
    """Removes the copies that were used longest ago until `incoming` more bytes fit the bound."""
    bound = float(os.environ.get("FIAG_CACHE_GIB", CACHE_GIB)) * 2**30
    files = sorted(
        ((f.stat().st_mtime, f.stat().st_size, f) for f in cache.iterdir() if f.is_file()), key=lambda x: x[0]
    )
    total = sum(size for _, size, _ in files)
    for _, size, file in files:
        if total + incoming <= bound:
            break
        file.unlink(missing_ok=True)
        total -= size
