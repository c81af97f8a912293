"""`fiag-dist runs ls` of runs that live on a real S3 server."""

import json

import pytest
from fault_proxy import Proxy

from fiag_dist import cli
from fiag_dist.dist.checkpoint import COMMIT, FOLDER
from fiag_dist.dist.process import Process
from fiag_dist.status import told
from fiag_dist.storage import open_storage


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
