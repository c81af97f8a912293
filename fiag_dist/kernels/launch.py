"""What all kernels share: how tensors come in, how loops become parallel, and that one kernel runs at a time."""

import fcntl
import importlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fiag_dist.errors import CHECKED, NumericsError

PARALLEL: Any = dict.fromkeys(
    ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"), False
)
PARALLEL["prange"] = True
"""numba's `parallel`: explicit prange alone. Turning array expressions inside it into loops of their own gains nothing and takes compile time."""

CACHE_FILLER = "FIAG_KERNEL_CACHE_FILLER"
"""Set in the process that compiles for others."""
_one_at_a_time = threading.Lock()
_loaded: set[tuple] = set()
"""Kernels, with the kinds of their arguments, whose code in this process comes from the cache."""


def use_threads(num: int) -> None:
    """Gives the kernels `num` threads (as many as numba was started with, at most), and torch one: its operations between them are too small to share out."""
    torch.set_num_threads(1)
    numba.set_num_threads(min(num, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


def launch(kernel: Any, *arguments: Any) -> Any:
    """Runs a numba kernel. Threads of this process take turns: numba's simplest threading layer ends the process when two enter it at once."""
    with _one_at_a_time:
        key = (kernel, *map(_kind, arguments))
        if key not in _loaded:
            _load(kernel, arguments)
            _loaded.add(key)
        return kernel(*arguments)


def _load(kernel: Any, arguments: tuple) -> None:
    """Gets a kernel for these arguments out of the cache; where it is missing, another process fills the cache first.

    What numba has just compiled rounds differently, in a last bit, from what it reads back: the first run on a machine would not equal the second.
    """
    types = tuple(map(numba.typeof, arguments))
    if CACHE_FILLER not in os.environ and not _stored(kernel, types):
        with alone(Path(kernel._cache.cache_path) / ".compiling"):
            if not _stored(kernel, types):  # another process may have filled it meanwhile
                _fill_cache()
            if not _stored(kernel, types):  # what the warm-up doesn't know: another number of channels, say
                _compile_elsewhere(kernel, types)
    kernel.compile(types)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One process at a time: of many ranks that start at once, the first compiles, and the others read what it wrote."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _stored(kernel: Any, types: tuple) -> bool:
    """Whether the cache has the kernel's code; it is looked up, and not yet made part of this process."""
    cache = kernel._cache
    return cache._cache_file.load(cache._index_key(types, kernel.targetctx.codegen())) is not None


@lru_cache(maxsize=1)
def _fill_cache() -> None:
    print("compiling kernels, once for this machine: half a minute", file=sys.stderr, flush=True)
    _run_filler("from fiag_dist.kernels.warm import warm; warm()")


def _compile_elsewhere(kernel: Any, types: tuple) -> None:
    module, name = kernel.py_func.__module__, kernel.__name__
    print(f"compiling {module}.{name}, once for this machine: some seconds", file=sys.stderr, flush=True)
    code = "from fiag_dist.kernels.launch import compile_asked; compile_asked()"
    _run_filler(code, pickle.dumps((module, name, types)))


def compile_asked() -> None:
    """In the process that compiles for others: compiles the kernel, named by module and name, for the types that stdin holds."""
    module, name, types = pickle.load(sys.stdin.buffer)
    getattr(importlib.import_module(module), name).compile(types)


def _run_filler(code: str, asked: bytes = b"") -> None:
    subprocess.run([sys.executable, "-c", code], input=asked, env=os.environ | {CACHE_FILLER: "1"}, check=False)


def _kind(argument: Any) -> Any:
    """What numba compiles differently for."""
    if isinstance(argument, np.ndarray):
        return argument.dtype.char, argument.ndim, argument.flags.c_contiguous, argument.flags.writeable
    return (tuple, len(argument)) if isinstance(argument, tuple) else type(argument)


def check(kernel: str, **tensors: Tensor) -> None:
    """In checked mode (environment variable FIAG_CHECKED=1; `--debug` and the tests set it) looks for NaN and infinities; otherwise does nothing.

    kernel: what the tensors, named, are about to enter. Raises NumericsError that says which tensor, how many values and where the first is.
    """
    if os.environ.get(CHECKED) != "1":
        return
    for name, tensor in tensors.items():
        bad = ~torch.isfinite(tensor.detach())
        if bad.any():
            first = bad.nonzero()[0].tolist()
            raise NumericsError(
                f"{kernel}: {int(bad.sum())} of {bad.numel()} values of {name} are not finite, the first {float(tensor[tuple(first)])} at {first}; "
                "the rule of checked mode is finite numbers; find what made them, a step too large or a division by 0"
            )


def array(tensor: Tensor) -> np.ndarray:
    """The tensor's values as C-contiguous float32, without a copy where they are that already: one type, so that each kernel is compiled once."""
    return tensor.detach().to(torch.float32).contiguous().numpy()
