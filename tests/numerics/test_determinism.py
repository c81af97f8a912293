"""The same bits: run after run, with any number of threads, from any thread of a process, with every threading layer."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from digest import JOBS, digest, on_threads

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    """What the kernels compute in this process, one job after the other."""
    return {job: digest(job) for job in JOBS}


def elsewhere(**environment: str) -> dict[str, Any]:
    """What `digest.py` prints in a process of its own."""
    path = os.pathsep.join([str(FOLDER), *sys.path])
    done = subprocess.run(
        [sys.executable, str(FOLDER / "digest.py")],
        env=os.environ | {"PYTHONPATH": path} | environment,
        check=True,
        stdout=subprocess.PIPE,
        timeout=200,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_in_other_processes_with_one_thread_and_two(threads: int, here: dict[str, str]) -> None:
    found = elsewhere(NUMBA_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
    assert found["threads"] == threads
    assert found["alone"] == here
    assert found["together"] == here


def test_same_bits_with_the_simplest_threading_layer(here: dict[str, str]) -> None:
    """numba without OpenMP and TBB ends the process when two threads enter it at once; kernels must take turns."""
    found = elsewhere(NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2")
    assert found["alone"] == here
    assert found["together"] == here


def test_same_bits_twice_and_from_four_threads(here: dict[str, str]) -> None:
    assert {job: digest(job) for job in JOBS} == here
    assert on_threads(4) == here
