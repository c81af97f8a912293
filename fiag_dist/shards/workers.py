"""Clips to shards in worker processes, one a core and one thread each: a clip that fails, or takes its worker down, fails alone."""

import ctypes
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, MutableSequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fiag_dist.config import PackConfig
from fiag_dist.errors import DataError, FiagError
from fiag_dist.ingest.sheet import contact_sheet
from fiag_dist.shards.manifest import IdentityEntry, SourceEntry
from fiag_dist.shards.writer import write_identity
from fiag_dist.storage import open_storage
from fiag_dist.types import Frame, IdentityMeta

SHEET_FRAMES = 8
MARK = "entry.json"
"""Written last into an identity's folder: without it the folder is unfinished."""
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

TIMINGS = "timings"
"""What of a clip's report stays out of its shards, so that packing again gives the same bytes."""
SILENCE_S = 10.0
"""After so long without a finished clip a line says how far they are."""
LEAST_DONE = 0.02
"""Share of the work from which on the time left is estimated."""
PR_SET_PDEATHSIG = 1

Progress = Callable[[str, float], None]
Packer = Callable[[Path, PackConfig, str, Progress], tuple[IdentityMeta, Iterator[Frame]]]


@dataclass(frozen=True)
class Work:
    """One clip to pack: where it is, its identity's name, where the shards go, and what they depend on."""

    path: Path
    name: str
    out: str
    cfg: PackConfig
    source: SourceEntry
    speech: tuple[int, int]
    """Channels and window of the speech features that all clips share."""


@dataclass(frozen=True)
class Done:
    """What came of a clip: its entry, or the reason why there is none."""

    entry: IdentityEntry | None
    reason: str = ""
    seconds: float = 0.0
    bug: str = ""
    """Traceback of an error that no rule of ours explains."""


def pack_all(
    todo: list[Work], workers: int, packer: Packer, tell: Callable[[str], None]
) -> Iterator[tuple[Work, Done]]:
    """Results as they come; `tell` gets a line now and then of how far all are.

    A clip whose worker dies is tried once more, alone, so that it takes no other with it.
    """
    lost: list[Work] = []
    for work, result in _pool(todo, min(workers, len(todo)), packer, tell):
        if result is None:
            lost.append(work)
        else:
            yield work, result
    for work in lost:
        _, result = next(_pool([work], 1, packer, tell))
        died = "its worker process died twice: killed, or out of memory; give a shorter clip (--max-seconds) or fewer --jobs"
        yield work, result or Done(None, died)


def _pool(
    todo: list[Work], workers: int, packer: Packer, tell: Callable[[str], None]
) -> Iterator[tuple[Work, Done | None]]:
    """Results as they come, None for what a dead worker took along."""
    if not todo:
        return
    spawn = multiprocessing.get_context("spawn")
    far = Far(spawn.Array("d", len(todo), lock=False), todo)
    start = (os.getpid(), far.shares)
    with _one_thread_each(), ProcessPoolExecutor(workers, spawn, initializer=_begin, initargs=start) as pool:
        futures = {pool.submit(_pack_one, work, packer, number): number for number, work in enumerate(todo)}
        pending = set(futures)
        try:
            while pending:
                finished, pending = wait(pending, SILENCE_S, return_when=FIRST_COMPLETED)
                if not finished:
                    tell(far.line())
                for future in finished:
                    number = futures[future]
                    far.finished.add(number)
                    try:
                        yield todo[number], future.result()
                    except BrokenProcessPool:
                        yield todo[number], None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Far:
    """How far the clips are: workers write the shares done of theirs, 0..1, and this process reads them."""

    def __init__(self, shares: MutableSequence[float], todo: list[Work]) -> None:
        self.shares, self.finished = shares, set[int]()
        self._todo, self._began = todo, time.perf_counter()

    def line(self) -> str:
        """`2 of 12 clips done; anchor_a 45 %, b 12 %; about 6 min left`. Clips are taken to need time in proportion to their bytes."""
        shares = [1.0 if i in self.finished else share for i, share in enumerate(self.shares)]
        at_work = [f"{self._todo[i].name} {share:.0%}" for i, share in enumerate(shares) if 0 < share < 1]
        weights = [max(1, work.source.bytes) for work in self._todo]
        done = sum(share * weight for share, weight in zip(shares, weights, strict=True)) / sum(weights)
        parts = [f"{len(self.finished)} of {len(shares)} clips done"] if len(shares) > 1 else []
        parts += [", ".join(at_work)] if at_work else []
        if done > LEAST_DONE:
            parts.append(f"about {_duration((time.perf_counter() - self._began) * (1 - done) / done)} left")
        return "; ".join(parts) or "starting"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{max(1, round(seconds))} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


_shares: MutableSequence[float] = []
"""In a worker: how far each clip is."""


def _begin(parent: int, shares: MutableSequence[float]) -> None:
    """First thing in a worker: it ends with its parent, shares its progress, and keeps native libraries quiet.

    A worker that outlived a killed parent would write into the same folder as the next run. Native libraries log to the process's stderr whatever they are
    asked; it goes nowhere, and Python's own stays.
    """
    global _shares
    _shares = shares
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _pack_one(work: Work, packer: Packer, number: int) -> Done:
    """In a worker: one clip to shards, report, contact sheet and, last, the mark. Raises WeightsError and ConfigError, which concern all clips."""

    def far(stage: str, share: float) -> None:
        _shares[number] = share

    began = time.perf_counter()
    cv2.setNumThreads(1)
    storage = open_storage(work.out)
    try:
        meta, frames = packer(work.path, work.cfg, work.name, far)
        if meta.speech.shape[1:] != work.speech:
            raise DataError(
                f"{work.path.name}: speech features [{meta.speech.shape[1]}, {meta.speech.shape[2]}], the other clips have {list(work.speech)}; "
                "make them by the same program"
            )
        chosen: list[Frame] = []
        stored = dataclasses.replace(meta, report={k: v for k, v in meta.report.items() if k != TIMINGS})
        entry = write_identity(storage, stored, _keeping(frames, len(meta.split), chosen), work.cfg.frames_per_shard)
        entry = dataclasses.replace(entry, source=work.source)
        storage.write(f"{work.name}/report.json", (json.dumps(meta.report, indent=1) + "\n").encode())
        storage.write(f"{work.name}/contact_sheet.png", _png(contact_sheet(meta, chosen)))
        storage.write(f"{work.name}/{MARK}", (json.dumps(dataclasses.asdict(entry), indent=1) + "\n").encode())
    except DataError as error:
        with suppress(DataError):  # what is there of it takes room, and nothing names it
            storage.delete(work.name)
        return Done(None, str(error), time.perf_counter() - began)
    except FiagError:
        raise
    except Exception as error:
        reason = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        return Done(None, reason, time.perf_counter() - began, traceback.format_exc())
    return Done(entry, "", time.perf_counter() - began)


def _keeping(frames: Iterator[Frame], count: int, chosen: list[Frame]) -> Iterator[Frame]:
    """Passes frames on and keeps a few, evenly spread, for the contact sheet."""
    wanted = set(np.linspace(0, count - 1, SHEET_FRAMES).round().astype(int).tolist())
    for position, frame in enumerate(frames):
        if position in wanted:
            chosen.append(frame)
        yield frame


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Worker processes started inside use one thread each: there is one of them a core."""
    before = {name: os.environ.get(name) for name in THREAD_LIMITS}
    os.environ.update(dict.fromkeys(THREAD_LIMITS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
