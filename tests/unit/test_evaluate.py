"""Scores of an identity: the numbers mean what they say, the files appear, and mistakes are named."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_identity as tiny

from fiag_dist import evaluate
from fiag_dist.errors import ConfigError, DataError
from fiag_dist.evaluate import Truth


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one identity, `ball`, with a second one trained from scratch inside it."""
    home = tmp_path_factory.mktemp("evaluate")
    data = tiny.pack(home / "data")
    tiny.make_identity(home / "ids" / "ball", data)
    tiny.make_identity(home / "ids" / "ball" / "scratch", data)
    return home / "ids"


def test_each_region_sees_only_its_own_error() -> None:
    frame = tiny.clip("ball")[1][0]
    truth = Truth.of(frame)
    wrong = frame.image.copy()
    wrong[~truth.head] = np.clip(wrong[~truth.head].astype(int) - 51, 0, 255).astype(np.uint8)
    scores = truth.scores(wrong)
    assert scores["head_psnr_db"] == 100.0
    assert scores["full_psnr_db"] < 20
    wrong = frame.image.copy()
    wrong[truth.head] ^= 16  # every value of the head is off by 16
    scores = truth.scores(wrong)
    assert scores["head_psnr_db"] == pytest.approx(20 * np.log10(255 / 16), abs=1e-4)
    share = truth.head.mean()
    assert scores["full_psnr_db"] == pytest.approx(20 * np.log10(255 / 16) - 10 * np.log10(share), abs=1e-4)
    x0, y0, x1, y1 = frame.lips_rect
    wrong = frame.image.copy()
    wrong[y0:y1, x0:x1] ^= 16
    assert truth.scores(wrong)["mouth_psnr_db"] == pytest.approx(20 * np.log10(255 / 16), abs=1e-4)
    perfect = truth.scores(frame.image)
    assert perfect["head_ssim"] == pytest.approx(1, abs=1e-5)
    assert perfect["full_ssim"] == pytest.approx(1, abs=1e-5)


def test_what_is_behind_shows_nothing_of_the_head() -> None:
    frame = tiny.clip("ball")[1][0]
    behind = evaluate.behind(frame.image, frame.alpha)
    error = np.abs(behind.astype(int) - tiny.wall())
    assert error[frame.alpha == 0].mean() < 1
    assert error[frame.alpha > 0].max() < 40  # the ball differs from the wall by 100
    assert np.abs(frame.image.astype(int) - tiny.wall()).max() > 90


def test_metrics_strip_and_baselines_are_written(folder: Path) -> None:
    identity = folder / "ball"
    (identity / "metrics.json").write_text(json.dumps({"seconds": 12.5, "head_psnr_db": -1}))
    metrics = evaluate.evaluate_identity(identity)
    stored = json.loads((identity / "metrics.json").read_text())
    assert stored == {"seconds": 12.5} | metrics  # what others noted there stays, old scores do not
    assert metrics["test_frames"] == tiny.TEST
    assert metrics["train_frames_scored"] == tiny.TRAIN // 5
    warped, nearest = metrics["baselines"]["nearest_warped"], metrics["baselines"]["nearest"]
    assert warped["head_psnr_db"] > nearest["head_psnr_db"] + 3  # the ball only moves
    assert 10 < metrics["head_psnr_db"] < nearest["head_psnr_db"]  # nothing was learnt
    strip = cv2.imread(str(identity / "strip.png"))
    assert strip is not None
    assert strip.shape == (2 * tiny.SIZE, tiny.TEST * tiny.SIZE, 3)
    truth = cv2.cvtColor(strip[: tiny.SIZE, : tiny.SIZE], cv2.COLOR_BGR2RGB)
    assert np.abs(truth.astype(int) - tiny.picture(tiny.TRAIN)[0]).mean() < 3  # JPEG in the shards


def test_a_render_equal_to_the_truth_scores_its_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "composed", lambda actor, frame, meta, backdrop: frame.image)
    metrics = evaluate.evaluate_identity(folder / "ball" / "scratch")
    assert metrics["head_psnr_db"] == metrics["train_head_psnr_db"] == metrics["full_psnr_db"] == 100.0


def test_command_prints_one_row_and_writes_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "ball" in shown
    assert "scratch" in shown
    report = (folder / "evaluation.md").read_text()
    metrics = json.loads((folder / "ball" / "metrics.json").read_text())
    row = next(line for line in report.splitlines() if line.startswith("| ball"))
    assert (
        f"| {metrics['head_psnr_db']:.2f} | {metrics['head_psnr_db']:.2f} |" in row
    )  # adapted, and the same one as scratch
    assert f"{metrics['baselines']['nearest_warped']['head_psnr_db']:.2f}" in row
    assert (folder / "ball" / "scratch" / "metrics.json").is_file()
    assert evaluate.main([str(folder / "ball" / "scratch")]) == 0
    assert not (folder / "ball" / "scratch" / "evaluation.md").exists()


def test_several_identities_have_a_mean() -> None:
    rows = [
        ("a", dict.fromkeys(evaluate.COLUMNS, 1.0)),
        ("b", dict.fromkeys(evaluate.COLUMNS, 2.0) | {"head_scratch": None}),
    ]
    report = evaluate._markdown(rows)
    mean = next(line for line in report.splitlines() if line.startswith("| mean"))
    assert mean.split(" | ")[1:3] == ["1.50", "1.00"]
    assert mean.endswith("1.5000 |")


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder given"):
        evaluate.main([])
    with pytest.raises(DataError, match="no such folder; make some"):
        evaluate.main([str(tmp_path / "nowhere")])
    with pytest.raises(DataError, match="holds no identity folders"):
        evaluate.main([str(tmp_path)])
    data = tiny.pack(tmp_path / "data")
    identity = tiny.make_identity(tmp_path / "lost", data)
    (tmp_path / "data" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json"):
        evaluate.main([str(identity)])
