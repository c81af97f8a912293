"""Local folders and s3:// prefixes behind one small protocol. Nothing else in the project opens a URL."""

import os

from fiag_dist.errors import DataError
from fiag_dist.storage.cache import CACHE_GIB, Cache, cache_folder, user_folder
from fiag_dist.storage.local import LocalStorage
from fiag_dist.storage.protocol import Content, DamagedError, MissingError, Storage, UnreachableError
from fiag_dist.storage.s3 import S3Storage

__all__ = [
    "CACHE_GIB",
    "Cache",
    "Content",
    "DamagedError",
    "LocalStorage",
    "MissingError",
    "S3Storage",
    "Storage",
    "UnreachableError",
    "cache_folder",
    "open_storage",
    "user_folder",
]


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
