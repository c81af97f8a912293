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
KILLS = {"trial": 8, "driver": 6, "worker": 6}
AGENTS = ("ray::DashboardAgen", "ray::RuntimeEnvAg")
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
    end = time.monotonic() + 60
    while left := [name for name in map(name_of, processes) if not name.startswith(AGENTS)]:
        assert time.monotonic() < end, left
        time.sleep(0.2)


def name_of(process: psutil.Process) -> str:
    """An agent's for who is not there any more."""
    try:
        return process.name() if process.is_running() and process.status() != psutil.STATUS_ZOMBIE else AGENTS[0]
    except psutil.NoSuchProcess:
        return AGENTS[0]


def victims(kind: str, driver: int, out: Path) -> list[psutil.Process]:
    """Whom a kill of that kind may hit now."""
    if kind == "driver":
        return [psutil.Process(driver)]
    return at_work_on(driver, out) if kind == "trial" else workers(driver)


def test_20_kills_lose_nothing(ready: tuple[Path, Path], tmp_path: Path) -> None:
    config = tmp_path / "adapt.yaml"
    config.write_text(ADAPT.format(steps=60, checkpoint_every=10, retries=2))
    calm, out = tmp_path / "calm", tmp_path / "disturbed"
    assert start(*ready, calm, config).wait() == 0
    expected = tensors(calm)
    assert len(expected) == NUM
    chance = random.Random(0)
    kinds = chance.sample(list(KILLS), counts=list(KILLS.values()), k=sum(KILLS.values()))
    finished: dict[str, dict[str, bytes]] = {}
    driver = start(*ready, out, config)
    while kinds:
        if driver.poll() is not None:
            if len(tensors(out)) == NUM:  # all are done before all kills are: again, from nothing
                check_untouched(out, finished)
                for name in finished:
                    (out / name / "done.json").unlink()
                finished = {}
            driver = start(*ready, out, config)
        for name in tensors(out):
            finished.setdefault(name, contents(out / name))
        if not victims(kinds[-1], driver.pid, out):
            time.sleep(0.1)
            continue
        time.sleep(chance.uniform(0, 25 if kinds[-1] == "driver" else 3))
        if driver.poll() is not None or not (found := victims(kinds[-1], driver.pid, out)):
            continue
        family = psutil.Process(driver.pid).children(recursive=True)
        with suppress(psutil.NoSuchProcess):
            chance.choice(found).kill()
            if kinds.pop() == "driver":
                driver.wait()
                gone(family)
    driver.wait()
    assert start(*ready, out, config).wait() == 0, (tmp_path / LOG).read_text()[-3000:]
    assert states(out) == dict.fromkeys(expected, "done")
    check_untouched(out, finished)
    assert tensors(out) == expected


def check_untouched(out: Path, finished: dict[str, dict[str, bytes]]) -> None:
    for name, files in finished.items():
        assert contents(out / name) == files, f"{name} was finished, and is another now"


def test_without_any_machine_left_it_ends_with_a_line(ready: tuple[Path, Path], tmp_path: Path) -> None:
    """Ray's node ends itself when an agent of its is killed; Tune would wait for another for ever."""
    config = tmp_path / "adapt.yaml"
    config.write_text(ADAPT.format(steps=60, checkpoint_every=10, retries=0))
    out = tmp_path / "lost"
    driver = start(*ready, out, config)
    while not at_work_on(driver.pid, out):
        assert driver.poll() is None
        time.sleep(0.1)
    next(process for process in workers(driver.pid) if process.name().startswith(AGENTS)).kill()
    assert driver.wait(120) == 2
    log = (tmp_path / LOG).read_text()
    assert "fiag-dist: Ray has lost its last machine" in log.splitlines()[-1]
    assert "Traceback" not in log
    assert start(*ready, out, config).wait() == 0
    assert set(states(out).values()) == {"done"}


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_signal_ends_it_cleanly_and_the_rest_is_done_later(
    ready: tuple[Path, Path], tmp_path: Path, number: int, status: int, said: str
) -> None:
    config = tmp_path / "adapt.yaml"
    config.write_text(ADAPT.format(steps=60, checkpoint_every=10, retries=0))
    out = tmp_path / "stopped"
    driver = start(*ready, out, config)
    while not tensors(out):
        assert driver.poll() is None
        time.sleep(0.1)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(number)
    assert driver.wait(60) == status
    gone(family)
    log = (tmp_path / LOG).read_text()
    assert "Traceback" not in log
    assert log.rstrip().endswith(f"fiag-dist: stopped by {said}")
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
    killed = set()  # on a busy machine one that was killed is seen again before it has gone
    while driver.poll() is None:
        for process in at_work_on(driver.pid, out / name):
            with suppress(psutil.NoSuchProcess):
                process.kill()
                killed.add(process.pid)
        time.sleep(0.05)
    assert driver.returncode == 1
    assert len(killed) == 2
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
