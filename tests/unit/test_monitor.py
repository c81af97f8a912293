"""The record of a run: means and states, nothing twice after a resume, and pictures in TensorBoard."""

import io
import json
import math
import re
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from fiag_dist.dist.process import Process
from fiag_dist.monitoring import board, monitor
from fiag_dist.monitoring.board import LAYOUT, gif, png
from fiag_dist.monitoring.monitor import Clock, Monitor, Ratio


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


def test_0_reports_only_what_is_asked_for(tmp_path: Path) -> None:
    run(tmp_path, 0, 5, every=0)
    watch = Monitor(tmp_path, Process(), resume_step=5)
    watch.add(6, {"eval/held_out_psnr_db": 30.0}, every=1)
    watch.close()
    assert records(tmp_path) == [{"step": 6, "eval/held_out_psnr_db": 30.0}]


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
    time.sleep(1.1)  # TensorBoard orders files by the second in their names
    run(tmp_path, 4, 10)
    assert [line["step"] for line in records(tmp_path)] == [2, 4, 6, 8, 10]
    assert [e.step for e in events(tmp_path / "tb").Scalars("loss/total")] == [2, 4, 6, 8, 10]
    run(tmp_path, 0, 4)
    assert [line["step"] for line in records(tmp_path)] == [2, 4]


def test_pictures_and_films_reach_tensorboard(tmp_path: Path) -> None:
    frames = [np.full((4, 6, 3), level, np.uint8) for level in (0, 80, 160)]
    watch = Monitor(tmp_path, Process())
    watch.pictures(3, {"identities/anna": png(frames[1]), "films/anna": gif(frames, 25)})
    watch.close()
    found = events(tmp_path / "tb")
    (picture,), (film,) = found.Images("identities/anna"), found.Images("films/anna")
    assert (picture.step, picture.width, picture.height) == (3, 6, 4)
    with Image.open(io.BytesIO(film.encoded_image_string)) as image:
        assert (image.format, image.n_frames, image.info["duration"]) == ("GIF", 3, 40)
        image.seek(2)
        assert image.convert("RGB").getpixel((0, 0)) == (160, 160, 160)


