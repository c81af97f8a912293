"""Checkpoints that know no ranks: every part is written first, COMMIT.json last; a folder without it is not a checkpoint.

step-00001000/shared.safetensors              parameters of the shared model
              shared_optim.safetensors        its optimiser's moments and counters
              identities/<name>.safetensors   what one identity owns, written by the rank that owns it
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

from fiag_dist.dist.process import Process, all_gather_object
from fiag_dist.errors import CheckpointError, DataError
from fiag_dist.storage import Storage, UnreachableError, open_storage

FORMAT = 1
COMMIT = "COMMIT.json"
SHARED = "shared.safetensors"
OPTIM = "shared_optim.safetensors"
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
    """What the run said of itself at `save`."""
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

    def _read(self, path: str) -> Tensors:
        where = _where(self.storage, f"{self.folder}/{path}")
        data = _read_bytes(self.storage, f"{self.folder}/{path}")
        _compare(where, "bytes", len(data), self.files[path]["bytes"])
        _compare(where, "SHA-256", hashlib.sha256(data).hexdigest(), self.files[path]["sha256"])
        try:
            return safetensors.torch.load(data)
        except SafetensorError as error:
            raise CheckpointError(f"{where}: not a safetensors file ({error}); {_FIX}") from error


def save(
    storage: Storage,
    prefix: str,
    step: int,
    shared: Tensors,
    optim: Tensors,
    identities: Mapping[str, Tensors],
    info: dict[str, Any],
    process: Process,
    keep: int = 0,
) -> str:
    """Writes the checkpoint of `step` below `prefix` and returns its folder. All ranks call it.

    shared, optim: written by rank 0; the other ranks' are ignored. identities: those that this rank owns. info: plain values for JSON.
    keep: after the commit, only this many of the newest checkpoints stay; 0 keeps all.
    Raises CheckpointError on every rank when any of them could not write; checkpoints made before are then untouched.
    """
    folder = _join(prefix, f"step-{step:08d}")
    failure = None
    if process.rank == 0:
        try:
            _delete(storage, folder)  # what a save that was cut off has left
        except DataError as error:
            failure = str(error)
    _raise_first(step, all_gather_object(failure))
    parts = {f"identities/{name}.safetensors": tensors for name, tensors in identities.items()}
    if process.rank == 0:
        parts |= {SHARED: shared, OPTIM: optim}
    written, failure = {}, None
    try:
        for path, tensors in parts.items():
            data = safetensors.torch.save({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()})
            storage.write(f"{folder}/{path}", data)
            written[path] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    except DataError as error:
        failure = str(error)
    reports = all_gather_object((written, failure))  # also the barrier that all parts lie behind
    _raise_first(step, [failure for _, failure in reports])
    failure = None
    if process.rank == 0:
        files = {path: entry for written, _ in reports for path, entry in sorted(written.items())}
        commit = {"format": FORMAT, "step": step, "world": process.world, "info": info, "files": files}
        try:
            storage.write(f"{folder}/{COMMIT}", (json.dumps(commit, indent=1) + "\n").encode())
            if keep:
                _thin_out(storage, prefix, step, keep)
        except DataError as error:
            failure = str(error)
    _raise_first(step, all_gather_object(failure))
    return folder


def newest(storage: Storage, prefix: str) -> str | None:
    """Folder of the newest checkpoint below `prefix` that is whole: committed, all sizes right, the shared files' hashes too.

    Says in a line why it passes over any newer one. Raises DataError when a remote place does not answer: what lies there is then unknown.
    """
    for folder in _folders(storage, prefix):
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
    if not storage.exists(_join(folder, COMMIT)):
        raise CheckpointError(
            f"{where}: no {COMMIT}, so it was never finished (or is no checkpoint); expected a folder step-NNNNNNNN "
            "with one; use an older step, or the run folder, which stands for its newest"
        )
    data = _read_bytes(storage, _join(folder, COMMIT))
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


def _folders(storage: Storage, prefix: str) -> list[str]:
    """Step folders below `prefix`, committed or not, newest first."""
    names = [child.rstrip("/") for child in storage.children(prefix) if child.endswith("/")]
    steps = {int(match[1]): match[0] for name in names if (match := _STEP.fullmatch(name))}
    return [_join(prefix, steps[step]) for step in sorted(steps, reverse=True)]


def _thin_out(storage: Storage, prefix: str, step: int, keep: int) -> None:
    """Deletes all but the `keep` newest committed checkpoints up to `step`, and older folders that were never committed."""
    own = _join(prefix, f"step-{step:08d}")
    folders = _folders(storage, prefix)
    older = folders[folders.index(own) :]
    kept = [folder for folder in older if storage.exists(f"{folder}/{COMMIT}")][:keep]
    for folder in older:
        if folder not in kept:
            _delete(storage, folder)


def _delete(storage: Storage, folder: str) -> None:
    """The commit goes first: a deletion that is cut off leaves no checkpoint behind that looks whole."""
    storage.delete(f"{folder}/{COMMIT}")
    storage.delete(folder)


def _raise_first(step: int, failures: list[str | None]) -> None:
    failure = next(((rank, text) for rank, text in enumerate(failures) if text), None)
    if failure:
        raise CheckpointError(
            f"checkpoint of step {step}: rank {failure[0]} could not write: {failure[1]}; the checkpoints before it are untouched"
        )


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


def _join(prefix: str, name: str) -> str:
    return f"{prefix.rstrip('/')}/{name}" if prefix else name


def _where(storage: Storage, path: str) -> str:
    return f"{storage.url}/{path}"
