"""Adaptation by Ray Tune, then video and evaluation, all through the command line on demo identities."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import fiag_dist

from fiag_dist import video
from fiag_dist.synthesize import Identity

TINY_ADAPT = """
train:
  steps: 30
  frames_per_step: 1
  log_every: 5
  images_every: 0
  checkpoint_every: 15
  stages: {landmark_steps: 5}
  loss: {triplet: 0.0, contrast: 0.0}
"""


@pytest.fixture(scope="module")
def adapted(shards: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("identities")
    (out / "adapt.yaml").write_text(TINY_ADAPT)
    newcomer = sorted(i["name"] for i in json.loads((shards / "manifest.json").read_text())["identities"])[3]
    fiag_dist(
        "adapt",
        shards,
        "--from",
        pretrained,
        "--out",
        out,
        "--config",
        out / "adapt.yaml",
        "--names",
        newcomer,
        "--scratch",
    )
    return out / newcomer


def test_an_identity_folder_is_complete(adapted: Path):
    for name in (
        "identity.json",
        "identity.safetensors",
        "backdrop.mp4",
        "poses.npz",
        "preview.mp4",
        "metrics.json",
        "scratch/metrics.json",
    ):
        assert (adapted / name).is_file(), name
    with (adapted.parent / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["state"] for row in rows] == ["done"]
    assert float(rows[0]["head_psnr_db"]) > 10
    assert float(rows[0]["scratch_head_psnr_db"]) > 10


def test_a_second_call_skips_what_is_done(adapted: Path, shards: Path, pretrained: Path):
    before = (adapted / "identity.safetensors").stat().st_mtime_ns
    out = adapted.parent
    words = [
        "adapt",
        shards,
        "--from",
        pretrained,
        "--out",
        out,
        "--config",
        out / "adapt.yaml",
        "--names",
        adapted.name,
        "--scratch",
    ]
    done = fiag_dist(*words)
    assert "1 done before, 0 to adapt" in done.stdout
    assert (adapted / "identity.safetensors").stat().st_mtime_ns == before


def test_speech_becomes_video(adapted: Path, tmp_path: Path):
    wav, out = tmp_path / "speech.wav", tmp_path / "out.mp4"
    _write_wav(wav, seconds=3.3)  # longer than the clip's 2.2 s of poses: they loop
    fiag_dist("render", adapted, "--audio", wav, "--out", out)
    seen = video.probe(out)
    assert abs(seen.seconds - 3.3) < 0.1
    assert (seen.width, seen.height) == (64, 64)
    assert seen.has_audio


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
        ("pack {folder}/missing --out {folder}/packed", "missing"),
        ("evaluate {folder}/missing", "missing"),
        ("shards verify {folder}/truncated", "1 fault, named above"),
        ("shards ls {folder}", "manifest.json"),
        ("rendr", "render"),
    ],
)
def test_wrong_input_gets_one_line(broken: dict[str, Path], words: str, says: str):
    done = fiag_dist(*words.format(**broken).split(), check=False)
    assert done.returncode not in (0, 1)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert says in lines[0]
