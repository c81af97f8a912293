"""Adaptation by Ray Tune, then video and evaluation, all through the command line on demo identities."""

import csv
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from commands import fiag_dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fiag_dist import cli
from fiag_dist.acting.actor import load_info
from fiag_dist.acting.synthesize import Identity
from fiag_dist.media import video
from fiag_dist.media.sound import read_audio
from fiag_dist.shards.manifest import read_manifest

TINY_ADAPT = """
train:
  steps: 30
  frames_per_step: 1
  log_every: 5
  images_every: 0
  checkpoint_every: 15
  stages: {landmark_steps: 5}
  loss: {triplet: 0.0, contrast: 0.0}
plateau: {every: 10}
"""

TINY_PRETRAIN = """
train:
  steps: 4
  images_every: 0
  stages: {landmark_steps: 2}
  model:
    field: {num_face: 600, num_mouth: 100, capacity_face: 700, capacity_mouth: 140}
"""


@dataclass(frozen=True)
class Campaign:
    """An adaptation that was asked for through the command line, of one sound identity and one whose shard is damaged."""

    folder: Path
    words: tuple[str | Path, ...]
    sound: str
    damaged: str
    first: CompletedProcess[str]


@pytest.fixture(scope="module")
def campaign(shards: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    folder = tmp_path_factory.mktemp("campaign")
    out, data = folder / "identities", folder / "shards"
    shutil.copytree(shards, data)
    (folder / "adapt.yaml").write_text(TINY_ADAPT)
    names = sorted(i["name"] for i in json.loads((shards / "manifest.json").read_text())["identities"])
    sound, damaged = names[3], names[2]
    shard = data / damaged / f"{damaged}-000000.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255  # as long as before: only its hash tells
    shard.write_bytes(content)
    words = ("adapt", data, "--from", pretrained, "--out", out, "--config", folder / "adapt.yaml", "--scratch")
    words = (*words, "--names", sound, damaged)
    return Campaign(out, words, sound, damaged, fiag_dist(*words, check=False))


@pytest.fixture(scope="module")
def adapted(campaign: Campaign) -> Path:
    return campaign.folder / campaign.sound


def results(campaign: Campaign) -> dict[str, dict[str, str]]:
    with (campaign.folder / "results.csv").open() as stream:
        return {row["name"]: row for row in csv.DictReader(stream)}


def test_an_identity_folder_is_complete(campaign: Campaign, adapted: Path):
    for name in (
        "identity.json",
        "identity.safetensors",
        "backdrop.mp4",
        "poses.npz",
        "preview.mp4",
        "metrics.json",
        "done.json",
        "scratch/metrics.json",
    ):
        assert (adapted / name).is_file(), name
    assert not (adapted / "work").exists()
    own = read_manifest(str(campaign.folder.parent / "shards"), check=False).entry(campaign.sound).sha256
    assert load_info(adapted).footage == own


def test_a_damaged_shard_costs_its_own_identity_alone(campaign: Campaign):
    assert campaign.first.returncode == 1
    lines = [line for line in campaign.first.stderr.splitlines() if line.startswith("fiag-dist: ")]
    assert len(lines) == 1
    assert f"{campaign.damaged} failed: " in lines[0]
    assert f"{campaign.damaged}-000000.tar" in lines[0]
    assert "Traceback" not in campaign.first.stderr
    rows = results(campaign)
    assert {name: row["state"] for name, row in rows.items()} == {campaign.sound: "done", campaign.damaged: "failed"}
    assert float(rows[campaign.sound]["head_psnr_db"]) > 10
    assert float(rows[campaign.sound]["scratch_head_psnr_db"]) > 10
    assert float(rows[campaign.sound]["validation_psnr_db"]) > 10
    assert "to be tried again" not in campaign.first.stdout  # no second try mends a shard


def test_what_an_identity_needs_is_measured_and_kept(campaign: Campaign):
    assert re.search(r"each identity gets 1 core, \d+ MiB", campaign.first.stdout)
    kept = json.loads((campaign.folder / "resources.json").read_text())
    assert 100 < kept["seen"]["host_mib"] < 4000


def test_the_page_shows_both(campaign: Campaign):
    page = (campaign.folder / "summary.html").read_text()
    assert page.index(campaign.damaged) < page.index(f"<h2>{campaign.sound} ")
    assert page.count("data:image/jpeg;base64,") == 1


def test_tensorboard_knows_settings_and_results(adapted: Path):
    events = EventAccumulator(str(adapted / "tb")).Reload()
    tags = events.Tags()["scalars"]
    assert {"loss/total", "eval/held_out_psnr_db", "result/head_psnr_db"} <= set(tags)
    plugin = events.PluginTagToContent("hparams")
    assert {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(plugin)


def test_a_second_call_leaves_what_is_done_as_it_is(campaign: Campaign, adapted: Path):
    before = {path: path.read_bytes() for path in adapted.rglob("*") if path.is_file()}
    done = fiag_dist(*campaign.words[:-1])  # without the damaged one
    assert "1 identities, 1 done before, 0 to adapt" in done.stdout
    assert {path: path.read_bytes() for path in adapted.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_search_keeps_the_best_sample_of_each_person(campaign: Campaign, shards: Path, tmp_path: Path):
    data, start, config = shards, campaign.words[3], campaign.words[7]
    words = ("adapt", data, "--from", start, "--out", tmp_path, "--config", config, "--names", campaign.sound)
    done = fiag_dist(*words, "--search", "lr,steps", "--samples", "3", timeout_s=800)
    choice = json.loads((tmp_path / campaign.sound / "search.json").read_text())
    scores = [row["validation_psnr_db"] for row in choice["samples"]]
    assert len(scores) == 3
    assert scores[choice["chosen"]] == max(score for score in scores if score is not None)
    info = json.loads((tmp_path / campaign.sound / "identity.json").read_text())
    assert info["steps"] == 5 + choice["samples"][choice["chosen"]]["steps"]
    assert f"{campaign.sound}/2: " in done.stdout
    assert not list(tmp_path.rglob("work"))
    again = fiag_dist(*words, "--search", "lr,steps", "--samples", "3", timeout_s=800)
    assert "1 done before, 0 to adapt" in again.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_benchmark_compares_three_ways(campaign: Campaign, shards: Path):
    words = ("--from", campaign.words[3], "--data", shards, "--names", campaign.sound, "--config", campaign.words[7])
    done = fiag_dist("bench", "adapt", *words, "--steps", "5", timeout_s=1700)
    found = json.loads(done.stdout)
    assert found["identities"] == 1
    for way in ("parallel", "one_after_another_one_core"):
        assert found[way]["identities_per_hour"] == pytest.approx(3600 / found[way]["seconds"], rel=0.01)
    assert found["parallel_against_one_after_another_one_core"] > 0


@pytest.mark.slow
@pytest.mark.clips
@pytest.mark.weights
@pytest.mark.timeout(1800)
def test_a_clip_becomes_an_identity_with_its_consent(clips: Path, tmp_path: Path):
    """From the file to the video in one command, on a run that knows real shards' formats."""
    clip = next(iter(sorted(clips.glob("anchor*.mp4"))))
    fiag_dist("pack", clip, "--out", tmp_path / "known", "--max-seconds", "3", timeout_s=600)
    alone = TINY_PRETRAIN.replace("steps: 4\n", "steps: 4\n  frames_per_step: 1\n")
    (tmp_path / "pre.yaml").write_text(f"data: {tmp_path / 'known'}\nruns: {tmp_path}\nname: pre\n{alone}")
    fiag_dist("pretrain", tmp_path / "pre.yaml", timeout_s=600)
    (tmp_path / "adapt.yaml").write_text(TINY_ADAPT)
    words = ("--from", tmp_path / "pre", "--out", tmp_path / "people", "--config", tmp_path / "adapt.yaml")
    fiag_dist("adapt", clip, *words, "--consent", "the anchor, 2026, for this test", timeout_s=900)
    info = json.loads((tmp_path / "people" / clip.stem / "identity.json").read_text())
    assert info["consent"] == "the anchor, 2026, for this test"


def test_speech_becomes_video(adapted: Path, tmp_path: Path):
    wav, out = tmp_path / "speech.wav", tmp_path / "out.mp4"
    _write_wav(wav, seconds=3.3)  # longer than the clip's 2.2 s of poses: they loop
    fiag_dist("render", adapted, "--audio", wav, "--out", out)
    seen = video.probe(out)
    assert abs(seen.seconds - 3.3) < 0.1
    assert (seen.width, seen.height) == (64, 64)
    assert abs(len(read_audio(out)) / 16_000 - 3.3) < 0.2  # AAC pads its ends


def test_as_a_library(adapted: Path):
    frames = list(Identity.load(adapted).frames(np.zeros(16000, np.float32)))
    assert len(frames) == 25
    assert frames[0].shape == (64, 64, 3)
    assert frames[0].dtype == np.uint8


def test_evaluation_prints_a_table_and_keeps_it(adapted: Path):
    done = fiag_dist("evaluate", adapted.parent)
    assert adapted.name in done.stdout
    metrics = json.loads((adapted / "metrics.json").read_text())
    assert {"head_psnr_db", "full_psnr_db", "head_ssim", "full_ssim", "baselines"} <= set(metrics)
    assert {"nearest", "nearest_warped"} <= set(metrics["baselines"])
    assert (adapted.parent / "evaluation.md").is_file()


def _write_wav(path: Path, seconds: float) -> None:
    import wave

    t = np.arange(int(16000 * seconds)) / 16000
    samples = (np.sin(2 * np.pi * 140 * t) * np.sin(2 * np.pi * 2 * t) * 20000).astype("<i2")
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(16000)
        stream.writeframes(samples.tobytes())


@pytest.fixture(scope="module")
def broken(adapted: Path, shards: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Things a user might have by mistake."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "not.wav").write_text("this is no sound")
    shutil.copytree(pretrained / "checkpoints" / "step-00000048", folder / "step-00000048")
    (folder / "step-00000048" / "COMMIT.json").unlink()
    shutil.copytree(shards, folder / "truncated")
    shard = next((folder / "truncated").glob("*/*-000000.tar"))
    shard.write_bytes(shard.read_bytes()[:-5000])
    return {"folder": folder, "identity": adapted, "shards": shards, "run": pretrained}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("render {identity} --audio {folder}/not.wav --out {folder}/x.mp4", "not.wav"),
        ("render {folder} --audio {folder}/not.wav --out {folder}/x.mp4", "identity.json"),
        ("adapt {shards} --from {folder}/step-00000048 --out {folder}/out", "COMMIT.json"),
        ("adapt {folder}/missing --from {run} --out {folder}/out", "no such folder"),
        ("adapt {folder}/truncated --from {run} --out {folder}/out", "manifest"),
        ("adapt {shards} --from {run} --out {folder}/out --consent yes", "--consent"),
        ("adapt {shards} --from {run} --out {folder}/out --search lr,bath", "bath"),
        ("adapt {shards} --from {run} --out {folder}/out --train.frames-per-step 4", "frames_per_step is 4"),
        ("adapt {shards} --from {run} --out {folder}/out --retries -1", "retries is -1; give 0 or more"),
        ("pack {folder}/missing --out {folder}/packed", "missing"),
        ("evaluate {folder}/missing", "missing"),
        ("shards verify {folder}/truncated", "1 fault, named above"),
        ("shards ls {folder}", "manifest.json"),
        ("rendr", "render"),
    ],
)
def test_wrong_input_gets_one_line(broken: dict[str, Path], words: str, says: str, capfd: pytest.CaptureFixture[str]):
    assert cli.main(words.format(**broken).split()) == 2
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if line.strip()]
    assert len(lines) == 1, said
    assert says in lines[0]
