"""What can go wrong through no bug of ours. Each message says what happened, the value, the rule and the fix, in one line."""

import difflib
import errno
from collections.abc import Iterable


class FiagError(Exception):
    """Base of every error that a user can cause and mend; the command line prints its text and exits with 2."""


class ConfigError(FiagError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(FiagError):
    """A clip, a shard, a manifest or an audio file can't be used."""


class CheckpointError(FiagError):
    """A checkpoint is incomplete, damaged or does not fit the model."""


class DistributedError(FiagError):
    """The ranks cannot work together as asked: too few identities, unequal settings, a lost peer."""


class WeightsError(FiagError):
    """A pretrained extractor's file is missing, or its SHA-256 is not the pinned one."""


class NumericsError(FiagError):
    """Checked mode found NaN or an infinity on its way into a kernel."""


def meant(name: str, known: Iterable[str], most: int | None = None) -> str:
    """A hint for who gave a name that is none of those `known`: the nearest, where one is near, else all of them, or the first `most`."""
    names = [*known]
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names[:most]) or 'none'}"


FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk, or of somebody's share of it, that takes no more."""
CHECKED = "FIAG_CHECKED"
"""Environment variable: at 1, kernels refuse numbers that are not finite. Processes that a command starts inherit it."""
