"""kill -9 and Ctrl-C at any moment of packing, on disk and on S3: nothing is left running, and the next run ends with the bytes of an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import clipmaker
import numpy as np
import psutil
import pytest
from fault_proxy import Proxy

from fiag_dist.cluster import start_ray
from fiag_dist.storage import open_storage
from fiag_dist.storage.local import TEMPORARY

pytestmark = [pytest.mark.weights, pytest.mark.clips]

ROOT = Path(__file__).parents[2]
QUICK = ("--extractor", "mel", "--size", "128", "--min-seconds", "0.7", "--frames-per-shard", "8")
WRITES = 15
"""Files of an undisturbed run: three shards and four others of each of two clips, and the manifest."""
GONE_S = 20.0
"""After so long nothing of a killed run is at work."""
AT_WORK = ("ray::_task", "raylet", "gcs_server")
"""What packs, and what could start more that does; Ray's agents, which look for their parent now and then, may last a minute longer."""
STOP_S = 10.0
"""Ctrl-C takes no longer."""

Victim = Literal["group", "driver", "worker"]


@pytest.fixture(scope="module")
def pair(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of 20 frames."""
    images, wav = clipmaker.frames_of(clips / "speaker_b.mp4", 1.2)
    folder = tmp_path_factory.mktemp("pair")
    clipmaker.write(folder / "a.mp4", images[:20], wav)
    clipmaker.write(folder / "b.mp4", images[5:25], wav)
    return folder


@pytest.fixture(scope="module")
def calm(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run leaves."""
    out = tmp_path_factory.mktemp("calm") / "out"
    finish(start(pair, out))
    return contents(out)


def contents(out: Path | str) -> dict[str, bytes]:
    """Every file, but for the timings in the reports."""
    storage = open_storage(str(out))
    files = {path: storage.read(path) for path in storage.list()}
    for name in files:
        if name.endswith("report.json"):
            report = json.loads(files[name])
            del report["timings"]
            files[name] = json.dumps(report).encode()
    return files


def start(clips: Path, out: Path | str, *more: str) -> subprocess.Popen[str]:
    """A run in a process group of its own, as a shell starts it."""
    words = [sys.executable, "-m", "fiag_dist.cli", "pack", str(clips), "--out", str(out), *QUICK, *more]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    )


def finish(run: subprocess.Popen[str]) -> str:
    stdout, stderr = run.communicate(timeout=240)
    assert run.returncode == 0, stdout + stderr
    assert stderr == ""
    return stdout


def wait(run: subprocess.Popen[str], due: Callable[[], bool]) -> bool:
    """Until it is due; False when the run ends before."""
    while run.poll() is None:
        if due():
            return True
        time.sleep(0.01)
    return False


def kill(run: subprocess.Popen[str], victim: Victim, ray_of: int) -> None:
    """Without warning: the command with what is in its group, the command alone, or one of its workers (nothing, where none is at work)."""
    mine = [child for child in psutil.Process(run.pid).children(recursive=True) if child.name().startswith(AT_WORK)]
    if victim == "worker":
        family = psutil.Process(ray_of).children(recursive=True)
        for worker in [child for child in family if child.name().startswith("ray::_task")][:1]:
            worker.kill()
        return
    if victim == "group":
        os.killpg(run.pid, signal.SIGKILL)
    else:
        run.kill()
    run.communicate()
    _, alive = psutil.wait_procs(mine, timeout=GONE_S)
    assert not alive, "what a killed run leaves at work"


def files_since(out: Path) -> Callable[[], int]:
    """Counts the files that are written into a folder from now on."""
    began = time.time()
    return lambda: sum(path.is_file() and path.stat().st_mtime >= began for path in out.rglob("*"))


def kill_twenty_times(
    begin: Callable[[], subprocess.Popen[str]],
    written: Callable[[], Callable[[], int]],
    out: Path | str,
    calm: dict[str, bytes],
    ray_of: Callable[[subprocess.Popen[str]], int],
) -> None:
    """Kills before a random one of its writes, again and again; every run that comes to its end must have the same contents."""
    rng, killed = np.random.default_rng(0), 0
    while killed < 20:
        victim: Victim = ("group", "worker", "group", "driver")[killed % 4]
        writes, delay = int(rng.integers(WRITES)), float(rng.uniform(0, 0.1))
        so_far, run = written(), begin()
        if wait(run, lambda so_far=so_far, writes=writes: so_far() >= writes):
            time.sleep(delay if writes else float(rng.uniform(0, 10)))
            kill(run, victim, ray_of(run))
            killed += 1
            print(f"kill {killed}: {victim} after {writes} writes", flush=True)
        if victim == "worker" or run.returncode == 0:
            finish(run)
            assert contents(out) == calm
            open_storage(str(out)).delete("")
    finish(begin())
    assert contents(out) == calm


def test_killed_the_next_run_goes_on(pair: Path, calm: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = start(pair, out, "--jobs", "1")
    assert wait(run, lambda: any(out.glob("b/*.tar"))), "in the middle of the second clip's files"
    kill(run, "group", run.pid)
    first = (out / "a" / "entry.json").stat().st_mtime_ns
    assert "a: unchanged, skipped" in finish(start(pair, out))
    assert (out / "a" / "entry.json").stat().st_mtime_ns == first, "what is finished is kept"
    assert contents(out) == calm


@pytest.mark.slow
def test_stopped_by_ctrl_c_it_says_what_is_finished_and_leaves_nothing(pair: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = start(pair, out, "--jobs", "1")
    assert wait(run, (out / "a" / "entry.json").exists)
    mine, began = psutil.Process(run.pid).children(recursive=True), time.monotonic()
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    stdout, stderr = run.communicate(timeout=60)
    assert time.monotonic() - began < STOP_S
    assert run.returncode == 130
    assert "stopped: 1 of 2 clips are finished" in stdout.splitlines()[-1]
    assert stderr == "fiag-dist: stopped by Ctrl-C\n"
    assert not psutil.wait_procs(mine, timeout=GONE_S)[1]
    assert not list(out.rglob(f"{TEMPORARY}*"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_twenty_times_on_disk(pair: Path, calm: dict[str, bytes], tmp_path: Path) -> None:
    """Each run has a Ray of its own, which must go with it."""
    out = tmp_path / "out"
    kill_twenty_times(lambda: start(pair, out), lambda: files_since(out), out, calm, lambda run: run.pid)


@pytest.fixture
def cluster(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray that outlives the runs; it knows the S3 server."""
    import ray

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    start_ray()
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_twenty_times_on_s3(pair: Path, calm: dict[str, bytes], url: str, proxy: Proxy, cluster: str) -> None:
    """The runs work on a Ray that is there: their tasks must end with them."""

    def puts() -> Callable[[], int]:
        proxy.calm()
        return lambda: proxy.count("^PUT")

    kill_twenty_times(lambda: start(pair, url, "--address", cluster), puts, url, calm, lambda run: os.getpid())
