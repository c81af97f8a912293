"""Parts of an adaptation that need neither Ray nor training: plateaus, resources, search, what errors mean, the standings, the page."""

import csv
import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import tiny_identity as tiny
from made_shards import write_two
from rich.console import Console

from fiag_dist.acting.actor import TENSORS, load_info
from fiag_dist.adaptation import campaign, resources, search, trial
from fiag_dist.adaptation.job import DONE, Job, Progress, Search, is_done, write_done
from fiag_dist.adaptation.page import PAGE, write_page
from fiag_dist.adaptation.plateau import Plateau
from fiag_dist.adaptation.resources import Room, Seen, decided
from fiag_dist.adaptation.results import COLUMNS, CSV, Result, refused, result_of, results_in, table, write_csv
from fiag_dist.adaptation.standings import Standings
from fiag_dist.adaptation.tuning import failure_of
from fiag_dist.config import AdaptConfig, PlateauConfig, TrainConfig
from fiag_dist.errors import ConfigError
from fiag_dist.shards.manifest import SplitEntry, write_manifest
from fiag_dist.storage import open_storage

ROOM = Room(cores=8, most_cores=4, memory_mib=20_000, most_memory_mib=10_000, gpus=0)
GPU_ROOM = Room(cores=64, most_cores=64, memory_mib=1e6, most_memory_mib=1e6, gpus=1)


def job_in(folder: Path, name: str = "anna", **changes) -> Job:
    return Job(name, "/shards", "/run/checkpoints/step-00000001", str(folder / name), AdaptConfig(), **changes)


class TestPlateau:
    def test_it_comes_after_so_many_looks_without_a_rise(self) -> None:
        plateau = Plateau(PlateauConfig(patience=3, rise_db=0.1))
        assert [plateau.look(s) for s in (20.0, 21.0, 21.05, 20.0, 21.09)] == [False, False, False, False, True]

    def test_a_rise_begins_it_anew(self) -> None:
        plateau = Plateau(PlateauConfig(patience=2, rise_db=0.1))
        assert [plateau.look(s) for s in (20.0, 20.0, 20.2, 20.2, 20.2)] == [False, False, False, False, True]

    def test_slow_rises_add_up(self) -> None:
        plateau = Plateau(PlateauConfig(patience=3, rise_db=0.1))
        assert not any(plateau.look(20 + 0.06 * k) for k in range(20))

    def test_patience_0_never_ends(self) -> None:
        plateau = Plateau(PlateauConfig(patience=0))
        assert not any(plateau.look(20.0) for _ in range(50))


