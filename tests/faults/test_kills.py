"""SIGKILL at any moment: torchrun starts the ranks again, they go on from the newest commit, and the end is that of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from fiag_dist.dist import checkpoint
from fiag_dist.storage import Storage, open_storage

ROOT = Path(__file__).parents[2]
SETTINGS = """
data: {data}
runs: {runs}
name: {name}
train:
  steps: {steps}
  frames_per_step: 2
  log_every: 5
  images_every: 0
  checkpoint_every: {every}
  loss: {{lpips: 0.0}}
  stages: {{landmark_steps: 5}}
  density: {{start: 8, every: 8, grad_face: 1.0e-5, grad_mouth: 1.0e-5}}
  model:
    field: {{num_face: 300, num_mouth: 60, capacity_face: 350, capacity_mouth: 80}}
"""
LANDMARK_STEPS = 5
STEPS = 300
KILLS = 25


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small demo identities."""
    out = tmp_path_factory.mktemp("demo")
    make = [sys.executable, ROOT / "shards/make_demo.py", "--out", out, "--identities", "2"]
    subprocess.run([*make, "--seconds", "1.2", "--size", "32"], check=True, timeout=280, env=environment())
    return out


def environment() -> dict[str, str]:
    """That of launch/pretrain.sh: a start has a store of its own."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return os.environ | own


@dataclass
class Job:
    """torchrun with two ranks, which restarts them as often as they are killed."""

    config: Path
    restarts: int
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        words += [f"--max-restarts={self.restarts}", "--monitor-interval=0.2", "-m", "fiag_dist.pretrain"]
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*words, str(self.config)], cwd=ROOT, env=environment(), stdout=stream, stderr=stream
            )

    def workers(self) -> list[int]:
        """Process ids of the ranks that live now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if self.process.poll() is None else []

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def write_config(folder: Path, name: str, **settings: object) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(SETTINGS.format(name=name, **settings))
    return path


def commits(run: Storage) -> list[int]:
    """Steps of all committed checkpoints."""
    found = [path.split("/")[1] for path in run.list(checkpoint.FOLDER) if path.endswith(checkpoint.COMMIT)]
    return sorted(int(name.removeprefix("step-")) for name in found)


def assert_readable(run: Storage) -> None:
    """Every file that a commit names is there, whole."""
    for step in commits(run):
        found = checkpoint.load(run, f"{checkpoint.FOLDER}/step-{step:08d}")
        assert found.shared
        assert found.optim
        assert all(found.identities[name] for name in found.identities)
        assert len(found.identities) == 2


def tensors(run: Storage, step: int) -> dict[str, torch.Tensor]:
    """All of a checkpoint, by file and name."""
    folder = f"{checkpoint.FOLDER}/step-{step:08d}"
    files = [path for path in run.list(folder) if path.endswith(".safetensors")]
    return {f"{path}:{name}": tensor for path in files for name, tensor in load(run.read(path)).items()}


def wait_for_moment(job: Job, run: Storage, chance: random.Random) -> str:
    """Returns at a random moment of a start, of the steps after a save, or of a save -> which of them it is."""
    moment = chance.choice(["start", "step", "save", "save"])
    if moment == "start":
        time.sleep(chance.uniform(0.0, 6.0))
        return moment
    before, end = run.list(checkpoint.FOLDER), time.monotonic() + 600
    while run.list(checkpoint.FOLDER) == before and job.process.poll() is None:
        assert time.monotonic() < end, f"no progress\n{job.said()[-5000:]}"
        time.sleep(0.02)
    time.sleep(chance.uniform(0.0, 1.5 if moment == "step" else 0.1))
    return moment


def kill_again_and_again(job: Job, run: Storage, kills: int, seed: int) -> dict[str, int]:
    """Kills one rank, or both, at random moments, and reads all that is committed -> how often at which."""
    chance = random.Random(seed)
    done: dict[str, int] = dict.fromkeys(("start", "step", "save"), 0)
    while sum(done.values()) < kills:
        moment = wait_for_moment(job, run, chance)
        victims = job.workers()
        if job.process.poll() is not None:
            break
        chosen = chance.sample(victims, min(len(victims), chance.choice([1, 1, 2])))
        for victim in chosen:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        while set(job.workers()) & set(chosen) and job.process.poll() is None:
            time.sleep(0.05)
        done[moment] += bool(chosen)
        assert_readable(run)
    return done


def run_with_kills(config: Path, url: str, kills: int, seed: int) -> dict[str, int]:
    job = Job(config, restarts=2 * kills, log=config.with_suffix(".log"))
    try:
        done = kill_again_and_again(job, open_storage(url), kills, seed)
        assert job.process.wait(280) == 0, job.said()[-5000:]
    finally:
        job.process.kill()
        for worker in job.workers():
            os.kill(worker, signal.SIGKILL)
    return done


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_kills_at_random_moments_change_no_bit(
    shards: Path, tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    """25 on disk and 25 on S3, half of them while a save is under way."""
    runs = str(tmp_path) if place == "disk" else request.getfixturevalue("url")
    settings = {"data": shards, "runs": runs, "steps": STEPS, "every": 5}
    calm = Job(write_config(tmp_path, "calm", **settings), 0, tmp_path / "calm.log")
    assert calm.process.wait(600) == 0, calm.said()[-5000:]
    done = run_with_kills(write_config(tmp_path, "killed", **settings), f"{runs}/killed", KILLS, seed=len(place))
    print(f"{place}: killed at {done}")
    assert sum(done.values()) == KILLS
    left, right = (tensors(open_storage(f"{runs}/{name}"), STEPS + LANDMARK_STEPS) for name in ("calm", "killed"))
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
