"""The loop around a step: what is done after which steps, and in which order."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fiag_dist.dist.process import Process
from fiag_dist.monitoring.monitor import Monitor
from fiag_dist.training import looks, loop


@dataclass
class Exercise:
    """Stands for a Training: six steps, a checkpoint after every second one, a look after every third."""

    config: Any = field(
        default_factory=lambda: SimpleNamespace(images_every=3, checkpoint_every=2, films_every=0, log_every=0)
    )
    step: int = 0
    lanes: int = 2
    feed: Any = field(default_factory=lambda: SimpleNamespace(next=lambda step: [], fps=25))
    engine: Any = field(default_factory=lambda: SimpleNamespace(talk=SimpleNamespace(take_s=lambda: 0.0)))
    learning: Callable[[], None] = lambda: None
    num: int = 6

    @property
    def done(self) -> bool:
        return self.step >= self.num

    def learn(self, lessons: list) -> dict[str, float]:
        self.learning()
        self.step += 1
        return {"loss/total": 1.0}


def done_by(training: Exercise, folder: Path, monkeypatch: pytest.MonkeyPatch, **others: Any) -> list[str]:
    """Which saves and looks a run makes, each with its step."""
    did: list[str] = []

    def look(training: Exercise, fps: int) -> looks.Looks:
        did.append(f"look {training.step}")
        return looks.Looks({}, {})

    monkeypatch.setattr(looks, "look", look)
    with closing(Monitor(folder, Process())) as monitor:
        loop.run(training, monitor, lambda: did.append(f"save {training.step}"), **others)
    return did


def test_a_save_comes_before_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run that can't end its look starts again before it, for ever."""
    training = Exercise(num=7)
    training.config.images_every = 2
    wanted = ["save 2", "look 2", "save 4", "look 4", "save 6", "look 6", "save 7", "look 7"]
    assert done_by(training, tmp_path, monkeypatch) == wanted


def test_each_is_done_when_it_is_due_and_both_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["save 2", "look 3", "save 4", "save 6", "look 6"]
    assert done_by(Exercise(), tmp_path / "whole", monkeypatch) == wanted
    training = Exercise()
    stopped = done_by(training, tmp_path / "cut", monkeypatch, stopped=lambda: training.step == 3)
    assert stopped == ["save 2", "look 3", "save 3"]
    assert done_by(Exercise(step=6), tmp_path / "done", monkeypatch) == []


def test_looks_saves_and_what_is_between_have_times_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(looks, "look", lambda training, fps: pass_time(50) or looks.Looks({}, {}))
    training = Exercise(learning=lambda: pass_time(2))
    training.config.log_every = 1
    with closing(Monitor(tmp_path, Process())) as monitor:
        between = {5: 7}
        loop.run(training, monitor, lambda: pass_time(20), between=lambda: pass_time(between.get(training.step, 0)))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    times = {line["step"]: line for line in lines if "time/step_ms" in line}
    for line in times.values():
        assert (line["time/step_ms"], line["time/compute_ms"], line["throughput/frames_per_s"]) == (2e3, 2e3, 1.0)
    for tag, wanted in (  # told with the step that comes after
        ("save", {3: 20e3, 5: 20e3}),
        ("look", {4: 50e3}),
        ("between", {2: 0, 3: 0, 4: 0, 5: 0, 6: 7e3}),
    ):
        assert {step: line[f"time/{tag}_ms"] for step, line in times.items() if f"time/{tag}_ms" in line} == wanted
