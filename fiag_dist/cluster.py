"""Ray, started quietly: on this machine alone, or as part of a cluster that is there."""

import logging
import os
import signal
import threading
from types import ModuleType
from typing import Any

from fiag_dist.errors import DistributedError

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own table
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a task that asked for no GPU sees none
}
"""What Ray reads from the environment: when it is imported, and in its workers."""
OBJECT_STORE_BYTES = 256 * 2**20
"""What tasks hand one another is small; Ray would keep 30 % of the memory for it."""
SLOW_START = "timed out during startup"
STARTS = 3
"""Ray gives itself 30 s to start, which a busy machine exceeds: how often it may try."""
LOOK_EVERY_S = 10.0
"""How often who waits for a task asks whether there are machines to work on it."""


def start_ray(address: str = "") -> None:
    """Connects this process to Ray, once: to the cluster at `address` (host:port, ray://host:port or `auto`), else to RAY_ADDRESS, else to a Ray of its own.

    A Ray of its own has the cores that this process may use, and ends with it. Raises DistributedError when nothing answers at the address.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray  # here: it reads the environment, and takes seconds that other commands need not wait for

    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    address = address or os.environ.get("RAY_ADDRESS", "")
    own: dict[str, Any] = {
        "address": "local",
        "num_cpus": len(os.sched_getaffinity(0)),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    there: dict[str, Any] = {"address": address, "runtime_env": {"env_vars": SETTINGS}}
    options = there if address else own
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        _init(ray, options, 1 if address else STARTS)
    except Exception as error:  # no connection, no home to keep its token in, a start of more than 30 s: Ray has no type of its own for these
        said = " ".join(str(error).split())
        raise DistributedError(
            f"Ray {'at ' + address if address else 'on this machine'} did not answer ({said:.200}); "
            + (
                "start it: ray start --head, or leave --address out"
                if address
                else "it needs a HOME that can be written, and 30 s at most to start, which a busy machine exceeds; run the command again"
            )
        ) from error
    if callable(terminate) and threading.current_thread() is threading.main_thread():
        # Ray has put its own in the place, which would end the process whatever it has to finish.
        signal.signal(signal.SIGTERM, terminate)


def living_nodes() -> list[dict[str, Any]]:
    """Ray's description of each machine that works for the cluster this process is connected to.

    Raises DistributedError when none is left: Ray would wait for ever for another.
    """
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    if not alive:
        raise DistributedError(
            "Ray has lost its last machine (its processes were killed, or ran out of memory); run the command again: what is finished stays"
        )
    return alive


def result_of(task: Any) -> Any:
    """What a task gives, or its error. Raises DistributedError when no machine is left to work on it: Ray would wait for ever for another."""
    import ray

    while not ray.wait([task], timeout=LOOK_EVERY_S)[0]:
        living_nodes()
    return ray.get(task)


def _init(ray: ModuleType, options: dict[str, Any], tries: int) -> None:
    """Starts Ray, once more when it was too slow."""
    for tries_left in reversed(range(tries)):
        try:
            ray.init(log_to_driver=False, configure_logging=False, **options)
            return
        except Exception as error:
            ray.shutdown()  # what has come up goes down again
            if not tries_left or SLOW_START not in str(error):
                raise
