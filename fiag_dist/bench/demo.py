"""Packed demo people for benchmarks that need footage, made by the checkout's own shards/make_demo.py."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from fiag_dist.bench.benchmark import say
from fiag_dist.bench.machine import ROOT
from fiag_dist.errors import ConfigError, DataError

MAKER = ROOT / "shards" / "make_demo.py"
SECONDS = 2.0


@contextmanager
def demo_shards(identities: int, size: int, instead: str) -> Iterator[str]:
    """A temporary folder of shards, with frames of `size` pixels. `instead`: what to do where the maker is not there, for the error."""
    if not MAKER.is_file():
        raise ConfigError(f"{MAKER} is not there: demo people are made in a checkout of fiag_dist; {instead}")
    with tempfile.TemporaryDirectory(prefix="fiag-bench-") as folder:
        say(f"making {identities} demo people at {size} x {size}")
        words = ["--out", folder, "--identities", str(identities), "--seconds", str(SECONDS), "--size", str(size)]
        path = os.pathsep.join(
            [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        )  # this checkout's own package
        env = os.environ | {"PYTHONPATH": path}
        done = subprocess.run([sys.executable, str(MAKER), *words], capture_output=True, text=True, env=env)
        if done.returncode:
            raise DataError(f"{MAKER}: {(done.stderr.strip().splitlines() or ['it failed without a word'])[-1]}")
        yield folder
