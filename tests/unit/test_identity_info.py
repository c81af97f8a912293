"""What an identity folder says of itself, which ones are refused, and how a note of consent gets into it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_identity as tiny
import torch
from rights import as_nobody
from safetensors.torch import load_file, save_file

from fiag_dist import identity_info
from fiag_dist.acting.actor import VERSION, load_info
from fiag_dist.acting.synthesize import Identity
from fiag_dist.config import FieldConfig, ModelConfig, TrainConfig
from fiag_dist.errors import DataError
from fiag_dist.model.audio import WIDE
from fiag_dist.shards.manifest import read_manifest, write_manifest
from fiag_dist.storage import open_storage
from fiag_dist.training.bake import write_identity_folder
from fiag_dist.training.start import fresh_head


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.pack(tmp_path_factory.mktemp("info") / "data")


def test_info_says_what_it_is(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.make_identity(tmp_path / "ball", data, consent="agreed, for tests only")
    assert identity_info.main(["info", str(folder)]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["name"] == "ball"
    assert said["images"] == "64x64 at 25 fps"
    assert said["Gaussians"] == "600 face, 40 mouth, spherical harmonics of degree 1"
    assert said["hears"] == "mel, 80 x 4 a frame"
    assert said["consent"] == "agreed, for tests only"
    assert len(said["SHA-256"]) == 64
    needed = sum(path.stat().st_size for path in folder.iterdir())
    assert said["bytes"] == f"{needed:,} to render, {needed:,} in the folder"
    (folder / "poses.npz").unlink()
    identity_info.main(["info", str(folder)])
    assert "poses.npz; adapt the clip again" in capsys.readouterr().out


def test_other_versions_are_refused_with_what_helps(data: str, tmp_path: Path) -> None:
    folder = tiny.make_identity(tmp_path / "ids" / "ball", data)
    path = folder / "identity.json"
    whole = json.loads(path.read_text())
    old = {"source": "ball.mp4", "checkpoint": "runs/a"}
    cases = [
        ({"version": VERSION + 1}, r"newer fiag_dist: git pull, then bash launch/install.sh"),
        ({"version": 0, **old}, rf"fiag-dist adapt ball\.mp4 --from runs/a --out {tmp_path}/ids$"),
        ({"version": "one"}, "damaged"),
        ({"size": "64"}, "damaged.*size"),
        ({"size": 10**9}, "damaged.*4096"),
        ({"fps": 0}, "damaged"),
        ({"colour": "red"}, "damaged"),
        ({"motion": {"form": "other"}}, "damaged"),
    ]
    for change, message in cases:
        path.write_text(json.dumps(whole | change))
        with pytest.raises(DataError, match=message) as caught:
            load_info(folder)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=f"is a file; give the folder that it lies in: {folder}$"):
        load_info(path)
    for text in ("", "[]", "{", '{"version": 1}'):
        path.write_text(text)
        with pytest.raises(DataError, match="damaged"):
            load_info(folder)
    before = dict(whole)
    del before["consent"]
    path.write_text(json.dumps(before))
    assert load_info(folder).consent == "", "one written before there were notes still loads"


@pytest.mark.parametrize("name", ["identity.json", "identity.safetensors", "poses.npz", "backdrop.mp4", ""])
def test_what_rights_keep_from_being_read_is_not_called_damaged(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tiny.make_identity(tmp_path / "ball", data)
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    (folder / name).chmod(0)
    refused = re.escape(f"identity ball: {name or 'identity.json'} can't be read (Permission denied); check its rights")
    with as_nobody():
        with pytest.raises(DataError, match=refused):
            Identity.load("ball")
        if name not in ("poses.npz", "backdrop.mp4"):
            with pytest.raises(DataError, match=refused):
                identity_info.main(["info", "ball"])


def before_gaze(folder: Path, tensors: dict[str, torch.Tensor], version: int) -> None:
    """Makes it a folder as an earlier version wrote it: seven channels of expression, and hair that moves with the face."""
    for name in ("universal.face.net.0.weight", "personal.net.0.weight"):
        tensors[name] = torch.cat([tensors[name][:, :-3], tensors[name][:, -1:]], 1).contiguous()
    save_file(tensors, folder / "identity.safetensors")
    with np.load(folder / "poses.npz") as stored:
        tracks = {name: stored[name] for name in stored.files if name != "swing"}
    tracks["expressions"] = np.delete(tracks["expressions"], [6, 7], axis=1)
    np.savez(folder / "poses.npz", **tracks)
    info = json.loads((folder / "identity.json").read_text()) | {"version": version}
    (folder / "identity.json").write_text(json.dumps(info))


def test_a_folder_of_version_4_shows_what_it_showed(data: str, tmp_path: Path) -> None:
    folder = tiny.make_identity(tmp_path / "ball", data, motion_scale=3.0)
    poses = dict(np.load(folder / "poses.npz"))
    poses["expressions"][:, -1] = np.linspace(0, 1, len(poses["expressions"]))
    np.savez(folder / "poses.npz", **poses)
    expected = list(Identity.load(folder).frames(tiny.voice(0.4)))
    before_gaze(folder, load_file(folder / "identity.safetensors"), 4)
    frames = list(Identity.load(folder).frames(tiny.voice(0.4)))
    assert all(np.array_equal(old, new) for old, new in zip(frames, expected, strict=True))
    poses["expressions"][:, -1] = 0
    np.savez(folder / "poses.npz", **poses)
    awake = list(Identity.load(folder).frames(tiny.voice(0.4)))
    assert not all(np.array_equal(old, new) for old, new in zip(frames, awake, strict=True)), "the last channel counts"


def test_a_folder_of_version_1_shows_what_it_showed(data: str, tmp_path: Path) -> None:
    folder = tiny.make_identity(tmp_path / "ball", data, motion_scale=3.0)
    path, name = folder / "identity.safetensors", "universal.listener."
    tensors = load_file(path)
    dim = len(tensors[name + "center"])
    tensors[name + "voice"] = torch.cat([torch.zeros(dim), torch.ones(1)])
    save_file(tensors, path)
    expected = list(Identity.load(folder).frames(tiny.voice(0.2)))
    # Version 1 took one mean away from the five windows, and knew nothing of silence.
    tensors[name + "mean"] += tensors[name + "center"].repeat(5)
    del tensors[name + "center"], tensors[name + "voice"]
    before_gaze(folder, tensors, 1)
    for old, new in zip(Identity.load(folder).frames(tiny.voice(0.2)), expected, strict=True):
        assert np.abs(old.astype(int) - new).max() <= 2


def test_a_folder_of_version_3_hears_silence_where_it_heard_it(data: str, tmp_path: Path) -> None:
    folder = tiny.make_identity(tmp_path / "ball", data, motion_scale=3.0)
    path, name = folder / "identity.safetensors", "universal.listener."
    tensors = load_file(path)
    assert tensors[name + "gate"].tolist() == pytest.approx(WIDE), "this clip shows what is heard when sound has ended"
    tensors[name + "voice"][:-1] = 0.0
    tensors[name + "voice"][-1] = 0.42  # silence in version 3, and speech since
    save_file(tensors, path)
    spoken = list(Identity.load(folder).frames(tiny.voice(0.2)))
    del tensors[name + "gate"]
    before_gaze(folder, tensors, 3)
    frames = list(Identity.load(folder).frames(tiny.voice(0.2)))
    silent = list(Identity.load(folder).frames(np.zeros_like(tiny.voice(0.2))))
    assert all(np.array_equal(frame, other) for frame, other in zip(frames, silent, strict=True))
    assert not all(np.array_equal(frame, other) for frame, other in zip(frames, spoken, strict=True))


def test_a_note_of_consent_goes_from_the_manifest_into_the_identity(data: str, tmp_path: Path) -> None:
    store = open_storage(data)
    manifest = read_manifest(store)
    noted = [type(entry)(**{**vars(entry), "consent": "yes, by letter"}) for entry in manifest.identities]
    write_manifest(store, type(manifest)(**{**vars(manifest), "identities": noted}))
    manifest = read_manifest(store)
    field = FieldConfig(num_face=100, num_mouth=20, capacity_face=100, capacity_mouth=20)
    head = fresh_head(TrainConfig(model=ModelConfig(field=field)), store, manifest, manifest.names)
    write_identity_folder(tmp_path / "ball", head, head.universal.new_personal(), store, manifest, "ball", "", 0)
    assert load_info(tmp_path / "ball").consent == "yes, by letter"
