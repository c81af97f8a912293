"""Scores of an identity: the numbers mean what they say, the files appear, and mistakes are named."""

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tiny_identity as tiny

from fiag_dist import evaluate
from fiag_dist.acting.backdrop import behind
from fiag_dist.acting.synthesize import Identity
from fiag_dist.errors import CheckpointError, ConfigError, DataError
from fiag_dist.evaluation import examine
from fiag_dist.evaluation.subject import Subject
from fiag_dist.metrics.panel import Panel
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.storage import open_storage
from fiag_dist.training import bake
from fiag_dist.training.start import fresh_head


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one identity, `ball`, with a second one trained from scratch inside it."""
    home = tmp_path_factory.mktemp("evaluate")
    data = tiny.pack(home / "data")
    tiny.make_identity(home / "ids" / "ball", data)
    tiny.make_identity(home / "ids" / "ball" / "scratch", data)
    return home / "ids"


def test_what_is_behind_shows_nothing_of_the_head() -> None:
    frame = tiny.clip("ball")[1][0]
    error = np.abs(behind(frame.image, frame.alpha).astype(int) - tiny.wall())
    assert error[frame.alpha == 0].mean() < 1
    assert error[frame.alpha > 0].max() < 40  # the ball differs from the wall by 100
    assert np.abs(frame.image.astype(int) - tiny.wall()).max() > 90


def test_metrics_strip_and_baselines_are_written(folder: Path) -> None:
    identity = folder / "ball"
    (identity / "metrics.json").write_text(json.dumps({"seconds": 12.5, "head_psnr_db": -1, "lmd_px_at_512": 3.0}))
    metrics = examine.evaluate_identity(identity)
    stored = json.loads((identity / "metrics.json").read_text())
    assert stored == {"seconds": 12.5} | metrics  # what adaptation noted there stays, old scores do not
    assert metrics["test_frames"] == tiny.TEST
    assert metrics["train_frames_scored"] == tiny.TRAIN // 5
    assert metrics["train_head_psnr_db"] == metrics["train"]["head_psnr_db"]
    base = metrics["baselines"]
    assert base["nearest_warped"]["head_psnr_db"] > base["nearest"]["head_psnr_db"] + 3  # the ball only moves
    assert base["mouth_blind_warped"]["head_psnr_db"] == base["nearest_warped"]["head_psnr_db"]  # it has no mouth
    assert 10 < metrics["head_psnr_db"] < base["nearest"]["head_psnr_db"]  # nothing was learnt
    strip = cv2.imread(str(identity / "strip.png"))
    assert strip is not None
    assert strip.shape == (2 * tiny.SIZE, tiny.TEST * tiny.SIZE, 3)
    truth = cv2.cvtColor(strip[: tiny.SIZE, : tiny.SIZE], cv2.COLOR_BGR2RGB)
    assert np.abs(truth.astype(int) - tiny.picture(tiny.TRAIN)[0]).mean() < 3  # JPEG in the shards


def test_new_scores_join_those_of_the_same_identity_and_replace_those_of_another(folder: Path) -> None:
    identity = folder / "ball"
    (identity / "metrics.json").unlink(missing_ok=True)
    full = examine.evaluate_identity(identity)
    with Panel(["ssim"]) as panel:
        only = examine.evaluate_identity(identity, examine.Evaluation(panel))
    assert "head_psnr_db" not in only
    assert json.loads((identity / "metrics.json").read_text()) == full
    for changed in ("tensors_sha256", "footage_sha256"):
        (identity / "metrics.json").write_text(json.dumps(full | {changed: "another"}))
        with Panel(["ssim"]) as panel:
            only = examine.evaluate_identity(identity, examine.Evaluation(panel))
        assert json.loads((identity / "metrics.json").read_text()) == only


def test_scores_of_another_voice_replace_all_those_of_the_one_before() -> None:
    same = {"tensors_sha256": "t", "footage_sha256": "f"}
    stored = {**same, "head_psnr_db": 30.0, "speech_voice": "anna", "speech_sync_c": 5.0}
    found = {**same, "speech_voice": "ben", "speech_score": 0.8}
    assert examine._merged(stored, found) == {**same, "head_psnr_db": 30.0, "speech_voice": "ben", "speech_score": 0.8}


def test_frames_that_may_have_been_trained_on_are_named(tmp_path: Path) -> None:
    identity = tiny.make_identity(tmp_path / "ball", tiny.pack(tmp_path / "data"))
    info = json.loads((identity / "identity.json").read_text())
    own = read_manifest(str(tmp_path / "data")).entry("ball").sha256
    (identity / "identity.json").write_text(json.dumps(info | {"footage": own}))
    assert examine.evaluate_identity(identity)["notes"] == []
    (identity / "identity.json").write_text(json.dumps(info | {"footage": "of other shards"}))
    (note,) = examine.evaluate_identity(identity)["notes"]
    assert "some of these test frames may have been" in note


@pytest.mark.weights
def test_what_was_asked_for_by_name_and_can_not_be_had_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match="no face found in 4 of 4 true test frames"):
        evaluate.main([str(folder / "ball"), "--metrics", "lmd"])


def test_a_render_equal_to_the_truth_scores_its_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "play", lambda self, frame, backdrop=None: frame.image)
    with Panel() as panel:
        metrics = examine.evaluate_identity(folder / "ball" / "scratch", examine.Evaluation(panel, encoded=True))
    assert metrics["head_psnr_db"] == metrics["train_head_psnr_db"] == metrics["full_psnr_db"] == 100.0
    assert metrics["encoded"]["full_psnr_db"] == 100.0  # both went through the same encoder


def test_encoding_render_and_truth_changes_the_score_a_little(folder: Path) -> None:
    with Panel() as panel:
        metrics = examine.evaluate_identity(folder / "ball", examine.Evaluation(panel, encoded=True))
    assert 0 < abs(metrics["encoded"]["full_psnr_db"] - metrics["full_psnr_db"]) < 3


@pytest.mark.weights
def test_pictures_without_a_face_give_no_numbers_and_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(folder)]) == 0
    metrics = json.loads((folder / "ball" / "metrics.json").read_text())
    for key in (
        "lmd_px_at_512",
        "mouth_opening_correlation",
        "eye_closure_slope",
        "aue_upper_intensity2",
        "identity_cosine",
    ):
        assert metrics[key] is None
    assert metrics["full_lpips"] > 0
    assert metrics["notes"] == ["no face found in 4 of 4 true test frames and 4 of 4 rendered ones"]
    shown = capsys.readouterr().out
    assert "ball: no face found in 4 of 4 true test frames" in shown
    assert "LMD" not in shown
    report = (folder / "evaluation.md").read_text()
    assert "head LPIPS" in report
    assert "no face found" in report


def test_command_prints_one_row_and_writes_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(folder), "--fast"]) == 0
    shown = capsys.readouterr().out
    assert "ball" in shown
    assert "scratch" in shown
    assert "LPIPS" not in shown
    report = (folder / "evaluation.md").read_text()
    metrics = json.loads((folder / "ball" / "metrics.json").read_text())
    row = next(line for line in report.splitlines() if line.startswith("| ball"))
    head = f"{metrics['head_psnr_db']:.2f}"
    assert f"| {head} | {head} |" in row  # adapted, and the same one as scratch
    assert f"{metrics['baselines']['nearest_warped']['head_psnr_db']:.2f}" in row
    assert (folder / "ball" / "scratch" / "metrics.json").is_file()
    assert evaluate.main([str(folder / "ball" / "scratch"), "--metrics", "ssim,psnr"]) == 0
    assert not (folder / "ball" / "scratch" / "evaluation.md").exists()


def test_shards_that_were_moved_are_found(folder: Path, tmp_path: Path) -> None:
    identity = tiny.make_identity(tmp_path / "ball", tiny.pack(tmp_path / "data"))
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"where are they now\? --data SHARDS$"):
        evaluate.main([str(identity), "--fast"])
    assert evaluate.main([str(identity), "--fast", "--data", str(tmp_path / "elsewhere")]) == 0


def test_identities_that_were_moved_with_their_shards_find_them(tmp_path: Path) -> None:
    tiny.make_identity(tmp_path / "ids" / "ball", tiny.pack(tmp_path / "ids" / "shards"))
    (tmp_path / "s[").mkdir()  # a path that a terminal's markup would stumble over
    (tmp_path / "ids").rename(tmp_path / "s[/m]")
    assert evaluate.main([str(tmp_path / "s[/m]"), "--fast"]) == 0


def test_shards_that_were_packed_otherwise_are_refused_in_a_line(tmp_path: Path) -> None:
    identity = tiny.make_identity(tmp_path / "ball", tiny.pack(tmp_path / "data"))
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"extractor": "mel"', '"extractor": "whisper:2"'))
    with pytest.raises(
        CheckpointError, match=r"^identity \S+ball: trained with extractor 'mel', the shards have 'whisper:2'; pack"
    ):
        examine.evaluate_identity(identity)


def test_a_folder_that_was_half_replaced_is_no_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_storage(tiny.pack(tmp_path / "data"))
    identity, manifest = tiny.make_identity(tmp_path / "ids" / "ball", data.url), read_manifest(data)
    head = fresh_head(tiny.tiny_config(), data, manifest, ["ball"])

    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bake, "write_backdrop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bake.write_identity_folder(identity, head, head.universal.new_personal(), data, manifest, "ball", "", 1)
    with pytest.raises(DataError, match="holds no identity folders"):
        evaluate.main([str(tmp_path / "ids")])
    with pytest.raises(DataError, match="so it is no finished identity"):
        Identity.load(identity)


def test_the_table_keeps_what_earlier_calls_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(folder), "--fast"]) == 0
    metrics = json.loads((folder / "ball" / "metrics.json").read_text())
    earlier = {"lmd_px_at_512": 7.77, "faces_found_true_frames": 4}
    (folder / "ball" / "metrics.json").write_text(json.dumps(metrics | earlier))
    capsys.readouterr()
    assert evaluate.main([str(folder), "--metrics", "ssim"]) == 0
    shown, table = capsys.readouterr().out, (folder / "evaluation.md").read_text()
    for number in ("7.77", f"{metrics['head_psnr_db']:.2f}"):
        assert number in table
        assert number not in shown
    assert evaluate.METHODS in table


def test_a_damaged_identity_costs_the_others_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.pack(tmp_path / "data", "anna", "ben")
    home = tmp_path / "ids"
    for name in ("anna", "ben"):
        tiny.make_identity(home / name, data, name)
    (home / "anna" / "identity.safetensors").write_bytes(b"cut")
    assert evaluate.main([str(home), "--fast"]) == 1
    out, said = capsys.readouterr()
    assert "ben" in out
    assert said.startswith(
        f"fiag-dist: anna left out: identity {home}/anna: identity.safetensors is missing or damaged"
    )
    assert said.count("\n") == 1
    table = (home / "evaluation.md").read_text()
    assert "| ben |" in table
    assert "anna" not in table
    (home / "ben" / "identity.json").write_text("{}")
    with pytest.raises(DataError, match=r"anna: identity\.safetensors"):
        evaluate.main([str(home), "--fast"])


def test_who_can_not_be_read_has_no_embedding(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MODEL", "none")  # who made up the embeddings of the ball
    (tmp_path / "identity.json").write_text("{}")
    asked = SimpleNamespace(panel=SimpleNamespace(names=["identity"]), data_of=lambda folder, info: info.data)
    assert list(evaluate.embeddings_of([tmp_path, folder / "ball"], asked)) == ["ball"]  # type: ignore[arg-type]


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder given"):
        evaluate.main([])
    with pytest.raises(ConfigError, match="--fast and --metrics lmd: give one of them"):
        evaluate.main([str(folder), "--fast", "--metrics", "lmd"])
    with pytest.raises(ConfigError, match="metric 'mouths': unknown"):
        evaluate.main([str(folder), "--metrics", "psnr,mouths"])
    with pytest.raises(DataError, match=r"typo\.wav: can't be read"):
        evaluate.main([str(folder), "--fast", "--audio", str(tmp_path / "typo.wav")])
    with pytest.raises(DataError, match="no such folder; make some"):
        evaluate.main([str(tmp_path / "nowhere")])
    with pytest.raises(DataError, match="holds no identity folders"):
        evaluate.main([str(tmp_path)])
    (tmp_path / "runs" / "mine" / "checkpoints").mkdir(parents=True)
    with pytest.raises(DataError, match=r"/runs: a folder of runs; name one: .*/runs/mine$"):
        evaluate.main([str(tmp_path / "runs")])
    with pytest.raises(
        ConfigError, match=r"^s3://b/ids: evaluate, .* on this machine; .*: aws s3 cp --recursive s3://b/ids ids$"
    ):
        evaluate.main(["s3://b/ids"])
    with pytest.raises(ConfigError, match=r"copy it here first: aws s3 cp s3://b/a\.wav a\.wav$"):
        evaluate.main([str(folder), "--audio", "s3://b/a.wav"])