def test_a_mirrored_run_fills_one_file_after_another_and_is_shown_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is closed is copied once; what is cut off by a resume stays out of sight, also where it lies in several files."""
    monkeypatch.setenv("FIAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(board, "FULL_BYTES", 500)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    picture = png(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    for folder in (tmp_path / "cache/runs/bucket/run", tmp_path / "runs/run"):
        files: list[list[str]] = []
        for begin, end in ((0, 12), (6, 15)):
            watch = Monitor(folder, Process(), resume_step=begin)
            for step in range(begin + 1, end + 1):
                now += 0.5
                watch.add(step, {"loss/total": float(step)}, 1)
                watch.pictures(step, {"identities/anna": picture})
                files.append(sorted(path.name for path in (folder / "tb").iterdir()))
            watch.close()
            now += 1
        assert len(files[-1]) > 8 if "cache" in folder.parts else len(files[-1]) == 2
        for earlier, later in pairwise(files):
            assert later[: len(earlier)] == earlier, "a file that TensorBoard has gone past would not be read"
        shown = events(folder / "tb")
        assert [e.step for e in shown.Scalars("loss/total")] == [*range(1, 16)]
        assert [e.step for e in shown.Images("identities/anna")] == [*range(1, 16)]
        assert len(shown.Tensors("custom_scalars__config__")) > 0


def test_wide_pictures_are_made_smaller() -> None:
    with Image.open(io.BytesIO(png(np.zeros((1024, 4096, 3), np.uint8)))) as image:
        assert image.size == (1024, 256)


def test_the_pages_show_tags_that_there_are(tmp_path: Path) -> None:
    tags = {
        "loss/total": 1.0,
        "loss/face": 1.0,
        "train/stage": 3,
        "field/num_gaussians": 5,
        "time/step_ms": 2.0,
        "time/look_ms": 2.0,
    }
    watch = Monitor(tmp_path, Process())
    watch.add(1, tags | {"rate/means": 0.1, "memory/peak_mib": 9.0, "eval/psnr_db/anna": 30.0}, 1)
    watch.close()
    found = events(tmp_path / "tb")
    assert "loss_by_stage/3_motion" in found.Tags()["scalars"]
    layout = Layout.FromString(found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    patterns = [tag for page in layout.category for chart in page.chart for tag in chart.multiline.tag]
    assert len(layout.category) == len(LAYOUT)
    for tag in found.Tags()["scalars"]:
        assert any(re.match(pattern, tag) for pattern in patterns) or tag == "loss/total", f"{tag} is on no page"


def test_text_is_shown_as_it_is(tmp_path: Path) -> None:
    watch = Monitor(tmp_path, Process())
    watch.text("ownership", "rank  who\n   0  anna")
    watch.close()
    (text,) = events(tmp_path / "tb").Tensors("ownership/text_summary")
    assert text.tensor_proto.string_val[0] == b"    rank  who\n       0  anna"
    assert "   0  anna" in (tmp_path / "logs/rank0.log").read_text()


def test_a_terminal_gets_a_bar_and_the_log_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        monitor, "Console", lambda **words: Console(file=screen, force_terminal=True, width=120, **words)
    )
    run(tmp_path, 0, 6)
    assert "6/6" in screen.getvalue()
    assert "step 6/6" not in screen.getvalue().splitlines()
    assert "total 5.5" in screen.getvalue()
    assert "step 6/6 100% | total 5.5" in (tmp_path / "logs/rank0.log").read_text()


def test_the_line_shows_progress_and_what_matters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = Monitor(tmp_path, Process(), steps=200)
    watch.add(25, {"loss/total": 0.2}, 25)
    watch.add(50, {"loss/total": 0.1234567, "time/step_ms": 40.0, "rate/[red]": 1.0}, 50)
    watch.say("a [bold]line[/bold]")
    watch.add(50, {"eval/psnr_db/anna": 30.0, "eval/psnr_db/bert": 32.0}, 1)
    watch.close()
    said = capsys.readouterr().out.splitlines()[1:]
    assert said[0].startswith("step 50/200 25% | total 0.1235 | step_ms 40 | left 0:00:0")
    assert said[1] == "a [bold]line[/bold]"
    assert "psnr_db 31 in the mean of 2 people's test frames" in said[2]
    log = (tmp_path / "logs/rank0.log").read_text()
    assert all(line in log for line in said)


def test_what_steps_without_images_take_is_said_to_be_the_least(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Monitor(tmp_path, Process(), steps=200, unrendered=100)
    for step in (25, 50, 100, 150):
        watch.add(step, {"loss/total": 1.0}, 25)
    watch.close()
    start, light, first, later = capsys.readouterr().out.splitlines()
    assert "left" not in start
    assert "left over 0:00:0" in light
    assert "left" not in first
    assert "left 0:00:0" in later


def test_another_rank_keeps_its_log_and_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = Monitor(tmp_path, Process(rank=1, world=2))
    watch.say("rank 1 was here")
    watch.pictures(1, {"identities/bob": png(np.zeros((2, 2, 3), np.uint8))})
    watch.close()
    assert capsys.readouterr().out == ""
    assert "rank 1 was here" in (tmp_path / "logs/rank1.log").read_text()
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / "tb").exists()


def test_ranks_are_merged_by_their_counts() -> None:
    gathered = [
        (
            {
                "loss/total": (6.0, 2),
                "loss/mouth": (3.0, 1),
                "memory/peak_mib": (100.0, 2),
                "time/compute_ms": (20.0, 2),
                "eval/a": (1.0, 1),
            },
            {"n": 1},
        ),
        (
            {"loss/total": (1.0, 1), "memory/peak_mib": (300.0, 1), "time/compute_ms": (30.0, 1), "x": (0.0, 0)},
            {"n": 2, "m": 3},
        ),
    ]
    assert monitor._merge(gathered) == {
        "balance/slowest_rank": 1.5,
        "eval/a": 1.0,
        "loss/mouth": 1.0,
        "loss/total": 7 / 3,
        "m": 3,
        "memory/peak_mib": 300.0,
        "n": 1,
        "time/compute_ms": 50 / 3,
        "x": None,
    }


def test_the_clock_tells_data_from_work() -> None:
    clock = Clock()
    with clock.data():
        time.sleep(0.06)
    time.sleep(0.02)
    tags = clock.step(num_frames=4, communication_s=0.01)
    parts = tags["time/data_ms"] + tags["time/communication_ms"] + tags["time/compute_ms"]
    assert parts == pytest.approx(tags["time/step_ms"])
    assert tags["time/communication_ms"] == 10
    assert 80 <= tags["time/step_ms"] < 400
    assert 30 < tags["time/data_pct"].of / tags["time/data_pct"].to < 100
    assert tags["throughput/frames_per_s"] == pytest.approx((4, tags["time/step_ms"] / 1e3))
    assert tags["memory/peak_mib"] > 50
    again = clock.step(num_frames=4)
    assert again["time/data_pct"].of == 0


def test_what_is_done_between_steps_is_in_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter((0, 1, 2, 5, 6, 8, 10, 11))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))
    clock = Clock()
    assert "time/look_ms" not in clock.step(num_frames=1)
    for _ in range(2):
        with clock.aside("time/look_ms"):
            pass
    tags = clock.step(num_frames=1)
    assert (tags["time/look_ms"], tags["time/step_ms"], tags["time/compute_ms"]) == (5e3, 4e3, 4e3)
    again = clock.step(num_frames=1)
    assert again["time/step_ms"] == 1e3
    assert "time/look_ms" not in again


def test_rates_are_those_of_the_whole_time(tmp_path: Path) -> None:
    watch = Monitor(tmp_path, Process())
    for step in range(1, 21):
        seconds = 10.0 if step == 20 else 0.1
        watch.add(step, {"throughput/frames_per_s": Ratio(2, seconds), "time/step_ms": 1e3 * seconds}, 20)
    watch.close()
    (line,) = records(tmp_path)
    assert line["throughput/frames_per_s"] == pytest.approx(40 / 11.9)
    assert line["time/step_ms"] == pytest.approx(11900 / 20)


def test_rates_of_ranks_are_merged() -> None:
    gathered = [({"r": (8.0, 2.0)}, {}), ({"r": (8.0, 6.0)}, {})]
    assert monitor._merge(gathered) == {"r": 2.0}
