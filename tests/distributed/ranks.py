"""Real ranks for tests: processes that join over gloo once and then run the functions they are sent."""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

START_S = 120.0
"""Importing torch and deepspeed on a busy machine."""


class Ranks:
    """`world` processes. After a failure or a timeout they are ended, and the next `run` starts new ones."""

    def __init__(self, world: int, launched: bool = True) -> None:
        """launched: with torchrun's environment, else as a plain process (only for a world of one)."""
        assert launched or world == 1
        self._world, self._launched = world, launched
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def run(self, function: Callable[..., Any], *args: Any, timeout_s: float = 60.0) -> list[Any]:
        """`function(process, *args)` on every rank at the same time -> results in the order of ranks.

        `function` is a module's. Raises AssertionError with the trace of the first rank that failed, or TimeoutError.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, args))
        return self._collect(function.__name__, timeout_s)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        for rank in range(self._world):
            ours, theirs = context.Pipe()
            environment = {
                "RANK": rank,
                "WORLD_SIZE": self._world,
                "LOCAL_RANK": rank,
                "LOCAL_WORLD_SIZE": self._world,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            process = context.Process(target=_serve, args=(theirs, environment if self._launched else {}), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._collect("start", START_S)

    def _collect(self, what: str, timeout_s: float) -> list[Any]:
        deadline = time.monotonic() + timeout_s
        results = []
        try:
            for rank, pipe in enumerate(self._pipes):
                if not pipe.poll(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"{what}: rank {rank} of {self._world} did not answer within {timeout_s:g} s")
                ok, result = pipe.recv()
                assert ok, f"{what} failed on rank {rank} of {self._world}:\n{result}"
                results.append(result)
        except BaseException:
            self.close()
            raise
        return results


def _serve(pipe: Connection, environment: dict[str, Any]) -> None:
    os.environ |= {name: str(value) for name, value in environment.items()} | {"OMP_NUM_THREADS": "1"}
    from fiag_dist.dist import process

    me = process.start(timeout_s=30)
    pipe.send((True, None))
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(me, *args)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