class TestResources:
    @pytest.mark.parametrize(
        ("step_ms", "threads"),
        [({1: 100}, 1), ({1: 100, 2: 60}, 2), ({1: 100, 2: 90, 4: 20}, 1), ({1: 100, 2: 60, 4: 55}, 2)],
    )
    def test_threads_must_be_worth_their_cores(self, step_ms: dict[int, float], threads: int) -> None:
        assert decided(Seen(500, 0, 0, step_ms), AdaptConfig(), ROOM).threads == threads

    def test_memory_is_never_over_filled(self) -> None:
        needs = decided(Seen(2000, 0, 0, {1: 100}), AdaptConfig(), ROOM)
        assert needs.at_once(ROOM) == 7  # although there are 8 cores
        assert needs.memory_mib * 7 <= ROOM.memory_mib

    def test_what_fits_no_machine_gets_one_for_itself(self) -> None:
        needs = decided(Seen(50_000, 0, 0, {1: 100}), AdaptConfig(), ROOM)
        assert needs.memory_mib == ROOM.most_memory_mib

    @pytest.mark.parametrize(("needed_mib", "at_once"), [(10, 16), (10_000, 5), (20_000, 2), (70_000, 1)])
    def test_a_gpu_is_shared_by_what_fits(self, needed_mib: float, at_once: int) -> None:
        needs = decided(Seen(2000, needed_mib, 80_000, {1: 20}), AdaptConfig(), GPU_ROOM)
        assert needs.at_once(GPU_ROOM) == at_once

    def test_a_look_is_kept_for_the_same_checkpoint_and_clips(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A larger model, or a longer clip, was given the room of those before."""
        looks: list[list[Job]] = []
        said: list[str] = []
        monkeypatch.setattr(resources, "_measured", lambda jobs, *_: looks.append(jobs) or Seen(500, 0, 0, {1: 100}))
        data = tiny.pack(tmp_path / "shards", "anna", "ben")
        jobs = [dataclasses.replace(job_in(tmp_path, name), data=data) for name in ("anna", "ben")]
        for asked in (jobs, jobs, [dataclasses.replace(job, start="/other/step-00000002") for job in jobs]):
            assert resources.needs_of(asked, 2, ROOM, str(tmp_path), said.append).threads == 1
        assert [job.start for job in (looks[0][0], looks[1][0])] == [jobs[0].start, "/other/step-00000002"]
        manifest = tmp_path / "shards" / "manifest.json"
        longer = json.loads(manifest.read_text())
        longer["identities"][1]["num_frames"] += 1
        manifest.write_text(json.dumps(longer))
        resources.needs_of(jobs, 2, ROOM, str(tmp_path), said.append)
        assert [job.name for job in looks[2]] == ["ben", "anna"]
        assert said == ["measuring what one identity needs ..."] * 3

    def test_what_is_given_for_one_is_not_measured(self, tmp_path: Path) -> None:
        job = dataclasses.replace(job_in(tmp_path), config=AdaptConfig(cpus_per_trial=2))
        said: list[str] = []
        needs = resources.needs_of([job], 1, ROOM, str(tmp_path), said.append)
        assert (str(needs), said) == ("2 cores", [])

    def test_what_the_settings_say_is_not_overruled(self) -> None:
        asked = AdaptConfig(cpus_per_trial=2, gpus_per_trial=0.25)
        needs = decided(Seen(2000, 3000, 80_000, {2: 20}), asked, GPU_ROOM)
        assert needs.for_ray() == {"cpu": 2, "gpu": 0.25, "memory": needs.memory_mib * 2**20}


class TestSearch:
    def test_samples_are_the_same_each_time_and_begin_with_the_given_settings(self, tmp_path: Path) -> None:
        job = job_in(tmp_path, search=Search(("lr", "steps"), 4))
        first, second = search.samples(job), search.samples(job)
        assert first == second
        assert first[0].config == job.config
        assert len({sample.training_key for sample in first}) == 4
        other = search.samples(job_in(tmp_path, "ben", search=job.search))
        assert other[1].config != first[1].config

    def test_only_what_is_named_changes_and_within_its_bounds(self, tmp_path: Path) -> None:
        given = TrainConfig()
        for sample in search.samples(job_in(tmp_path, search=Search(("lr",), 20)))[1:]:
            train = sample.config.train
            assert train.steps == AdaptConfig().train.steps
            assert train.optim.means == given.optim.means
            factor = train.optim.nets / given.optim.nets
            assert 0.5 <= factor <= 2
            assert train.optim.personal_grids == pytest.approx(given.optim.personal_grids * factor)

    def test_the_best_is_kept(self, tmp_path: Path) -> None:
        job = job_in(tmp_path, search=Search(("steps",), 3))
        assert not search.is_chosen(job)
        search.write_choice(job, {0: 25.0, 2: 26.5})
        assert search.chosen_sample(job) == search.samples(job)[2]
        scores = [
            row["validation_psnr_db"] for row in json.loads((tmp_path / "anna/search.json").read_text())["samples"]
        ]
        assert scores == [25.0, None, 26.5]
        assert not search.is_chosen(dataclasses.replace(job, search=Search(("steps",), 4)))

    @pytest.mark.parametrize(("names", "samples", "says"), [("lr,bathc", 4, "bathc"), ("lr", 1, "--samples 1")])
    def test_nonsense_is_refused(self, names: str, samples: int, says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            search.parse(names, samples)

    def test_who_has_too_few_frames_to_be_judged_by_is_refused_before_anything_is_trained(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_storage(tmp_path / "shards")
        manifest = write_two(store)  # of 20 training frames
        short = dataclasses.replace(manifest.entry("bert"), split=SplitEntry(train=9, test=14))
        write_manifest(store, dataclasses.replace(manifest, identities=[manifest.entry("anna"), short]))
        jobs = [
            dataclasses.replace(job_in(tmp_path, name, search=Search(("steps",), 3)), data=store.url)
            for name in ("anna", "bert")
        ]
        tried: list[str] = []

        def run_all(jobs: dict[str, Job], *args) -> dict[str, str]:
            tried.extend(jobs)
            return {}

        monkeypatch.setattr(campaign.Room, "of_ray", lambda: ROOM)
        monkeypatch.setattr(campaign, "needs_of", lambda *args: decided(Seen(500, 0, 0, {1: 100}), AdaptConfig(), ROOM))
        monkeypatch.setattr(campaign, "run_all", run_all)
        monkeypatch.setattr(campaign, "final_score_db", lambda sample: 25.0)
        said = io.StringIO()
        standings = Standings(["anna", "bert"], Console(file=said, width=200))
        failed = campaign.adapt_all(jobs, str(tmp_path), standings, print)
        assert list(failed) == ["bert"]
        assert failed["bert"].startswith("9 training frames: a search holds back a tenth of them")
        assert tried == ["anna/0", "anna/1", "anna/2", "anna"]
        assert "bert: failed: 9 training frames" in said.getvalue()

    def test_a_training_that_nothing_judged_has_no_score(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        job = job_in(tmp_path)
        stored = SimpleNamespace(info={"job": job.training_key, "looks": []}, step=10**6)
        monkeypatch.setattr(trial.checkpoint, "newest", lambda *args: "step-01000000")
        monkeypatch.setattr(trial.checkpoint, "load", lambda *args: stored)
        assert trial.final_score_db(job) is None
        stored.info["looks"] = [24.0, 25.0]
        assert trial.final_score_db(job) == 25.0


class TestJob:
    def test_an_answer_is_to_one_question(self, tmp_path: Path) -> None:
        job = job_in(tmp_path)
        write_done(job)
        assert is_done(job)
        longer = dataclasses.replace(job.config, train=dataclasses.replace(job.config.train, steps=7))
        others = ({"config": longer}, {"scratch": True}, {"start": "/other"}, {"search": Search(("lr",), 4)})
        for other in (*others, {"footage": "5e"}, {"consent": "Anna, today, for this"}):
            assert not is_done(dataclasses.replace(job, **other)), other

    def test_an_answer_stays_where_shards_or_checkpoint_move(self, tmp_path: Path) -> None:
        job = dataclasses.replace(job_in(tmp_path), footage="5e", learnt="c0")
        write_done(job)
        assert is_done(dataclasses.replace(job, data="/moved", start="/run/elsewhere/checkpoints/step-00000001"))
        assert not is_done(dataclasses.replace(job, learnt="c1")), "trained anew at the same step"
        model = job.config.train.model
        model = dataclasses.replace(model, field=dataclasses.replace(model.field, sh_degree=0))
        other = dataclasses.replace(job.config, train=dataclasses.replace(job.config.train, model=model))
        assert is_done(dataclasses.replace(job, config=other)), "the model is the checkpoint's"
        assert not is_done(dataclasses.replace(job, config=other, start="", learnt="")), "and one's own from scratch"

    def test_consent_that_comes_later_trains_nothing_else(self, tmp_path: Path) -> None:
        job = job_in(tmp_path)
        assert dataclasses.replace(job, consent="Anna").training_key == job.training_key
        assert dataclasses.replace(job, footage="5e").training_key != job.training_key

    def test_consent_that_comes_later_goes_into_what_is_done(self, tmp_path: Path, monkeypatch) -> None:
        data = tiny.pack(tmp_path / "data")
        job = dataclasses.replace(job_in(tmp_path, "ball"), data=data, scratch=True)
        folders = [tmp_path / "ball", tmp_path / "ball" / trial.SCRATCH]
        before = [(tiny.make_identity(folder, data, consent="spoken") / TENSORS).read_bytes() for folder in folders]
        write_done(job)
        monkeypatch.setattr(trial, "train", lambda *_: pytest.fail("trained again"))
        noted = dataclasses.replace(job, consent="Ball, by letter")
        trial.adapt_identity(noted, lambda progress: None)
        assert is_done(noted)
        assert not is_done(job)
        assert [(folder / TENSORS).read_bytes() for folder in folders] == before
        for folder in folders:
            assert load_info(folder).consent == "Ball, by letter"
            with av.open(str(folder / "preview.mp4")) as video:
                assert "Consent: Ball, by letter" in video.metadata["comment"]

    def test_another_job_takes_the_mark_of_the_one_before(self, tmp_path: Path, monkeypatch) -> None:
        job = job_in(tmp_path)
        open_storage(job.folder).write(f"{trial.SCRATCH}/identity.json", b"{}")
        write_done(job)

        def interrupted(*_) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(trial, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trial.adapt_identity(dataclasses.replace(job, footage="5e"), lambda progress: None)
        assert not is_done(job)
        assert not open_storage(job.folder).exists(trial.SCRATCH), "another job is compared with nothing of before"

    def test_how_it_is_run_is_no_part_of_the_question(self, tmp_path: Path) -> None:
        job = job_in(tmp_path)
        elsewhere = dataclasses.replace(job.config, cpus_per_trial=8, gpus_per_trial=0.5, retries=9)
        assert dataclasses.replace(job, config=elsewhere).key == job.key

    def test_a_file_that_was_cut_off_is_no_answer(self, tmp_path: Path) -> None:
        job = job_in(tmp_path)
        open_storage(job.folder).write(DONE, b'{"job": "')
        assert not is_done(job)


@pytest.mark.parametrize(
    ("text", "reason", "out_of_memory"),
    [
        (
            "The actor died because its worker ran.\nTask was killed due to the node running low on memory.",
            "ran out",
            True,
        ),
        ("ActorDiedError: The actor died unexpectedly before finishing this task.", "killed or crashed", False),
        ("Traceback ...\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "CUDA out", True),
        ("Traceback ...\nMemoryError", "MemoryError", True),
        ("Traceback ...\nValueError: shapes differ\n", "ValueError: shapes differ", False),
    ],
)
def test_what_an_error_means(text: str, reason: str, out_of_memory: bool) -> None:
    failure = failure_of(RuntimeError(text))
    assert reason in failure.reason
    assert "\n" not in failure.reason
    assert failure.out_of_memory == out_of_memory


def shown(standings: Standings, console: Console) -> str:
    with console.capture() as capture:
        console.print(standings.render())
    return capture.get()


class TestBoard:
    def test_200_rows_fit_a_terminal(self) -> None:
        console = Console(width=100, height=30, force_terminal=True, color_system=None)
        names = [f"clip_{i:03d}" for i in range(200)]
        standings = Standings(names, console)
        for name in names[:120]:
            standings.started(name)
            standings.moved(name, Progress("training", 40, 100, 23.456))
        for name in names[:70]:
            standings.moved(name, Progress("filming", 100, 100, 23.456))
            standings.ended(name)
        standings.failed(names[119], "its process was killed or crashed", again=False)
        text = shown(standings, console)
        assert len(text.splitlines()) <= 30
        assert all(len(line) <= 100 for line in text.splitlines())
        assert "70 done, 49 at work, 80 waiting, 1 failed; 200 in all" in text
        assert "clip_070" in text  # at work
        assert "23.46" in text
        assert "40/100" in text
        assert "failed: its process was killed or crashed" in text
        assert "more at work" in text
        assert "clip_150" not in text  # waits

    def test_without_a_terminal_there_are_lines(self) -> None:
        stream = io.StringIO()
        with Standings(["anna", "ben"], Console(file=stream, width=40)) as standings:
            standings.started("anna")
            standings.moved("anna", Progress("training", 10, 10))
            standings.ended("anna")
            standings.failed("ben", "a reason that is longer than the line is wide", again=True)
        lines = stream.getvalue().splitlines()
        assert lines[0] == "  anna: done after 0:00:00 (1 done, 1 waiting; 2 in all)"
        assert lines[1] == "  ben: to be tried again: a reason that is longer than the line is wide"

    def test_what_is_left_is_counted_down_between_reports(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: now)
        console = Console(width=100, color_system=None)
        standings = Standings(["anna"], console)
        standings.started("anna")
        now += 7  # to start costs no speed
        standings.moved("anna", Progress("training", 20, 100))
        assert ":" not in shown(standings, console)
        now += 40
        standings.moved("anna", Progress("training", 60, 100))
        assert "0:00:40" in shown(standings, console)
        now += 15
        assert "0:00:25" in shown(standings, console)

    def test_samples_come_and_go(self) -> None:
        standings = Standings(["anna"], Console(file=io.StringIO()))
        standings.add(["anna/0", "anna/1"])
        standings.started("anna/1")
        assert standings.rows["anna/1"].is_running
        standings.moved("anna/1", Progress("training", 5, 10))
        standings.ended("anna/1")
        assert standings.rows["anna/1"].state == "left behind"
        standings.drop(["anna/0", "anna/1"])
        assert list(standings.rows) == ["anna"]


@pytest.fixture
def results(tmp_path: Path) -> list[Result]:
    """Three identities that are done, with pictures, and one that failed."""
    out = []
    for name, head in (("good", 31.0), ("poor", 24.0), ("fair", 27.0), ("<b>lost", 0.0)):
        job = job_in(tmp_path, name)
        storage = open_storage(job.folder)
        if head:
            baselines = {"nearest_warped": {"head_psnr_db": 25.0}}
            metrics = {"head_psnr_db": head, "full_psnr_db": 33.0, "steps": 30, "seconds": 2.5, "baselines": baselines}
            storage.write("metrics.json", json.dumps(metrics).encode())
            write_done(job)
            strip = np.full((128, 1536, 3), 80 + int(head), np.uint8)
            storage.write("strip.png", cv2.imencode(".png", strip)[1].tobytes())
        out.append(result_of(job, {} if head else {name: "shard <lost>-000000.tar: damaged"}))
    return out


def test_the_page_is_whole_and_has_the_worst_first(results: list[Result], tmp_path: Path) -> None:
    write_page(open_storage(tmp_path), results, "People")
    text = (tmp_path / PAGE).read_text()
    places = [text.index(f"<h2>{name} ") for name in ("&lt;b&gt;lost", "poor", "fair", "good")]
    assert places == sorted(places)
    assert text.count("data:image/jpeg;base64,") == 3
    assert "http" not in text
    assert "shard &lt;lost&gt;-000000.tar: damaged" in text
    assert text.count("class=worse") == 1


def test_the_tables_have_every_identity(results: list[Result], tmp_path: Path) -> None:
    write_csv(open_storage(tmp_path), results)
    with (tmp_path / CSV).open() as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    assert [row["state"] for row in rows.values()] == ["done", "done", "done", "failed"]
    assert float(rows["poor"]["gain_db"]) == -1.0
    assert rows["<b>lost"]["why"].startswith("shard")
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table(results * 20))
    text = capture.get()
    assert "the 30 worst of 80" in text
    assert "good" not in text


def test_the_table_fits_a_small_terminal_and_cuts_no_name(tmp_path: Path) -> None:
    name = "somebody_with_a_name_of_fifty_six_letters_and_two_digits"
    numbers = {"steps": 2000, "seconds": 412.53, "head_psnr_db": 29.63, "full_psnr_db": 33.41, "gain_db": 5.26}
    rows = [
        Result({column: numbers.get(column, 24.37) for column in COLUMNS} | {"name": who, "state": "done"})
        for who in ("anna", name)
    ]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table(rows))
    lines = capture.get().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert next(line.split() for line in lines if "anna" in line) == [
        "anna",
        "done",
        "2000",
        "413",
        "29.63",
        "33.41",
        "24.37",
        "5.26",
        "24.37",
    ]
    assert name in "".join(line.split()[0] for line in lines if line.strip())


def test_a_clip_that_was_refused_has_its_row(results: list[Result], tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    everybody = results_in(storage, [*results, refused("torn", "torn.mp4: can't be read as video or audio")])
    write_csv(storage, everybody)
    write_page(storage, everybody, "People")
    with (tmp_path / CSV).open() as stream:
        row = {row["name"]: row for row in csv.DictReader(stream)}["torn"]
    assert (row["state"], row["why"]) == ("refused", "torn.mp4: can't be read as video or audio")
    text = (tmp_path / PAGE).read_text()
    assert "1 refused" in text
    assert "torn.mp4: can&#x27;t be read" in text


def test_those_who_were_not_asked_for_stay_in_the_tables(results: list[Result], tmp_path: Path) -> None:
    (tmp_path / "begun" / trial.WORK / "checkpoints").mkdir(parents=True)
    (tmp_path / "shards" / "good").mkdir(parents=True)
    one = [result_of(job_in(tmp_path, "<b>lost"), {"<b>lost": "damaged"})]
    everybody = results_in(open_storage(tmp_path), one)
    names = ["<b>lost", "begun", "fair", "good", "poor"]
    assert [result.values["name"] for result in everybody] == names
    assert [result.values["state"] for result in everybody] == ["failed", "missing", "done", "done", "done"]
    assert everybody[3].values == results[0].values
