"""Runs that live on a real S3 server: `fiag-dist runs ls`, and the record of one that goes from machine to machine."""

import json
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from fault_proxy import Proxy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fiag_dist import cli
from fiag_dist.config import PretrainConfig
from fiag_dist.configfile import load
from fiag_dist.dist.checkpoint import COMMIT, FOLDER
from fiag_dist.dist.process import Process
from fiag_dist.errors import DataError
from fiag_dist.monitoring import board
from fiag_dist.monitoring.mirror import Mirror
from fiag_dist.monitoring.monitor import Monitor
from fiag_dist.monitoring.status import told
from fiag_dist.storage import S3Storage, open_storage


def test_runs_on_s3_are_listed(url: str, proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    for name, state in (("one", "stopped"), ("two", "finished")):
        run = open_storage(f"{url}/{name}")
        run.write("config.yaml", b"# torchrun\n")
        run.write("metrics.jsonl", (json.dumps({"step": 30, "loss/total": 0.5}) + "\n").encode())
        run.write(f"{FOLDER}/step-00000020/{COMMIT}", b"{}")
        run.write(f"{FOLDER}/step-00000030/shared.safetensors", b"never committed")
        with told(run, Process(), 0, 40) as teller:
            teller.say(state, 30)
    assert cli.main(["runs", "ls", url]) == 0
    rows = sorted(line.split()[:6] for line in capsys.readouterr().out.splitlines()[1:])
    assert rows == [
        ["one", "stopped", "30/40", "75%", "20", "0.5"],
        ["two", "finished", "30/40", "75%", "20", "0.5"],
    ]


def test_settings_of_a_run_on_s3_are_read(url: str) -> None:
    open_storage(f"{url}/one").write("config.yaml", b"# torchrun\ntrain: {steps: 7}\n")
    assert load(PretrainConfig, [f"{url}/one/config.yaml"]).train.steps == 7
    with pytest.raises(DataError, match=f"{url}/two/config.yaml: no such file"):
        load(PretrainConfig, [f"{url}/two/config.yaml"])


def test_an_identity_is_copied_last_file_last(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIAG_CACHE", str(tmp_path))
    mirror, copied = Mirror(f"{url}/anna", Process()), []
    for name in ("identity.json", "identity.safetensors", "preview.mp4", "tb/events"):
        open_storage(mirror.folder).write(name, b"made")
    write = S3Storage.write
    monkeypatch.setattr(S3Storage, "write", lambda self, name, data: copied.append(name) or write(self, name, data))
    mirror.publish()
    assert copied == ["identity.safetensors", "preview.mp4", "tb/events", "identity.json"]


def test_what_was_deleted_or_replaced_there_does_not_come_back(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody takes their agreement back, or is adapted on another machine: what lies here of before says nothing any more."""
    monkeypatch.setenv("FIAG_CACHE", str(tmp_path))
    home, mirror = open_storage(f"{url}/anna"), Mirror(f"{url}/anna", Process())
    here = open_storage(mirror.folder)
    for name in ("identity.json", "identity.safetensors", "tb/events.1", "logs/rank0.log"):
        here.write(name, b"first")
    mirror.publish()
    home.write("identity.safetensors", b"from another machine")
    again = Mirror(home.url, Process())
    again.publish()
    assert home.read("identity.safetensors") == b"from another machine"
    assert home.read("tb/events.1") == b"first"
    home.delete("")
    anew = Mirror(home.url, Process())
    here.write("tb/events.2", b"second")
    anew.publish()
    assert home.list() == ["tb/events.2"]
    assert here.list() == ["tb/events.2"]


def test_what_tensorboard_shows_is_copied_once(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not whole again at each checkpoint; the copy holds all of it."""
    monkeypatch.setenv("FIAG_CACHE", str(tmp_path))
    monkeypatch.setattr(board, "FULL_BYTES", 20_000)
    write, sent = S3Storage.write, dict[str, list[int]]()
    monkeypatch.setattr(
        S3Storage,
        "write",
        lambda self, name, data: sent.setdefault(name, []).append(len(data)) or write(self, name, data),
    )
    mirror, now = Mirror(f"{url}/run", Process()), time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    picture = board.png(np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8))
    with closing(Monitor(mirror.folder, Process())) as monitor:
        for step in range(1, 11):
            now += 1
            monitor.add(step, {"loss/total": 1.0}, every=1)
            monitor.pictures(step, {"identities/anna": picture})
            monitor.add(step, {"eval/psnr_db/anna": 30.0}, every=1)
            mirror.publish()
    mirror.publish()
    events = [sizes for name, sizes in sent.items() if name.startswith("tb/")]
    whole = sum(sizes[-1] for sizes in events)
    assert whole > 10 * len(picture)
    assert sum(map(sum, events)) < 1.2 * whole
    copy = tmp_path / "copy"
    for name in open_storage(f"{url}/run").list("tb"):
        open_storage(copy).write(name, open_storage(f"{url}/run").read(name))
    shown = EventAccumulator(str(copy / "tb"), size_guidance={"images": 0}).Reload()
    assert [e.step for e in shown.Images("identities/anna")] == [*range(1, 11)]


def test_a_run_that_moves_and_comes_back_keeps_all_of_its_record(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = open_storage(f"{url}/run"), []
    for visit, (machine, resume) in enumerate((("a", 0), ("b", 3), ("b", 6), ("b", 9), ("a", 12))):
        monkeypatch.setenv("FIAG_CACHE", str(tmp_path / machine))
        mirror = Mirror(run.url, Process())
        with closing(Monitor(mirror.folder, Process(), resume)) as monitor:
            for step in range(resume + 1, resume + 4):
                monitor.add(step, {"loss/total": 1.0}, every=1)
            mirror.publish()
            said.append(f"visit {visit} ended here")
            monitor.say(said[-1])
        if visit < 2:  # later last words stay on their machine, until it goes on itself
            mirror.publish()
    assert [json.loads(line)["step"] for line in run.read("metrics.jsonl").splitlines()] == [*range(1, 16)]
    log = run.read("logs/rank0.log").decode()
    assert [line for line in said if line in log] == said[:3]
    assert len(run.children("tb")) == 5
