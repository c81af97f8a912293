"""One adaptation at a time in a folder: two would train the same people, and thin out each other's checkpoints."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from fiag_dist.errors import ConfigError
from fiag_dist.media.container import writing
from fiag_dist.storage import LocalStorage, open_storage

LOCK = ".adapt.lock"


@contextmanager
def alone_in(out: str) -> Iterator[None]:
    """While the body runs, no other process is let in here. The system frees the folder when this one ends, however it ends; the file stays.

    On S3 nobody is kept out. Raises ConfigError when another process is at work there, DataError where no file can be made.
    """
    storage = open_storage(out)
    if not isinstance(storage, LocalStorage):
        yield
        return
    with writing(storage.folder):
        storage.folder.mkdir(parents=True, exist_ok=True)
        file = (storage.folder / LOCK).open("a")
    with file:
        if not _taken(file):
            raise ConfigError(
                f"--out {out}: another fiag-dist adapt is at work here; wait until it ends, or give another --out"
            )
        yield


def _taken(file: TextIO) -> bool:
    """Whether the file is this process's now; where the disk knows no locks, it is everybody's."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return not isinstance(error, BlockingIOError)
