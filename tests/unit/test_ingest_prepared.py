"""Folders that the relatives' preprocessing made: what is read, what is refused, and where their worlds lie."""

import json
import shutil
import wave
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_ingest_pose import FOCAL, K, errors_deg, model_matrices, moving_head

from fiag_dist.config import PackConfig
from fiag_dist.errors import DataError
from fiag_dist.ingest import importing, pose, prepared, rest
from fiag_dist.ingest.spool import handed_on
from fiag_dist.ingest.tracks import POSE_SIZE
from fiag_dist.types import ACTION_UNITS

SIDE = 32
FRAMES = 11


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder without a face in it."""
    root = tmp_path / "anna"
    for name in ("ori_imgs", "parsing"):
        (root / name).mkdir(parents=True)
    for i in range(FRAMES):
        cv2.imwrite(str(root / "ori_imgs" / f"{i}.jpg"), np.full((SIDE, SIDE, 3), 20 * i, np.uint8))
        cv2.imwrite(str(root / "parsing" / f"{i}.png"), np.full((SIDE, SIDE, 3), (255, 0, 0), np.uint8))  # BGR: face
    cv2.imwrite(str(root / "bc.jpg"), np.zeros((SIDE, SIDE, 3), np.uint8))
    for name, numbers in (("train", range(10)), ("val", range(10, FRAMES))):
        frames = [{"img_id": i, "aud_id": i, "transform_matrix": np.eye(4).tolist()} for i in numbers]
        tree = {"focal_len": 1200.0, "cx": SIDE / 2, "cy": SIDE / 2, "frames": frames}
        (root / f"transforms_{name}.json").write_text(json.dumps(tree))
    columns = ["frame", *(f" {name}_r" for name in ACTION_UNITS), " AU25_r"]
    rows = [",".join(columns), *(",".join(str(v) for v in [i, *[i / 2] * 7, 1]) for i in range(FRAMES))]
    (root / "au.csv").write_text("\n".join(rows))
    return root


def test_a_folder_is_read(folder: Path) -> None:
    found = prepared.read(folder)
    assert found.numbers == list(range(FRAMES))
    assert found.split == ["train"] * 10 + ["test"]
    assert found.K[0, 0] == 1200
    assert [int(image.mean()) for image in found.crops(16, 2, 5)] == [40, 60, 80]
    assert found.parsing(3)[0, 0].tolist() == [0, 0, 255], "colours are RGB"
    units = found.action_units()
    assert units is not None
    np.testing.assert_allclose(units[:, 0], np.arange(FRAMES) / 10)


def test_frames_missing_in_between_end_a_run(folder: Path) -> None:
    tree = json.loads((folder / "transforms_train.json").read_text())
    del tree["frames"][4]
    (folder / "transforms_train.json").write_text(json.dumps(tree))
    found = prepared.read(folder)
    assert found.numbers == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    looks = importing._without_gaps([importing.span.Look()] * 10, found.numbers)
    use = importing.span.longest(looks)
    assert (use.first, use.stop) == (4, 10)


@pytest.mark.parametrize(
    ("first", "stop", "says"),
    [
        (0, 10, r"anna: none of the 10 used frames, 0 to 9, is in transforms_val\.json, at least one for test needed"),
        (10, 11, r"none of the 1 used frames, 10 to 10, is in transforms_train\.json, at least one for train needed"),
    ],
)
def test_what_is_kept_must_have_frames_to_train_and_to_test(
    folder: Path, monkeypatch: pytest.MonkeyPatch, first: int, stop: int, says: str
) -> None:
    """As if a face were found in frames first .. stop - 1 alone."""
    looks = [importing.span.Look("" if first <= i < stop else "no face") for i in range(FRAMES)]
    monkeypatch.setattr(importing.footage, "watch", lambda *_: SimpleNamespace(looks=looks))
    monkeypatch.setattr(importing.footage, "select", lambda *_: None)
    cfg, clock, wav = PackConfig(min_seconds=0), importing.Stopwatch(None), np.zeros(16_000, np.float32)
    with handed_on(cfg.size) as mattes, pytest.raises(DataError, match=says) as caught:
        importing._import(prepared.read(folder), cfg, "anna", wav, mattes, clock)
    assert "\n" not in str(caught.value)


def test_test_frames_between_training_frames_are_refused(folder: Path) -> None:
    trees = {name: json.loads((folder / f"transforms_{name}.json").read_text()) for name in ("train", "val")}
    trees["val"]["frames"].append(trees["train"]["frames"].pop(3))
    for name, tree in trees.items():
        (folder / f"transforms_{name}.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"anna: frames of transforms_val\.json lie between those of transforms_train"):
        importing._split(prepared.read(folder), importing.span.Span(0, FRAMES, {}))


@pytest.mark.parametrize(("seconds", "volume", "says"), [
    (1.0, 0.0, "anna: its audio track is silent"),
    (0.1, 0.5, r"anna: 0\.1 s usable, 0\.4 s needed: of 0\.4 s 0\.4 s without their sound"),
])  # fmt: skip
def test_frames_need_their_sound(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, volume: float, says: str
) -> None:
    """As if a face were found in each frame."""
    with wave.open(str(folder / "aud.wav"), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(16_000)
        samples = volume * 32767 * np.sin(np.arange(round(seconds * 16_000)) * 0.2)
        stream.writeframes(samples.astype("<i2").tobytes())
    seen = SimpleNamespace(looks=[importing.span.Look()] * FRAMES)
    monkeypatch.setattr(importing.footage, "watch", lambda *_: seen)
    with pytest.raises(DataError, match=says):
        importing.pack_prepared(folder, PackConfig(layout="instag", min_seconds=0.4), "anna")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "transforms_val.json").unlink(), r"transforms_val\.json: can't be read \(No such file"),
        (lambda f: (f / "transforms_val.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "transforms_val.json").write_text('{"frames": []}'), "not in the layout"),
        (lambda f: (f / "parsing" / "7.png").unlink(), r"7\.png: no such file"),
        (lambda f: shutil.rmtree(f / "ori_imgs"), "no picture of frame 0"),
        (lambda f: cv2.imwrite(str(f / "ori_imgs" / "0.jpg"), np.zeros((8, 16, 3))), "16x8 pixels, squares needed"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, spoil, says: str) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=says):
        prepared.read(folder)


def test_a_table_of_action_units_must_fit(folder: Path) -> None:
    table = folder / "au.csv"
    text = table.read_text()
    table.write_text(text.replace("AU45_r", "AU46_r"))
    with pytest.raises(DataError, match="AU45_r"):
        prepared.read(folder).action_units()
    table.write_text("\n".join(text.splitlines()[:5]))
    with pytest.raises(DataError, match="4 rows, frame 10 needed"):
        prepared.read(folder).action_units()
    table.unlink()
    assert prepared.read(folder).action_units() is None


def test_the_head_is_found_in_any_world(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    face = rng.normal(size=(468, 3))
    face[:, 2] = np.abs(face[:, 2])
    face = face / np.linalg.norm(face, axis=1, keepdims=True) * [0.075, 0.1, 0.07]
    for module in (pose, importing):
        monkeypatch.setattr(module, "canonical_vertices", lambda: face)
    true = moving_head(120)
    landmarks = rest.project(np.tile(np.concatenate([face, face[:10]]), (120, 1, 1)), true, K)
    landmarks = (landmarks + rng.normal(size=landmarks.shape) * 0.5).astype(np.float32)
    turn, shift, scale = (
        Rotation.from_euler("xyz", [20, -70, 10], degrees=True).as_matrix(),
        np.array([0.3, -0.2, 0.1]),
        9.3,
    )
    # world = scale turn head + shift, hence world to camera:
    to_camera = np.tile(np.eye(4), (120, 1, 1))
    to_camera[:, :3, :3] = true[:, :3, :3] @ turn.T
    to_camera[:, :3, 3] = scale * true[:, :3, 3] - to_camera[:, :3, :3] @ shift
    place = importing.head_in_world(to_camera, landmarks, model_matrices(true, 0.5, rng), K)
    found = importing.viewmats_of(to_camera, *place)
    assert np.abs(found[:, :3, :3] - true[:, :3, :3]).max() < 0.01
    assert errors_deg(found, true).max() < 1e-4, "the cameras' own motion is kept to the digit"
    np.testing.assert_allclose(found[:, :3, 3], true[:, :3, 3], atol=0.03)
    again = rest.project(np.tile(face, (120, 1, 1)), found, K)
    assert np.abs(again - landmarks[:, :468]).mean() < 0.6
    assert FOCAL / POSE_SIZE == 4.7
