"""Writing checkpoints: from a copy, in a thread, while training goes on. Between steps the ranks agree on what has been written.

A save has three phases: the first rank clears the folder, every rank writes its parts, the first rank commits. Each runs in a thread, which calls no
collective. Where a step ends the ranks meet, and `poll` lets all of them into the next phase, or tells all of them what failed on one.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import safetensors.torch

from fiag_dist.dist.checkpoint import COMMIT, EMBEDDING, EMBEDDINGS, FORMAT, OPTIM, SHARED, Tensors, folders, join
from fiag_dist.dist.process import Process, all_gather_object, all_true
from fiag_dist.errors import CheckpointError, DataError, DistributedError
from fiag_dist.stages import due
from fiag_dist.storage import Storage, UnreachableError

SEEN_WITHIN_S = 60.0
"""How long the first rank waits for files that others have written."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was committed."""

    folder: str
    step: int
    fingerprint: str
    """Of the shared tensors, which were found to be the same on all ranks."""
    seconds: float
    """From the beginning to the commit."""
    waited_s: float
    """How long of that this rank's training stood still."""


Course = Generator[Callable[[], Any], list[Any], Saved]
"""A save: yields what to do next in the thread, is sent what that gave on every rank, and returns what became of it."""


class Saver:
    """Writes one checkpoint after another, at most one at a time. All methods are called by all ranks, between the same steps."""

    def __init__(
        self,
        storage: Storage,
        prefix: str,
        process: Process,
        keep: int = 0,
        keep_every: int = 0,
        beside: Callable[[], None] = lambda: None,
        report: Callable[[Saved], None] = lambda saved: None,
    ) -> None:
        """keep: after a commit only this many of the newest checkpoints stay, and those at multiples of `keep_every` steps; 0 keeps all, 0 none more.

        beside: what each rank also brings to safety, in the thread, with its parts. report: told of each commit, on every rank.
        """
        self._storage, self._prefix, self._process = storage, prefix, process
        self._keep, self._keep_every = keep, keep_every
        self._beside, self._report = beside, report
        self._course: Course | None = None
        self._phase: Future[tuple[Any, DataError | None]] = Future()
        self._step = -1
        self._waited_s = 0.0

    def begin(
        self, step: int, shared: Tensors, optim: Tensors, identities: Mapping[str, Tensors], info: dict[str, Any]
    ) -> None:
        """Takes a copy of all tensors and starts to write them, after the save before has ended; a step that was saved last is not saved again.

        shared: the same on all ranks. optim: written by rank 0, the others' are ignored. identities: those that this rank owns. info: plain values.
        Raises what `poll` raises, of the save before.
        """
        if step == self._step:
            return
        self.finish()
        began = time.perf_counter()
        self._step = step
        parts = {f"identities/{name}.safetensors": _copy(tensors) for name, tensors in identities.items()}
        embeddings = {name: tensors[EMBEDDING] for name, tensors in identities.items() if EMBEDDING in tensors}
        if embeddings:
            parts[f"{EMBEDDINGS}/{self._process.rank}.safetensors"] = _copy(embeddings)
        copied = _copy(shared)
        if self._process.is_first:
            parts |= {SHARED: copied, OPTIM: _copy(optim)}
        self._course = self._save(step, copied, parts, info, began)
        self._phase = _in_thread(next(self._course))
        self._waited_s = time.perf_counter() - began

    def poll(self) -> None:
        """Goes on with the save that is under way, if its phase has ended on every rank; waits for nothing but the other ranks' coming here.

        Raises CheckpointError on every rank when any of them could not write, UnreachableError when a remote place that gives no answer is all that
        stood in the way; checkpoints made before are then untouched.
        Raises DistributedError when the shared tensors differ between ranks; then nothing is committed.
        """
        if self._course and all_true(self._phase.done(), self._process.device):
            self._go_on(self._course)

    def finish(self) -> None:
        """Returns when nothing is under way any more. Raises what `poll` raises."""
        while self._course:
            began = time.perf_counter()
            wait([self._phase])
            self._waited_s += time.perf_counter() - began
            self._go_on(self._course)

    def _go_on(self, course: Course) -> None:
        began = time.perf_counter()
        reports = all_gather_object(self._phase.result())
        failed = [(rank, failure) for rank, (_, failure) in enumerate(reports) if failure]
        if failed:
            self._course = None
            is_passing = all(isinstance(failure, UnreachableError) for _, failure in failed)
            raise (UnreachableError if is_passing else CheckpointError)(
                f"checkpoint of step {self._step}: rank {failed[0][0]} could not write: {failed[0][1]}; the checkpoints before it are untouched"
            )
        try:
            self._phase = _in_thread(course.send([result for result, _ in reports]))
        except StopIteration as end:
            self._course = None
            self._report(end.value)
        self._waited_s += time.perf_counter() - began

    def _save(
        self, step: int, shared: Tensors, parts: Mapping[str, Tensors], info: dict[str, Any], began: float
    ) -> Course:
        folder = join(self._prefix, f"step-{step:08d}")
        yield lambda: self._clear(folder)
        written = yield lambda: self._write(folder, parts) | {"fingerprint": _fingerprint(shared)}
        prints = [part.pop("fingerprint") for part in written]
        if len(set(prints)) > 1:
            raise DistributedError(
                f"step {step}: shared parameters differ between ranks ({', '.join(prints)}); go on from the last checkpoint, and report this"
            )
        files = {path: entry for part in written for path, entry in sorted(part.items())}
        commit = {"format": FORMAT, "step": step, "world": self._process.world, "info": info, "files": files}
        yield lambda: self._commit(folder, commit)
        return Saved(folder, step, prints[0], time.perf_counter() - began, self._waited_s)

    def _clear(self, folder: str) -> None:
        """Removes what a save that was cut off has left."""
        if self._process.is_first:
            _delete(self._storage, folder)

    def _write(self, folder: str, parts: Mapping[str, Tensors]) -> dict[str, Any]:
        """This rank's files with their sizes and hashes."""
        written = {}
        for path, tensors in parts.items():
            data = safetensors.torch.save(tensors)
            self._storage.write(f"{folder}/{path}", data)
            written[path] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self._beside()
        return written

    def _commit(self, folder: str, commit: dict[str, Any]) -> None:
        if self._process.is_first:
            self._see(folder, commit["files"])
            self._storage.write(f"{folder}/{COMMIT}", (json.dumps(commit, indent=1) + "\n").encode())
            if self._keep:
                self._thin_out(folder)

    def _see(self, folder: str, files: Mapping[str, Any]) -> None:
        """Waits until what all ranks wrote is here: a shared folder may show another node's files some seconds later. Raises DataError when it isn't shared."""
        until = time.monotonic() + SEEN_WITHIN_S
        while missing := {f"{folder}/{path}" for path in files} - self._storage.sizes(folder).keys():
            if time.monotonic() > until:
                raise DataError(
                    f"{self._storage.url}/{min(missing)} was written by another node, and is not there for this one; give --runs that all nodes share: "
                    "s3://bucket/prefix or a shared folder"
                )
            time.sleep(0.5)

    def _thin_out(self, own: str) -> None:
        """Deletes older checkpoints beyond those to keep, and older folders that were never committed."""
        found = folders(self._storage, self._prefix)
        older = found[found.index(own) :]
        committed = [folder for folder in older if self._storage.exists(f"{folder}/{COMMIT}")]
        for folder in older:
            step = int(folder.rpartition("-")[2])
            stays = folder in committed and due(step, self._keep_every)
            if not stays and folder not in committed[: self._keep]:
                _delete(self._storage, folder)


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
    """Writes one checkpoint and waits for it -> its folder. All ranks call it. Arguments and errors are those of `Saver`."""
    folder: list[str] = []
    saver = Saver(storage, prefix, process, keep, report=lambda saved: folder.append(saved.folder))
    saver.begin(step, shared, optim, identities, info)
    saver.finish()
    return folder[0]


def _in_thread(action: Callable[[], Any]) -> Future[tuple[Any, DataError | None]]:
    """Starts `action` -> its result, or the DataError that it met. The thread holds up no exit: after an error a rank leaves at once."""
    future: Future[tuple[Any, DataError | None]] = Future()

    def work() -> None:
        try:
            future.set_result((action(), None))
        except DataError as error:
            future.set_result((None, type(error)(str(error))))  # without what led to it: it is sent to all ranks
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="checkpoint", daemon=True).start()
    return future


def _copy(tensors: Tensors) -> Tensors:
    """The tensors as they are now, on the host; each has memory of its own."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _fingerprint(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def _delete(storage: Storage, folder: str) -> None:
    """The commit goes first: a deletion that is cut off leaves no checkpoint behind that looks whole."""
    storage.delete(f"{folder}/{COMMIT}")
    storage.delete(folder)
