"""Checkpoints that know no ranks, and how they are read: every part was written first, COMMIT.json last; a folder without it is not a checkpoint.

step-00001000/shared.safetensors              parameters of the shared model
              shared_optim.safetensors        its optimiser's moments and counters
              identities/<name>.safetensors   what one identity owns, written by the rank that owns it
              embeddings/<rank>.safetensors   the embeddings among it once more, by name: who is alike is asked of everybody
              COMMIT.json                     step, world size, info, and bytes and SHA-256 of every file
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fiag_dist.errors import CheckpointError, DataError
from fiag_dist.storage import Storage, UnreachableError, open_storage

FORMAT = 1
COMMIT = "COMMIT.json"
SHARED = "shared.safetensors"
OPTIM = "shared_optim.safetensors"
EMBEDDINGS = "embeddings"
EMBEDDING = "embedding"
"""The tensor of an identity that is also kept with everybody's."""
FOLDER = "checkpoints"
"""Folder of a run that holds its checkpoints."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A committed checkpoint; each file is read, and its SHA-256 checked, when it is asked for."""

    storage: Storage
    folder: str
    step: int
    """Steps trained."""
    world: int
    """Ranks that wrote it; any number can read it."""
    info: dict[str, Any]
    """What the run said of itself when it was saved."""
    files: dict[str, dict[str, Any]] = field(repr=False)
    """Path inside the folder -> {bytes, sha256}."""

    @cached_property
    def shared(self) -> Tensors:
        """Parameters of the shared model."""
        return self._read(SHARED)

    @cached_property
    def optim(self) -> Tensors:
        """Its optimiser's state."""
        return self._read(OPTIM)

    @property
    def identities(self) -> Mapping[str, Tensors]:
        """Each identity's tensors by name; a look-up reads that identity alone, anew each time."""
        return _Identities(self)

    @cached_property
    def embeddings(self) -> Tensors:
        """Everybody's, sorted by name. A checkpoint of before they were kept together has them read one by one."""
        files = [self._read(path) for path in self.files if path.startswith(f"{EMBEDDINGS}/")]
        if not files:
            return {name: tensors[EMBEDDING] for name, tensors in self.identities.items()}
        return dict(sorted(item for file in files for item in file.items()))

    def _read(self, path: str) -> Tensors:
        where = _where(self.storage, f"{self.folder}/{path}")
        data = _read_bytes(self.storage, f"{self.folder}/{path}")
        _compare(where, "bytes", len(data), self.files[path]["bytes"])
        _compare(where, "SHA-256", hashlib.sha256(data).hexdigest(), self.files[path]["sha256"])
        try:
            return safetensors.torch.load(data)
        except SafetensorError as error:
            raise CheckpointError(f"{where}: not a safetensors file ({error}); {_FIX}") from error


def commit_sha256(storage: Storage, folder: str) -> str:
    """What tells a checkpoint from one that was trained anew at the same step, wherever it lies."""
    return hashlib.sha256(storage.read(f"{folder}/{COMMIT}")).hexdigest()


def newest(storage: Storage, prefix: str) -> str | None:
    """Folder of the newest checkpoint below `prefix` that is whole: committed, all sizes right, the shared files' hashes too.

    Says in a line why it passes over any newer one. Raises DataError when a remote place does not answer: what lies there is then unknown.
    """
    for folder in folders(storage, prefix):
        try:
            checkpoint = load(storage, folder)
            sizes = storage.sizes(folder)
            for path, entry in checkpoint.files.items():
                where = _where(storage, f"{folder}/{path}")
                _compare(where, "bytes", sizes.get(f"{folder}/{path}", "no file"), entry["bytes"])
            for path in (SHARED, OPTIM):
                checkpoint._read(path)
        except CheckpointError as error:
            print(f"checkpoint passed over: {error}", flush=True)
            continue
        return folder
    return None


def load(storage: Storage, folder: str) -> Checkpoint:
    """Opens the checkpoint in `folder`; tensors are read when asked for.

    Raises CheckpointError when it was never committed, or, when a file is read, if that one is damaged.
    """
    where = _where(storage, folder)
    if not storage.exists(join(folder, COMMIT)):
        raise CheckpointError(
            f"{where}: no {COMMIT}, so it was never finished (or is no checkpoint); expected a folder step-NNNNNNNN "
            "with one; use an older step, or the run folder, which stands for its newest"
        )
    data = _read_bytes(storage, join(folder, COMMIT))
    try:
        commit = json.loads(data)
        found = commit["format"]
        if found != FORMAT:
            raise CheckpointError(
                f"{where}: format {found!r}, this version reads {FORMAT}; use the fiag_dist version that wrote it"
            )
        return Checkpoint(storage, folder, commit["step"], commit["world"], commit["info"], commit["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}/{COMMIT}: damaged ({type(error).__name__}: {error}); {_FIX}") from error


def resolve(url: str) -> tuple[Storage, str]:
    """(storage, folder) for `load` from a step folder, a run folder or its checkpoints folder: the last two stand for the newest.

    Raises CheckpointError when there is none.
    """
    base, _, last = url.rstrip("/").rpartition("/")
    if _STEP.fullmatch(last):
        return open_storage(base or "."), last
    storage = open_storage(url)
    if storage.exists(COMMIT):
        raise CheckpointError(f"{url}: a checkpoint's folder is named step-NNNNNNNN; give it its name back")
    for prefix in (FOLDER, ""):
        folder = newest(storage, prefix)
        if folder is not None:
            return storage, folder
    raise CheckpointError(
        f"{url}: no committed checkpoint in it or in its folder {FOLDER}; "
        "give a run folder (runs/NAME) or one of its checkpoints/step-NNNNNNNN"
    )


def folders(storage: Storage, prefix: str) -> list[str]:
    """Step folders below `prefix`, committed or not, newest first."""
    names = [child.rstrip("/") for child in storage.children(prefix) if child.endswith("/")]
    steps = {int(match[1]): match[0] for name in names if (match := _STEP.fullmatch(name))}
    return [join(prefix, steps[step]) for step in sorted(steps, reverse=True)]


def join(prefix: str, name: str) -> str:
    """Path of `name` in the folder `prefix`, which may be the storage's own: empty."""
    return f"{prefix.rstrip('/')}/{name}" if prefix else name


_FIX = "delete the folder step-NNNNNNNN that holds it to go on from the checkpoint before"
_STEP = re.compile(r"step-(\d{8,})")


class _Identities(Mapping[str, Tensors]):
    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        paths = [path for path in checkpoint.files if path.startswith("identities/")]
        self._paths = {path.removeprefix("identities/").removesuffix(".safetensors"): path for path in sorted(paths)}

    def __getitem__(self, name: str) -> Tensors:
        if name not in self._paths:
            where = _where(self._checkpoint.storage, self._checkpoint.folder)
            raise CheckpointError(f"{where}: no identity {name!r} in it; it has {', '.join(self._paths) or 'none'}")
        return self._checkpoint._read(self._paths[name])

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def _read_bytes(storage: Storage, path: str) -> bytes:
    try:
        return storage.read(path)
    except UnreachableError:  # says nothing of the checkpoint: passing over it would train from an older one
        raise
    except DataError as error:
        raise CheckpointError(f"{error}; {_FIX}") from error


def _compare(where: str, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise CheckpointError(f"{where}: {what} {found}, expected {expected} by its {COMMIT}: damaged; {_FIX}")


def _where(storage: Storage, path: str) -> str:
    return f"{storage.url}/{path}"
