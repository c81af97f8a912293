"""Which trials are tried again, and which of them by themselves, on a real Ray: trials are killed, run short of memory, and are refused."""

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import scripted_trials
from rich.console import Console

from fiag_dist import cluster
from fiag_dist.adaptation.job import Job
from fiag_dist.adaptation.resources import Needs
from fiag_dist.adaptation.standings import Standings
from fiag_dist.adaptation.tuning import run_all
from fiag_dist.cluster import start_ray
from fiag_dist.config import AdaptConfig
from fiag_dist.errors import DistributedError

TRIES = {"calm": 1, "killed once": 2, "always killed": 3, "short of memory once": 2, "damaged": 1}
"""Identity -> how often it is tried when two retries are allowed."""


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    import ray

    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parents[1]}")  # of the workers, who look for the trials
        start_ray()
    yield
    ray.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own, at start and end
def test_who_is_tried_again(ray_here: None, tmp_path: Path) -> None:
    import ray

    seen = ray.remote(num_cpus=0)(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert ray.get(seen.remote()) == "", "who asks for no GPU sees none"
    jobs = {name: Job(name, "", "", str(tmp_path / name), AdaptConfig(retries=2)) for name in TRIES}
    stream = io.StringIO()
    with Standings(list(jobs), Console(file=stream, width=200)) as standings:
        lost = run_all(jobs, scripted_trials.play, Needs(1, 0, 0), standings)
    tries = {name: sorted((tmp_path / name).glob("try*")) for name in TRIES}
    assert {name: len(found) for name, found in tries.items()} == TRIES
    assert set(lost) == {"always killed", "damaged"}
    assert lost["always killed"] == "its process was killed or crashed"
    assert lost["damaged"].startswith("shard damaged-000000.tar: 3 bytes")
    states = {name: row.state for name, row in standings.rows.items()}
    assert states == {name: "failed" if name in lost else "done" for name in TRIES}
    spans = {
        (n, k): [float(t) for t in path.read_text().split()]
        for n, found in tries.items()
        for k, path in enumerate(found)
    }
    alone = spans.pop(("short of memory once", 1))
    for (name, number), (began, *_) in spans.items():
        assert not alone[0] <= began <= alone[1], f"{name}, try {number}, began beside one that had run short of memory"
    text = stream.getvalue()
    assert "short of memory once: to be tried again: MemoryError" in text
    assert text.count("always killed: to be tried again") == 2
    assert "damaged: to be tried again" not in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nobody_waits_for_machines_that_are_gone(ray_here: None) -> None:
    """The last one here: it takes the machine from Ray."""
    import ray

    task = ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote()
    assert cluster.result_of(ray.remote(num_cpus=0)(lambda: "found").remote()) == "found"
    (raylet,) = [child for child in psutil.Process().children(recursive=True) if child.name() == "raylet"]
    raylet.kill()
    with pytest.raises(DistributedError, match="Ray has lost its last machine"):
        cluster.result_of(task)
