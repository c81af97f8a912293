"""A bucket's prefix as a storage. The client is s3fs; which errors can pass, how often they are met, and what is said in the end are decided here."""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fiag_dist.errors import DataError
from fiag_dist.storage.cache import Cache, cache_bound, cache_folder
from fiag_dist.storage.protocol import (
    Content,
    DamagedError,
    Inspection,
    MissingError,
    Paths,
    UnreachableError,
    relative,
)
from fiag_dist.storage.retry import NO_FILE, PASSING_ERRNOS, Failure, one_line, persist

T = TypeVar("T")

CONNECT_S, READ_S = 5, 60
"""How long to wait for a connection, and for the next bytes of an answer."""
DELETE_AT_ONCE = 1000
"""Keys that one request may delete (S3's limit)."""

PASSING_STATUS = {429, 500, 502, 503, 504}
PASSING_CODES = {
    "BadDigest",
    "BandwidthLimitExceeded",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentSHA256Mismatch",
}
"""Error codes of S3 that can pass whatever their HTTP status is: overload, and bodies that were damaged on their way."""


class S3Storage:
    """A bucket's prefix. Credentials, region, profile and endpoint come from where every AWS tool takes them."""

    def __init__(self, url: str) -> None:
        self._bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not self._bucket:
            raise DataError(f"{url}: no bucket is named; give s3://bucket/prefix")
        self._prefix = "/".join(filter(None, prefix.split("/")))  # to S3 a//b is another place than a/b
        self.url = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        self._client: tuple[int, Any] | None = None
        self._inspection = Inspection()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}

    def read(self, path: str) -> bytes:
        # One stream: only an object that comes as a whole is compared with the checksum that S3 keeps.
        name = f"{self._bucket}/{self._key(path)}"
        return self._try("reading", path, lambda: self._fs.cat_file(name, max_concurrency=1))

    def write(self, path: str, data: bytes) -> None:
        # Complete bytes in one put, or in parts that appear together: closing a half-written s3fs file would publish the half.
        self._try("writing", path, lambda: self._fs.pipe_file(f"{self._bucket}/{self._key(path)}", data))

    def exists(self, path: str) -> bool:
        if self._key(path):
            try:
                self._head(path)
                return True
            except MissingError:
                pass
        first = next(self._pages(path, MaxKeys=1))
        return bool(first.get("Contents"))

    def size(self, path: str) -> int:
        return int(self._head(path)["ContentLength"])

    def sizes(self, prefix: str = "") -> dict[str, int]:
        start = len(self._prefix) + 1 if self._prefix else 0
        found = {
            item["Key"][start:]: int(item["Size"])
            for page in self._pages(prefix)
            for item in page.get("Contents", [])
            if not item["Key"].endswith("/")  # what consoles put where they show a folder
        }
        return dict(sorted(found.items()))

    def list(self, prefix: str = "") -> Paths:
        return [*self.sizes(prefix)]

    def children(self, prefix: str = "") -> Paths:
        names = []
        for page in self._pages(prefix, Delimiter="/"):
            names += [item["Prefix"].rstrip("/").rpartition("/")[2] + "/" for item in page.get("CommonPrefixes", [])]
            names += [item["Key"].rpartition("/")[2] for item in page.get("Contents", [])]
        return sorted(name for name in names if name)

    def delete(self, prefix: str, names: re.Pattern[str] | None = None) -> None:
        paths = self.list(prefix)
        if names is not None:
            paths = [path for path in paths if names.fullmatch(path.removeprefix(f"{relative(prefix)}/"))]
        elif self._key(prefix):
            try:
                self._head(prefix)
                paths.append(relative(prefix))
            except MissingError:
                pass
        for start in range(0, len(paths), DELETE_AT_ONCE):
            keys = [self._key(path) for path in paths[start : start + DELETE_AT_ONCE]]
            self._try("deleting", prefix, partial(self._delete, keys))

    def claim(self, prefix: str) -> AbstractContextManager[None]:
        return nullcontext()

    def open(self, path: str, content: Content | None = None) -> BufferedReader:
        if content:
            mark, size = content.sha256, content.bytes
        else:
            head = self._head(path)
            size = int(head["ContentLength"])
            mark = hashlib.sha256(f"{self.url}/{path} {head['ETag']} {size}".encode()).hexdigest()
        name = f"{mark[:32]}-{PurePosixPath(path).name}"
        key = f"{self._bucket}/{self._key(path)}"
        cache = Cache(cache_folder() / "objects", cache_bound())

        def fetch(part: Path) -> None:
            self._try("reading", path, lambda: self._fs.get_file(key, str(part)))

        difference = None
        for _ in range(2):
            stream = cache.open(name, size, fetch)
            difference = self._inspection.difference(stream, content) if content else None
            if difference is None:
                return stream
            stream.close()
            cache.drop(name)
        raise DamagedError(f"{self.url}/{path}: {difference} (fetched again, and no better)")

    @property
    def _fs(self) -> Any:
        if self._client is None or self._client[0] != os.getpid():  # a client does not survive a fork
            import s3fs  # here: only processes that touch S3 pay for the import

            config = {"connect_timeout": CONNECT_S, "read_timeout": READ_S, "retries": {"total_max_attempts": 1}}
            fs = s3fs.S3FileSystem(config_kwargs=config, use_listings_cache=False)  # one for all storages of a process
            fs.retries = 1  # the retries are ours, bounded and in one place
            self._client = (os.getpid(), fs)
        return self._client[1]

    def _head(self, path: str) -> dict[str, Any]:
        call = partial(self._fs.call_s3, "head_object", Bucket=self._bucket, Key=self._key(path))
        return self._try("reading", path, call)

    def _pages(self, path: str, **options: Any) -> Iterator[dict[str, Any]]:
        """The listing of a folder, page by page."""
        key = self._key(path)
        options |= {"Bucket": self._bucket, "Prefix": f"{key}/" if key else ""}
        while True:
            page = self._try("listing", path, partial(self._fs.call_s3, "list_objects_v2", **options))
            yield page
            if not page.get("IsTruncated"):
                return
            options["ContinuationToken"] = page["NextContinuationToken"]

    def _delete(self, keys: Paths) -> None:
        from botocore.exceptions import ClientError

        order = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = self._fs.call_s3("delete_objects", Bucket=self._bucket, Delete=order)
        for refused in answer.get("Errors", []):  # the request succeeds even so
            raise ClientError({"Error": refused}, "DeleteObjects")

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{relative(path)}".strip("/")

    def _try(self, doing: str, path: str, action: Callable[[], T]) -> T:
        return persist(f"{self.url}/{path}".rstrip("/"), doing, action, self._judge)

    def _judge(self, error: Exception) -> Failure:
        """What an error of s3fs and of the libraries below it means."""
        from aiohttp import ClientError as HttpError
        from botocore import exceptions as boto

        answer = _answer(error)
        if answer:
            return self._judge_answer(answer)
        if isinstance(error, FileNotFoundError):
            return Failure(False, NO_FILE, "", MissingError)
        if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound):
            fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            return Failure(False, f"no S3 credentials ({one_line(error)})", fix, UnreachableError)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            fix = "free space, give FIAG_CACHE another folder, or lower FIAG_CACHE_GIB"
            return Failure(False, f"the disk of {cache_folder()} is full", fix)
        lost = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, boto.FlexibleChecksumError)
        passing = isinstance(error, (*lost, HttpError, TimeoutError, ConnectionError)) or (
            isinstance(error, OSError) and error.errno in PASSING_ERRNOS
        )
        fix = f"check the network and the endpoint {self._endpoint}, then run the command again"
        return Failure(passing, one_line(error), fix, UnreachableError)

    def _judge_answer(self, answer: dict[str, Any]) -> Failure:
        """What an answer means that says no."""
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code, said = str(answer["Error"].get("Code", "")), " ".join(str(answer["Error"].get("Message", "")).split())
        text = " ".join(str(part) for part in (status, code if code != str(status) else "", f"({said})") if part)
        if code == "NoSuchBucket":
            text = f"there is no bucket {self._bucket!r}"
            return Failure(False, text, "create it, or correct its name", UnreachableError)
        if status in PASSING_STATUS or code in PASSING_CODES:
            fix = f"the server {self._endpoint} is overloaded or down: run the command again later"
            return Failure(True, text, fix, UnreachableError)
        if status == 404 or code in ("NoSuchKey", "404"):
            return Failure(False, NO_FILE, "", MissingError)
        if status in (301, 307) or code == "AuthorizationHeaderMalformed":
            return Failure(False, text, "set AWS_DEFAULT_REGION to the bucket's region", UnreachableError)
        if status in (401, 403):
            fix = "check the AWS_* variables or the profile, and what its key may do in the bucket"
            return Failure(False, f"access denied: {text}", fix, UnreachableError)
        fix = "correct the URL, the region (AWS_DEFAULT_REGION) or the credentials"
        return Failure(False, text, fix, UnreachableError)

    @property
    def _endpoint(self) -> str:
        """Where requests go, for messages."""
        client = getattr(self._client[1], "_s3", None) if self._client else None
        return client.meta.endpoint_url if client else "of AWS_ENDPOINT_URL"


def _answer(error: BaseException | None) -> dict[str, Any] | None:
    """The server's answer behind an error, if it gave one: s3fs puts errors of its own before it."""
    from botocore.exceptions import ClientError

    while error is not None:
        if isinstance(error, ClientError):
            return dict(error.response)
        error = error.__cause__
    return None
