"""`fiag-dist runs ls`: what is said of a run is what can be known of it."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fiag_dist import cli, runs
from fiag_dist.dist.process import Process
from fiag_dist.errors import ConfigError
from fiag_dist.monitoring import status
from fiag_dist.storage import open_storage


def make(folder: Path, step: int = 0, loss: float | None = None, saved: int | None = None) -> Path:
    """A run folder with a record, and a committed checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("# torchrun\n")
    if step:
        lines = [{"step": step - 1, "loss/total": loss}, {"step": step, "eval/psnr_db/a": 30.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')
    if saved is not None:
        (folder / f"checkpoints/step-{saved:08d}").mkdir(parents=True)
        (folder / f"checkpoints/step-{saved:08d}/COMMIT.json").write_text("{}")
        (folder / f"checkpoints/step-{saved + 5:08d}/identities").mkdir(parents=True)  # never committed
        shutil.copytree(folder / f"checkpoints/step-{saved:08d}", folder / f"checkpoints/step-{saved + 9:08d}.bak")
    return folder


def say(folder: Path, **values: object) -> None:
    """The run's word, said by another machine ten hours ago unless `values` say otherwise."""
    said = (datetime.now(UTC) - timedelta(hours=10)).isoformat()
    word = status.Status(state="running", step=7, steps=100, host="node7", pid=1, born="1", said=said)
    (folder / status.FILE).write_text(json.dumps(asdict(replace(word, **values))))


def only(folder: Path) -> runs.Run:
    (found,) = runs.find(str(folder))
    return found


def test_a_run_that_says_how_it_ended_is_believed(tmp_path: Path) -> None:
    storage = open_storage(make(tmp_path / "a", step=50, loss=0.25, saved=40))
    with status.told(storage, Process(), 0, 100) as teller:
        assert only(tmp_path).state == "running"
        teller.say("stopped", 50)
    found = only(tmp_path)
    assert (found.name, found.state, found.step, found.steps, found.saved) == ("a", "stopped", 50, 100, 40)
    assert (found.loss, found.because) == (0.25, "by its own word")


def test_a_run_that_raises_says_why(tmp_path: Path) -> None:
    storage = open_storage(make(tmp_path / "a"))
    with pytest.raises(ValueError, match="far"), status.told(storage, Process(), 3, 100):
        raise ValueError("too far\nand more")
    found = only(tmp_path)
    assert (found.state, found.because, found.step) == ("failed", "ValueError: too far", 3)


def test_a_killed_run_has_crashed_although_it_never_said_so(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", step=3, loss=1.0)
    words = "import signal, sys; from fiag_dist.dist.process import Process; from fiag_dist.monitoring.status import Teller; "
    words += "from fiag_dist.storage import open_storage; Teller(open_storage(sys.argv[1]), Process(), 9).say('running', 2); "
    words += "print('said', flush=True); signal.pause()"
    run = subprocess.Popen([sys.executable, "-c", words, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout
        assert run.stdout.readline() == "said\n"
        assert (only(tmp_path).state, only(tmp_path).because) == ("running", f"process {run.pid} on this machine lives")
        with pytest.raises(ConfigError, match=f"is being trained already, by process {run.pid} of this machine"):
            status.refuse_a_second(open_storage(folder))
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    assert (only(tmp_path).state, only(tmp_path).step) == ("crashed", 3)
    status.refuse_a_second(open_storage(folder))  # whoever died goes on


def test_a_process_number_that_is_used_again_is_not_the_run(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    say(folder, host=platform.node(), pid=os.getpid(), born=status.born(os.getpid()))
    assert only(tmp_path).state == "running"
    say(folder, host=platform.node(), pid=os.getpid(), born="1")
    assert only(tmp_path).state == "crashed"


def test_of_another_machine_only_signs_of_life_are_known(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    say(folder)
    assert only(tmp_path).state == "silent"
    assert only(tmp_path).because == "last heard of 10 h ago, from node7"
    say(folder, every_s=5 * 3600.0)  # speaks every five hours: one word is missing, which says little
    assert only(tmp_path).state == "running"
    say(folder)
    (folder / "metrics.jsonl").write_text('{"step": 8, "loss/total": 0.5}\n')  # just now
    assert (only(tmp_path).state, only(tmp_path).step) == ("running", 8)


def test_ranks_other_than_the_first_say_nothing(tmp_path: Path) -> None:
    with status.told(open_storage(tmp_path), Process(rank=1, world=2), 0, 10) as teller:
        teller.say("stopped", 4)
    assert not any(tmp_path.iterdir())


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "old", step=50, loss=0.25, saved=40)
    say(make(tmp_path / "done", step=100, loss=0.125), state="finished", step=100)
    make(tmp_path / "not_a_run" / "deeper")
    assert cli.main(["runs", "ls", str(tmp_path)]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:5] == ["run", "state", "step", "checkpoint", "loss"]
    by_name = {line.split()[0]: line.split() for line in lines}
    assert set(by_name) == {"old", "done"}
    assert by_name["old"][1:5] == ["unknown", "50", "40", "0.25"]
    assert by_name["done"][1:6] == ["finished", "100/100", "100%", "-", "0.125"]
    assert cli.main(["runs", "ls", str(tmp_path / "old")]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("old ")


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", "ls", str(tmp_path)]) == 2
    assert "no runs in it; give the folder that --runs named" in capsys.readouterr().err
