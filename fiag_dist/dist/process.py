"""Ranks: how a process finds its peers, talks to them and agrees with them when to stop."""

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any, Literal, NoReturn, TypeVar

import torch
import torch.distributed as dist

from fiag_dist.ending import endings
from fiag_dist.errors import DistributedError

T = TypeVar("T")
OPERATIONS = {"sum": dist.ReduceOp.SUM, "mean": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


@dataclass(frozen=True)
class Process:
    """One rank of a run."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what a run has only one of."""
        return self.rank == 0


def start(timeout_s: float = 600.0) -> Process:
    """Joins the ranks that torchrun started; without torchrun, a world of one.

    timeout_s: how long a collective waits for a lost or late peer, seconds.
    Raises DistributedError for a half-set environment, too few GPUs, or peers that do not come.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    launched = "RANK" in os.environ or "WORLD_SIZE" in os.environ
    missing = [name for name in names if name not in os.environ]
    if launched and missing:
        raise DistributedError(
            f"{', '.join(missing)} not set while {', '.join(n for n in names if n not in missing)} are: "
            "a rank needs all of them; start with torchrun, or unset RANK and WORLD_SIZE for a single process"
        )
    rank, world, local_rank, local_world = (int(os.environ[n]) for n in names[:4]) if launched else (0, 1, 0, 1)
    for number in endings() if launched else ():
        if callable(signal.getsignal(number)):
            # Python hears of a signal only between its own steps, not while it waits for ranks that have died: until StopSignal, it ends a rank at once.
            signal.signal(number, signal.SIG_DFL)
    device = _device(local_rank, local_world)
    _share_cores(local_rank, local_world, device, asked="" if launched else os.environ.get("OMP_NUM_THREADS", ""))
    alone: dict[str, Any] = {} if launched else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
            **alone,
        )
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"rank {rank} of {world}: did not meet the other ranks at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} "
            f"({_first_line(error)}; {timeout_s:g} s are allowed); check the address and the port, and that every rank was started and none has died"
        ) from error
    return Process(rank, world, device)


def finish() -> None:
    """Waits for the peers and leaves. Only after success: after an error, just exit non-zero and torchrun ends the others."""
    if dist.is_initialized():
        with _collective("finish"):
            dist.barrier()
        dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """Ends the process at once, after all is printed: for a rank whose work is done, or has failed.

    Torch's threads outlive `finish`, DeepSpeed keeps their groups; one that comes back to an interpreter that is shutting down aborts the process,
    and torchrun takes a finished run for a failed one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def barrier() -> None:
    """Returns when every rank has come here. Raises DistributedError when one is lost."""
    if _world() > 1:
        with _collective("barrier"):
            dist.barrier()


def broadcast_object(value: T, source: int = 0) -> T:
    """`source`'s value, on every rank; the others' values are ignored. Raises DistributedError when a rank is lost."""
    if _world() == 1:
        return value
    box = [value]
    with _collective("broadcast_object"):
        dist.broadcast_object_list(box, src=source)
    return box[0]


def broadcast(tensors: Iterable[torch.Tensor], source: int = 0) -> None:
    """Gives every rank `source`'s values, in place; shapes are the same on all. Raises DistributedError when a rank is lost."""
    if _world() > 1:
        given = list(tensors)
        with _collective("broadcast"):
            for tensor in given:
                dist.broadcast(tensor, source)
            _wait(*given)


def all_gather_object(value: T) -> list[T]:
    """Every rank's value, in the order of ranks. Raises DistributedError when a rank is lost."""
    if _world() == 1:
        return [value]
    values: list[Any] = [None] * _world()
    with _collective("all_gather_object"):
        dist.all_gather_object(values, value)
    return values


def all_reduce(tensor: torch.Tensor, op: Literal["sum", "mean", "max", "min"] = "sum") -> torch.Tensor:
    """Combines `tensor` over the ranks in place and returns it. Raises DistributedError when a rank is lost."""
    if _world() > 1:
        with _collective("all_reduce"):
            dist.all_reduce(tensor, OPERATIONS[op])
            _wait(tensor)
        if op == "mean":
            tensor /= _world()
    return tensor


def exchange(outgoing: Sequence[tuple[int, torch.Tensor]], incoming: Sequence[tuple[int, torch.Tensor]]) -> None:
    """Sends tensors to ranks while it receives into others from ranks; between two ranks in the order given. Raises DistributedError when one is lost."""
    operations = [dist.P2POp(dist.isend, tensor, rank) for rank, tensor in outgoing]
    operations += [dist.P2POp(dist.irecv, tensor, rank) for rank, tensor in incoming]
    if operations:
        with _collective("exchange"):
            for work in dist.batch_isend_irecv(operations):
                work.wait()
            _wait(*(tensor for _, tensor in incoming))


def all_true(value: bool, device: torch.device | None = None) -> bool:
    """Whether `value` holds on every rank: the same answer on all of them. Raises DistributedError when a rank is lost."""
    if _world() == 1:
        return value
    with talking():
        return bool(all_reduce(torch.tensor(float(value), device=device), "min").item())


def new_store(name: str, timeout_s: float) -> dist.Store | None:
    """A small table of texts that all ranks of this start share, over a connection of its own, for one thread; None in a world of one."""
    if _world() == 1:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    table = dist.TCPStore(address, port, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)
    return dist.PrefixStore(name, table)


class StopSignal:
    """Turns SIGTERM, SIGHUP, SIGUSR1 and SIGINT into a flag, so that a run ends at a step's end with a checkpoint.

    A second SIGINT interrupts at once. `close()` puts the former handlers back.
    """

    def __init__(self) -> None:
        self.requested = False
        self._former = {s: signal.signal(s, self._request) for s in (*endings(), signal.SIGUSR1, signal.SIGINT)}

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def agreed(self, device: torch.device | None = None) -> bool:
        """Whether any rank was asked to stop: the same answer on all ranks, which must all call it."""
        return not all_true(not self.requested, device)

    def close(self) -> None:
        """Puts the former signal handlers back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _device(local_rank: int, local_world: int) -> torch.device:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported
        return torch.device("cpu")
    if local_world > torch.cuda.device_count():
        raise DistributedError(
            f"{local_world} ranks on this machine, {torch.cuda.device_count()} GPUs: one GPU serves one rank; "
            f"use --nproc-per-node={torch.cuda.device_count()} (NPROC={torch.cuda.device_count()} launch/pretrain.sh), or CUDA_VISIBLE_DEVICES= to run on the CPU"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _share_cores(local_rank: int, local_world: int, device: torch.device, asked: str) -> None:
    """Gives each rank of this machine cores of its own, and as many threads, or as many as `asked` for.

    A rank that computes on them stays there: where ranks wander over all cores, two meet on one now and then, and all wait for the slower.
    Under torchrun OMP_NUM_THREADS is no wish of the user's: torchrun itself sets it to 1.
    """
    from fiag_dist.kernels.launch import use_threads  # here, not above: slow to import for those who only need Process

    cores = sorted(os.sched_getaffinity(0))
    if device.type == "cpu" and 1 < local_world <= len(cores):
        first, stop = (len(cores) * rank // local_world for rank in (local_rank, local_rank + 1))
        os.sched_setaffinity(0, cores[first:stop])
    threads = int(asked) if asked.isdigit() and int(asked) else max(1, len(cores) // local_world)
    use_threads(threads)


_talks = 0


@contextmanager
def talking() -> Iterator[None]:
    """Around what other ranks have a part in, up to where its result is read: on a GPU a collective returns at once, and whoever reads waits.

    Only for the thread that trains, the only one that calls collectives.
    """
    global _talks
    _talks += 1
    try:
        yield
    finally:
        _talks -= 1


def is_talking() -> bool:
    """Whether this process is at a place where it may wait for other ranks."""
    return _talks > 0


@contextmanager
def _collective(name: str) -> Iterator[None]:
    """Says which collective failed. Nothing may be swallowed here: after a failure no collective works."""
    try:
        with talking():
            yield
    except RuntimeError as error:
        raise DistributedError(
            f"rank {dist.get_rank()} of {dist.get_world_size()}: {name} failed ({_first_line(error)}); a rank died or is "
            "stuck: look at the first error in the other ranks' logs, then start again from the newest checkpoint"
        ) from error


def _wait(*tensors: torch.Tensor) -> None:
    """Until these are there: on a GPU a collective returns at once, and whoever reads its result later is taken for the one that the others wait for."""
    for tensor in tensors:
        if tensor.is_cuda:
            torch.cuda.current_stream(tensor.device).synchronize()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
