"""Compiled code comes from the cache, quickly, and so it does where a kind of input was never seen before."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fiag_dist.kernels.launch import launch
from fiag_dist.kernels.warm import warm

TIMES = """
import json, time
start = time.perf_counter()
import torch, numba, jaxtyping
libraries = time.perf_counter()
from fiag_dist.images import raster
from fiag_dist.kernels import grid, projection, ssim, warm
imported = time.perf_counter()
warm.warm()
loaded = time.perf_counter()
print(json.dumps({"libraries": libraries - start, "own": imported - libraries, "first": loaded - imported}))
"""
KERNEL = """
from numba import njit

@njit(cache=True)
def total(values):
    return values.sum()
"""


def test_kernels_load_within_a_second_on_top_of_the_libraries() -> None:
    """Importing the kernels, and every kernel's first call out of the cache, against `import torch, numba, jaxtyping` (2 s on the same machine)."""
    warm()
    path = os.pathsep.join(sys.path)
    out = subprocess.check_output([sys.executable, "-c", TIMES], env=os.environ | {"PYTHONPATH": path}, text=True)
    seconds = json.loads(out)
    assert seconds["own"] < 0.25 * seconds["libraries"], seconds
    assert seconds["first"] < max(1.0, 1.5 * seconds["libraries"]), seconds


def test_new_kind_of_input_is_compiled_elsewhere_and_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Freshly compiled code rounds differently from what is read back: no process may compute with it."""
    (tmp_path / "small_kernel.py").write_text(KERNEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    total = importlib.import_module("small_kernel").total
    assert launch(total, np.ones(5, np.float32)) == 5
    assert launch(total, np.ones(6, np.float32)) == 6
    assert sum(total.stats.cache_hits.values()) == 1
    assert sum(total.stats.cache_misses.values()) == 0
    assert capfd.readouterr().err.count("compiling small_kernel.total") == 1


def test_of_two_processes_that_start_at_once_one_compiles(tmp_path: Path) -> None:
    (tmp_path / "small_kernel.py").write_text(KERNEL)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    code = "import numpy, small_kernel; from fiag_dist.kernels.launch import launch; print(launch(small_kernel.total, numpy.ones(5, numpy.float32)))"
    words, both = [sys.executable, "-c", code], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(words, env=os.environ | {"PYTHONPATH": path}, text=True, **both) for _ in range(2)]
    said = [process.communicate(timeout=200) for process in processes]
    assert [out.strip() for out, _ in said] == ["5.0", "5.0"], said
    assert sum(error.count("compiling small_kernel.total") for _, error in said) == 1
