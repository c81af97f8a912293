"""The record of a run: means and states, nothing twice after a resume, and pictures in TensorBoard."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fiag_dist import monitor
from fiag_dist.dist.process import Process
from fiag_dist.monitor import Clock, Monitor


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def run(folder: Path, begin: int, end: int, every: int = 2) -> None:
    watch = Monitor(folder, Process(), resume_step=begin, steps=end)
    for step in range(begin + 1, end + 1):
        watch.add(step, {"loss/total": float(step), "field/num_gaussians": 10 * step}, every)
    watch.close()


def test_floats_are_averaged_and_ints_are_the_last(tmp_path: Path) -> None:
    run(tmp_path, 0, 5)
    assert records(tmp_path) == [
        {"step": 2, "field/num_gaussians": 20, "loss/total": 1.5},
        {"step": 4, "field/num_gaussians": 40, "loss/total": 3.5},
    ]
    found = events(tmp_path / "tb")
    assert [(e.step, e.value) for e in found.Scalars("loss/total")] == [(2, 1.5), (4, 3.5)]
    assert [(e.step, e.value) for e in found.Scalars("field/num_gaussians")] == [(2, 20.0), (4, 40.0)]


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    watch = Monitor(tmp_path, Process())
    watch.add(1, {"a": math.nan, "b": math.inf, "c": 1.0}, 2)
    watch.add(2, {"a": 3.0, "b": math.nan}, 2)
    watch.close()
    assert records(tmp_path) == [{"step": 2, "a": 3.0, "b": None, "c": 1.0}]
    assert "b" not in events(tmp_path / "tb").Tags()["scalars"]


def test_a_resumed_run_records_nothing_twice(tmp_path: Path) -> None:
    run(tmp_path, 0, 8)
    with (tmp_path / "metrics.jsonl").open("a") as record:
        record.write('{"step": 9, "loss/to')  # cut off by a crash
    run(tmp_path, 4, 10)
    assert [line["step"] for line in records(tmp_path)] == [2, 4, 6, 8, 10]
    assert [e.step for e in events(tmp_path / "tb").Scalars("loss/total")] == [2, 4, 6, 8, 10]
    run(tmp_path, 0, 4)
    assert [line["step"] for line in records(tmp_path)] == [2, 4]


def test_pictures_reach_tensorboard(tmp_path: Path) -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[..., 0] = 200
    watch = Monitor(tmp_path, Process())
    watch.images(3, "identities/anna", picture)
    watch.close()
    (found,) = events(tmp_path / "tb").Images("identities/anna")
    assert (found.step, found.width, found.height) == (3, 6, 4)


def test_the_line_shows_progress_and_what_matters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = Monitor(tmp_path, Process(), steps=200)
    watch.add(50, {"loss/total": 0.1234567, "time/step_ms": 40.0, "rate/[red]": 1.0}, 50)
    watch.say("a [bold]line[/bold]")
    watch.close()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("step 50/200 25% | total 0.1235 | step_ms 40 | left 0:00:0")
    assert said[1] == "a [bold]line[/bold]"
    log = (tmp_path / "logs/rank0.log").read_text()
    assert all(line in log for line in said)


def test_another_rank_keeps_its_log_and_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = Monitor(tmp_path, Process(rank=1, world=2))
    watch.say("rank 1 was here")
    watch.images(1, "identities/bob", np.zeros((2, 2, 3), np.uint8))
    watch.close()
    assert capsys.readouterr().out == ""
    assert "rank 1 was here" in (tmp_path / "logs/rank1.log").read_text()
    assert not (tmp_path / "metrics.jsonl").exists()
    assert events(tmp_path / "tb/rank1").Images("identities/bob")


def test_ranks_are_merged_by_their_counts() -> None:
    gathered = [
        ({"loss/total": (6.0, 2), "memory/peak_mib": (100.0, 2), "eval/a": (1.0, 1)}, {"n": 1}),
        ({"loss/total": (1.0, 1), "memory/peak_mib": (300.0, 1), "x": (0.0, 0)}, {"n": 2, "m": 3}),
    ]
    assert monitor._merge(gathered) == {
        "eval/a": 1.0,
        "loss/total": 7 / 3,
        "m": 3,
        "memory/peak_mib": 300.0,
        "n": 1,
        "x": None,
    }


def test_the_clock_tells_data_from_work() -> None:
    clock = Clock()
    with clock.data():
        time.sleep(0.06)
    time.sleep(0.02)
    tags = clock.step(num_frames=4)
    assert 80 <= tags["time/step_ms"] < 400
    assert 30 < tags["time/data_pct"] < 100
    assert tags["throughput/frames_per_s"] == pytest.approx(4000 / tags["time/step_ms"])
    assert tags["memory/peak_mib"] > 50
    again = clock.step(num_frames=4)
    assert again["time/data_pct"] == 0
