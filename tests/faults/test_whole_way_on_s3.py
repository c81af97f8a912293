"""The commands as a user runs them, with everything on S3 and a connection that fails again and again."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_proxy import Fault, Proxy, always, at_random, every_third

from fiag_dist.dist import checkpoint
from fiag_dist.shards.manifest import FILE, read_manifest
from fiag_dist.storage import open_storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
CLIP_SECONDS = "3"
TINY = """
data: {data}
runs: {runs}
name: far
train:
  steps: 12
  frames_per_step: 2
  log_every: 4
  images_every: 100
  checkpoint_every: 6
  stages: {{landmark_steps: 2}}
  model:
    field: {{num_face: 600, num_mouth: 100, capacity_face: 700, capacity_mouth: 140}}
"""
ADAPT = """
train:
  steps: 6
  frames_per_step: 1
  log_every: 2
  images_every: 0
  checkpoint_every: 6
  stages: {landmark_steps: 1}
  loss: {triplet: 0.0, contrast: 0.0}
"""
PASSING = (
    Fault("status"),
    Fault("status", status=500, code="InternalError"),
    Fault("lost answer"),
    Fault("cut answer"),
)


def start(*words: str | Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    )


def run(*words: str | Path) -> str:
    process = start(*words)
    printed = process.communicate(timeout=280)[0]
    assert process.returncode == 0, printed
    return printed


@pytest.mark.clips
@pytest.mark.weights
def test_a_clip_is_packed_to_the_same_bytes_as_on_disk(clips: Path, url: str, tmp_path: Path, proxy: Proxy) -> None:
    clip = next(iter(sorted(clips.glob("anchor*.mp4"))), None) or next(iter(sorted(clips.glob("*.mp4"))))
    proxy.calm()
    proxy.choose = every_third(".", Fault("lost answer"))
    pack = ("-m", "fiag_dist.cli", "pack", clip, "--max-seconds", CLIP_SECONDS, "--out")
    run(*pack, url)
    run(*pack, tmp_path / "near")
    assert open_storage(url).read(FILE) == open_storage(tmp_path / "near").read(FILE)
    proxy.choose = at_random(0, 0.3, *PASSING)
    assert "all 1 identities are whole" in run("-m", "fiag_dist.cli", "shards", "verify", url)
    assert "unchanged" in run(*pack, url)


def test_training_and_adaptation_read_their_shards_through_faults(url: str, tmp_path: Path, proxy: Proxy) -> None:
    run("shards/make_demo.py", "--out", url, "--identities", "3", "--seconds", "1", "--size", "64")
    for name, data in (("near", tmp_path / "near"), ("far", url)):
        if name == "near":
            for path in (far := open_storage(url)).list():
                open_storage(data).write(path, far.read(path))
        (tmp_path / f"{name}.yaml").write_text(TINY.format(data=data, runs=tmp_path / name))
    run("-m", "fiag_dist.cli", "pretrain", tmp_path / "near.yaml")
    proxy.calm()
    proxy.choose = at_random(1, 0.3, *PASSING)
    run("-m", "fiag_dist.cli", "pretrain", tmp_path / "far.yaml")
    assert sum(fault is not None for _, fault in proxy.seen) >= 5
    step = "far/checkpoints/step-00000012"
    for file in (checkpoint.SHARED, checkpoint.OPTIM):
        assert (tmp_path / "near" / step / file).read_bytes() == (tmp_path / "far" / step / file).read_bytes()
    (tmp_path / "there.yaml").write_text(TINY.format(data=url, runs=f"{url}/runs"))
    for _ in range(2):  # a run that lives there, and the same again: it has ended
        run("-m", "fiag_dist.cli", "pretrain", tmp_path / "there.yaml")
    proxy.calm()  # the test's own look tries less often than a run does
    there = open_storage(f"{url}/runs/far")
    assert [line["step"] for line in map(json.loads, there.read("metrics.jsonl").splitlines())][-1] == 14
    assert any(name.startswith("events.out") for name in there.children("tb"))
    assert there.read("logs/rank0.log")
    assert not (ROOT / "s3:").exists()
    for copy in (tmp_path / "cache" / "objects").glob("*.tar"):
        copy.unlink()
    proxy.choose = at_random(2, 0.3, *PASSING)
    (tmp_path / "adapt.yaml").write_text(ADAPT)
    to = ("--from", tmp_path / "near" / "far", "--out", tmp_path / "people", "--config", tmp_path / "adapt.yaml")
    run("-m", "fiag_dist.cli", "adapt", url, *to, "--names", "demo_02")
    assert (tmp_path / "people" / "demo_02" / "identity.safetensors").is_file()
    assert proxy.count("^GET .*demo_02.*tar") >= 2
    proxy.choose = always("^GET .*demo_01-000000.tar", Fault("truncated"))
    for copy in (tmp_path / "cache" / "objects").glob("*demo_01*"):
        copy.unlink()
    (tmp_path / "again.yaml").write_text(TINY.format(data=url, runs=tmp_path / "again"))
    process = start("-m", "fiag_dist.cli", "pretrain", tmp_path / "again.yaml")
    printed = process.communicate(timeout=280)[0]
    assert process.returncode == 2
    errors = [line for line in printed.splitlines() if line.startswith("fiag-dist: ")]
    assert len(errors) == 1
    assert f"shard {url}/demo_01/demo_01-000000.tar: " in errors[0]
    assert "fiag-dist shards verify" in errors[0]
    assert "Traceback" not in printed


@pytest.mark.parametrize("seed", range(5))
def test_packing_that_is_killed_goes_on(url: str, proxy: Proxy, seed: int) -> None:
    """kill -9 at some request of an upload: nothing is named that is not whole, and the next run ends as an undisturbed one does."""
    make = ("shards/make_demo.py", "--out", url, "--identities", "3", "--seconds", "1", "--size", "32", "--jobs", "1")
    proxy.calm()
    proxy.choose = every_third("^PUT", Fault("stall request", seconds=2))
    process = start(*make)
    wanted = 1 + seed
    while process.poll() is None and proxy.count("^PUT") < wanted:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    proxy.calm()
    store = open_storage(url)
    if store.exists(FILE):
        read_manifest(store)
    run(*make)
    assert "all 3 identities are whole" in run("-m", "fiag_dist.cli", "shards", "verify", url)
