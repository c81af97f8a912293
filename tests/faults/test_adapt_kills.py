"""Adaptation is killed in its trials, in its driver, in any of Ray's workers, and by Ctrl-C; one clip always crashes; 200 clips come at once."""

import csv
import random
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from adaptations import ADAPT, LOG, at_work_on, contents, prepared, start, tensors, workers

from fiag_dist.storage import open_storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
KILLS = 20
NUM = 6
MANY = 200


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Demo shards, and a run to start from."""
    return prepared(tmp_path_factory.mktemp("ready"), NUM)


def states(out: Path) -> dict[str, str]:
    with (out / "results.csv").open() as stream:
        return {row["name"]: row["state"] for row in csv.DictReader(stream)}


def gone(processes: list[psutil.Process]) -> None:
    """Waits until none of them runs any more, but for two agents of Ray's, which do no work and take their time."""
    _, alive = psutil.wait_procs(processes, timeout=60)
    left = []
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            left.append(process.name())
    assert not [name for name in left if not name.startswith(("ray::DashboardAgen", "ray::RuntimeEnvAg"))]


def test_20_kills_lose_nothing(ready: tuple[Path, Path], tmp_path: Path) -> None:
    config = tmp_path / "adapt.yaml"
    config.write_text(ADAPT.format(steps=60, checkpoint_every=10, retries=2))
    calm, out = tmp_path / "calm", tmp_path / "disturbed"
    assert start(*ready, calm, config).wait() == 0
    expected = tensors(calm)
    assert len(expected) == NUM
    rng, kills = random.Random(0), dict.fromkeys(("trial", "driver", "worker"), 0)
    finished: dict[str, dict[str, bytes]] = {}
    driver = start(*ready, out, config)
    while sum(kills.values()) < KILLS:
        time.sleep(rng.uniform(2, 8))
        for name in tensors(out):
            finished.setdefault(name, contents(out / name))
        if driver.poll() is not None:
            if len(tensors(out)) == NUM:  # all are done before all kills are: again, from nothing
                for name, files in finished.items():
                    assert contents(out / name) == files
                    (out / name / "done.json").unlink()
                finished = {}
            driver = start(*ready, out, config)
            continue
        kind = rng.choice(list(kills))
        family = psutil.Process(driver.pid).children(recursive=True)
        victims = {
            "trial": at_work_on(driver.pid, out),
            "worker": workers(driver.pid),
            "driver": [psutil.Process(driver.pid)],
        }
        if not victims[kind]:
            continue
        with suppress(psutil.NoSuchProcess):
            rng.choice(victims[kind]).kill()
            kills[kind] += 1
        if kind == "driver":
            driver.wait()
            gone(family)
    driver.wait()
    driver = start(*ready, out, config)
    assert driver.wait() == 0, (tmp_path / LOG).read_text()[-3000:]
    assert all(kills.values()), kills
    assert states(out) == dict.fromkeys(expected, "done")
    for name, files in finished.items():
        assert contents(out / name) == files, f"{name} was finished, and is another now"
    assert tensors(out) == expected


def test_ctrl_c_ends_cleanly_and_the_rest_is_done_later(ready: tuple[Path, Path], tmp_path: Path) -> None:
    config = tmp_path / "adapt.yaml"
    config.write_text(ADAPT.format(steps=60, checkpoint_every=10, retries=0))
    out = tmp_path / "stopped"
    driver = start(*ready, out, config)
    while not tensors(out):
        assert driver.poll() is None
        time.sleep(0.1)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) == 130
    gone(family)
    log = (tmp_path / LOG).read_text()
    assert "Traceback" not in log
    assert log.rstrip().endswith("fiag-dist: stopped by Ctrl-C")
    before = {name: contents(out / name) for name in tensors(out)}
    assert set(states(out).values()) == {"done", "missing"}
    assert start(*ready, out, config).wait() == 0
    assert set(states(out).values()) == {"done"}
    for name, files in before.items():
        assert contents(out / name) == files


def test_what_always_crashes_costs_the_others_nothing(ready: tuple[Path, Path], tmp_path: Path) -> None:
    config = tmp_path / "adapt.yaml"
    config.write_text(ADAPT.format(steps=60, checkpoint_every=10, retries=1))
    out = tmp_path / "crashing"
    driver = start(*ready, out, config)
    name = sorted(path.name for path in ready[0].iterdir() if path.is_dir())[2]
    crashes = 0
    while driver.poll() is None:
        for process in at_work_on(driver.pid, out / name):
            with suppress(psutil.NoSuchProcess):
                process.kill()
                crashes += 1
        time.sleep(0.05)
    assert driver.returncode == 1
    assert crashes == 2
    assert states(out) == {other: "failed" if other == name else "done" for other in states(out)}
    assert len(states(out)) == NUM
    log = (tmp_path / LOG).read_text()
    assert f"fiag-dist: {name} failed: its process was killed or crashed" in log
    assert len(re.findall(r": failed: ", log)) == 1


def test_identities_may_live_on_s3(ready: tuple[Path, Path], tmp_path: Path, url: str) -> None:
    config = tmp_path / "adapt.yaml"
    config.write_text(ADAPT.format(steps=20, checkpoint_every=5, retries=0))
    out, store = f"{url}/people", open_storage(f"{url}/people")
    driver = start(*ready, out, config)
    while not any("/work/checkpoints/" in path and path.endswith("COMMIT.json") for path in store.list()):
        assert driver.poll() is None, (tmp_path / LOG).read_text()
        time.sleep(0.5)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    gone(family)
    assert start(*ready, out, config).wait() == 0, (tmp_path / LOG).read_text()
    found = store.list()
    for name in ("identity.json", "identity.safetensors", "preview.mp4", "metrics.jsonl", "done.json"):
        assert sum(path.endswith(f"/{name}") for path in found) == NUM, name
    assert not any("/work/" in path for path in found)
    rows = list(csv.DictReader(store.read("results.csv").decode().splitlines()))
    assert [row["state"] for row in rows] == ["done"] * NUM
    assert b"data:image/jpeg" in store.read("summary.html")
    before = store.sizes()
    assert start(*ready, out, config).wait() == 0
    assert store.sizes() == before
    assert f"{NUM} done before, 0 to adapt" in (tmp_path / LOG).read_text()


def test_200_clips_leave_the_driver_small(tmp_path: Path) -> None:
    data, checkpoint = prepared(tmp_path, MANY, size=32)
    config = tmp_path / "adapt.yaml"
    config.write_text(ADAPT.format(steps=4, checkpoint_every=0, retries=0))
    out = tmp_path / "many"
    driver = start(data, checkpoint, out, config)
    me, sizes = psutil.Process(driver.pid), dict[int, float]()
    while driver.poll() is None:
        with suppress(psutil.Error):
            sizes[len(tensors(out))] = me.memory_info().rss / 2**20
        time.sleep(1)
    assert driver.returncode == 0, (tmp_path / LOG).read_text()[-3000:]
    assert list(states(out).values()) == ["done"] * MANY
    early = max(size for num, size in sizes.items() if MANY * 0.1 <= num < MANY * 0.3)
    late = max(size for num, size in sizes.items() if MANY * 0.7 <= num < MANY)
    print(f"driver: {early:.0f} MiB with 10 to 30 % of {MANY} done, {late:.0f} MiB with 70 % and more")
    assert late < early + 40
    lines = (tmp_path / LOG).read_text().splitlines()
    assert sum(": done after " in line for line in lines) == MANY
    assert len(lines) < 2.5 * MANY
