"""Clips to shards as Ray tasks, one core each: a clip that fails, or takes its worker down, fails alone."""

import ctypes
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import cv2

from fiag_dist.cluster import living_nodes, start_ray
from fiag_dist.errors import DataError, DistributedError, FiagError
from fiag_dist.shards.board import Board
from fiag_dist.shards.packing import Done, Packer, Work, pack_one
from fiag_dist.shards.progress import Far
from fiag_dist.storage import open_storage

WORKER_BYTES = 1_500_000_000
"""Memory that a clip may need, whatever its length: no node takes more clips than it has room for."""
SILENCE_S = 10.0
"""After so long without a finished clip a line says how far they are."""
WRITE_EVERY_S = 1.0
"""Between two notes of how far a clip is."""
PR_SET_PDEATHSIG = 1


def pack_all(
    todo: list[Work], jobs: int, packer: Packer, tell: Callable[[str], None], address: str = ""
) -> Iterator[tuple[Work, Done]]:
    """Results as they come; `tell` gets a line now and then of how far all are.

    Clips are packed on the Ray that this process is connected to, else on that at `address`, else on one of its own: as many at the same time as there are
    cores and memory for, and no more than `jobs`, where that is not 0. A clip whose worker dies is tried once more, alone.
    Raises DistributedError, WeightsError and ConfigError: these concern all clips.
    """
    if not todo:
        return
    start_ray(address)
    lost: list[Work] = []
    for work, result in _run(todo, jobs or len(todo), packer, tell):
        if result is None:
            lost.append(work)
        else:
            yield work, result
    for work in lost:
        ((_, result),) = _run([work], 1, packer, tell)
        died = "its worker process died twice: killed, or out of memory; give a shorter clip (--max-seconds) or fewer --jobs"
        if result is None:
            with suppress(DataError), open_storage(work.out).claim(work.name):
                pass  # the dead worker's folder goes, where it is empty
        yield work, result or Done(None, died)


def _run(
    todo: list[Work], at_once: int, packer: Packer, tell: Callable[[str], None]
) -> Iterator[tuple[Work, Done | None]]:
    """Results as they come, None for what took its worker down."""
    import ray

    board: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board).remote()
    task = ray.remote(num_cpus=1, memory=_memory(), max_retries=0)(_task)
    far = Far(todo)
    waiting, running = list(reversed(range(len(todo)))), {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                number = waiting.pop()
                running[task.remote(todo[number], packer, number, board)] = number
            finished, _ = ray.wait(list(running), timeout=SILENCE_S)
            living_nodes()
            if not finished:
                tell(far.line(ray.get(board.read.remote())))
            for reference in finished:
                number = running.pop(reference)
                far.finished.add(number)
                yield todo[number], _result(reference)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _memory() -> int:
    """What a task reserves: on nodes that are smaller than it, all there is."""
    return min(WORKER_BYTES, int(max(node["Resources"].get("memory", 0) for node in living_nodes())))


def _result(reference: Any) -> Done | None:
    import ray
    from ray import exceptions

    try:
        return ray.get(reference)
    except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError, exceptions.NodeDiedError):
        return None
    except exceptions.RayTaskError as error:
        if isinstance(error.cause, FiagError):
            raise error.cause from None
        if not isinstance(error.cause, exceptions.RaySystemError):
            raise
        said = str(error.cause).strip().splitlines()[-1]
        raise DistributedError(
            f"a worker could not begin ({said}); every node of a cluster needs this version of fiag-dist"
        ) from error


def _task(work: Work, packer: Packer, number: int, board: Any) -> Done:
    """In a worker. It ends with the node's Ray, at once: outliving it, it would write into the same folder as the next run."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    cv2.setNumThreads(1)
    written = 0.0

    def progress(stage: str, share: float) -> None:
        nonlocal written
        if time.monotonic() - written >= WRITE_EVERY_S:
            written = time.monotonic()
            board.write.remote(number, share)

    return pack_one(work, packer, progress)
