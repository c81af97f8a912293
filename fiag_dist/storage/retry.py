"""Tries again, a bounded number of times and ever more slowly, what failed for a reason that can pass."""

import errno
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fiag_dist.errors import DataError
from fiag_dist.storage.protocol import MissingError

T = TypeVar("T")

ATTEMPTS = 6
"""Tries of an operation whose error can pass; the waits between them double from FIRST_WAIT_S: 9 s in all."""
FIRST_WAIT_S = 0.3

NO_FILE = "no such file"

PASSING_ERRNOS = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
}


@dataclass(frozen=True)
class Failure:
    """What an error means: whether it can pass, what it says, what the user can do, and the error to raise in the end."""

    passing: bool
    text: str
    fix: str
    kind: type[DataError] = DataError


def persist(url: str, doing: str, action: Callable[[], T], judge: Callable[[Exception], Failure]) -> T:
    """The action's result. `doing` names it in errors: reading, writing, listing, deleting; `judge` tells errors that can pass.

    Raises DataError in one line: the URL, what failed, how often it was tried, the fix; MissingError when there is no such file.
    """
    began = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except DataError:
            raise
        except Exception as error:
            failure = judge(error)
            if failure.kind is MissingError:
                raise MissingError(f"{url}: {failure.text}") from error
            if failure.passing and attempt < ATTEMPTS:
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
                continue
            often = f" {attempt} times in {time.monotonic() - began:.0f} s" if attempt > 1 else ""
            raise failure.kind(f"{url}: {doing} failed{often}: {failure.text}; {failure.fix}") from error
    raise AssertionError("unreachable")


def judge_local(error: Exception) -> Failure:
    """What an error of a file on this machine means."""
    if isinstance(error, FileNotFoundError):
        return Failure(False, NO_FILE, "", MissingError)
    if isinstance(error, PermissionError):
        return Failure(False, f"access denied ({error.strerror or error})", "check the folder's rights")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Failure(False, "the disk is full", "free space or give another folder")
    passing = isinstance(error, OSError) and error.errno in PASSING_ERRNOS
    return Failure(passing, one_line(error), "check the disk and the path")


def one_line(error: Exception) -> str:
    """An error of somebody else's, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
