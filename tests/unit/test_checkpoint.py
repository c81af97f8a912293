"""A checkpoint is whole or it is none: round trips, cut-off saves, damage, and what stays of the old ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fiag_dist.dist import checkpoint
from fiag_dist.dist.checkpoint import load, newest, resolve
from fiag_dist.dist.process import Process
from fiag_dist.dist.saving import save
from fiag_dist.errors import CheckpointError, DataError
from fiag_dist.storage import LocalStorage, open_storage

SHARED = {"field.means": torch.arange(12.0).reshape(4, 3), "bits": torch.tensor([-0.0, float("inf"), 1e-45])}
OPTIM = {"field.means:exp_avg": torch.ones(4, 3), "field.means:step": torch.tensor(7.0)}
PEOPLE = {"anna": {"net.weight": torch.eye(3)}, "bob b": {"net.weight": torch.eye(2), "count": torch.tensor([3])}}


def save_at(folder: Path, step: int, keep: int = 0) -> str:
    return save(
        open_storage(folder), "checkpoints", step, SHARED, OPTIM, PEOPLE, {"config": {"a": [1, 2]}}, Process(), keep
    )


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k].view(-1).view(torch.uint8), b[k].view(-1).view(torch.uint8)) for k in a
    )


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    folder = save_at(tmp_path, 1000)
    assert folder == "checkpoints/step-00001000"
    found = load(open_storage(tmp_path), folder)
    assert (found.step, found.world, found.info) == (1000, 1, {"config": {"a": [1, 2]}})
    assert equal(found.shared, SHARED)
    assert equal(found.optim, OPTIM)
    assert [*found.identities] == [*PEOPLE]
    assert all(equal(found.identities[name], PEOPLE[name]) for name in PEOPLE)
    assert "carl" not in found.identities
    with pytest.raises(CheckpointError, match="no identity 'carl' in it; it has anna, bob b"):
        found.identities["carl"]


def test_views_of_one_buffer_can_be_saved(tmp_path: Path) -> None:
    buffer = torch.arange(6.0)
    shared = {"all": buffer, "part": buffer[2:4], "turned": buffer.reshape(2, 3).T}
    folder = save(open_storage(tmp_path), "", 1, shared, {}, {}, {}, Process())
    assert equal(load(open_storage(tmp_path), folder).shared, {k: v.contiguous() for k, v in shared.items()})


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    folder = save_at(tmp_path, 1)
    (tmp_path / folder / "identities/anna.safetensors").write_bytes(b"damaged")
    found = load(open_storage(tmp_path), folder)
    assert equal(found.identities["bob b"], PEOPLE["bob b"])
    with pytest.raises(CheckpointError, match=r"anna\.safetensors: bytes 7, expected \d+ .*delete the folder"):
        found.identities["anna"]


def test_embeddings_of_all_are_read_from_one_file(tmp_path: Path) -> None:
    people = {name: tensors | {"embedding": torch.randn(4)} for name, tensors in PEOPLE.items()}
    storage = open_storage(tmp_path)
    folder = save(storage, "", 1, SHARED, OPTIM, dict(reversed(people.items())), {}, Process())
    for name in people:
        (tmp_path / folder / f"identities/{name}.safetensors").write_bytes(b"not asked for")
    found = load(storage, folder).embeddings
    assert [*found] == [*people]
    assert all(torch.equal(found[name], people[name]["embedding"]) for name in people)


def test_embeddings_of_an_older_checkpoint_are_read_one_by_one(tmp_path: Path) -> None:
    people = {name: tensors | {"embedding": torch.randn(4)} for name, tensors in PEOPLE.items()}
    storage = open_storage(tmp_path)
    folder = save(storage, "", 1, SHARED, OPTIM, people, {}, Process())
    commit = json.loads(storage.read(f"{folder}/COMMIT.json"))
    del commit["files"]["embeddings/0.safetensors"]
    storage.write(f"{folder}/COMMIT.json", json.dumps(commit).encode())
    found = load(storage, folder).embeddings
    assert all(torch.equal(found[name], people[name]["embedding"]) for name in people)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = save_at(tmp_path, 1)
    file = tmp_path / folder / "shared.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"shared\.safetensors: SHA-256 \w{64}, expected \w{64}"):
        _ = load(open_storage(tmp_path), folder).shared


@pytest.mark.parametrize(
    ("commit", "message"),
    [
        (None, r"step-00000001: no COMMIT\.json, so it was never finished"),
        ("{", r"COMMIT\.json: damaged \(JSONDecodeError"),
        ("[]", r"COMMIT\.json: damaged \(TypeError"),
        ('{"format": 1, "step": 1}', r"COMMIT\.json: damaged \(KeyError: 'world'\)"),
        ('{"format": 99}', "format 99, this version reads 1"),
    ],
)
def test_a_folder_without_a_good_commit_is_no_checkpoint(tmp_path: Path, commit: str | None, message: str) -> None:
    folder = save_at(tmp_path, 1)
    file = tmp_path / folder / "COMMIT.json"
    file.unlink()
    if commit is not None:
        file.write_text(commit)
    with pytest.raises(CheckpointError, match=message):
        load(open_storage(tmp_path), folder)
    assert newest(open_storage(tmp_path), "checkpoints") is None


def test_newest_passes_over_what_is_not_whole_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2, 3, 4, 5):
        save_at(tmp_path, step)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000005/COMMIT.json").unlink()
    (folder / "step-00000004/identities/anna.safetensors").unlink()
    with (folder / "step-00000003/shared_optim.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x77")
    (folder / "notes").mkdir()
    (folder / "step-x").mkdir()
    assert newest(open_storage(tmp_path), "checkpoints") == "checkpoints/step-00000002"
    said = capsys.readouterr().out.splitlines()
    assert [line.startswith("checkpoint passed over: ") for line in said] == [True] * 3
    assert "no COMMIT.json" in said[0]
    assert "anna.safetensors: bytes no file, expected" in said[1]
    assert "shared_optim.safetensors: SHA-256" in said[2]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (5, 123456789, 99999999):
        save_at(tmp_path, step)
    assert newest(open_storage(tmp_path), "checkpoints") == "checkpoints/step-123456789"


def test_old_ones_go_after_the_commit_and_leftovers_with_them(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3, 9):
        save_at(tmp_path, step)
    (folder / "step-00000003/COMMIT.json").unlink()
    save_at(tmp_path, 4, keep=2)
    # 9 is newer than the step just saved: not ours to delete
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000002", "step-00000004", "step-00000009"]


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    folder = save_at(tmp_path, 1)
    (tmp_path / folder / "identities/ghost.safetensors").write_bytes(b"left over")
    (tmp_path / folder / "COMMIT.json").unlink()
    save_at(tmp_path, 1)
    assert not (tmp_path / folder / "identities/ghost.safetensors").exists()
    assert equal(load(open_storage(tmp_path), folder).shared, SHARED)


def test_a_run_folder_stands_for_its_newest(tmp_path: Path) -> None:
    save_at(tmp_path, 1)
    save_at(tmp_path, 2)
    for url, step in (
        (".", 2),
        ("checkpoints", 2),
        ("checkpoints/step-00000001", 1),
        ("checkpoints/step-00000001/", 1),
    ):
        storage, folder = resolve(f"{tmp_path}/{url}")
        found = load(storage, folder)
        assert found.step == step
        assert equal(found.shared, SHARED)
    for url in ("nowhere", "checkpoints/step-00000001/identities"):
        with pytest.raises(
            CheckpointError, match="no committed checkpoint in it or in its folder checkpoints; give a run"
        ):
            resolve(f"{tmp_path}/{url}")
    with pytest.raises(CheckpointError, match=r"step-00000007: no COMMIT\.json"):
        load(*resolve(f"{tmp_path}/checkpoints/step-00000007"))
    (tmp_path / "checkpoints/step-00000002").rename(tmp_path / "renamed")
    with pytest.raises(CheckpointError, match="named step-NNNNNNNN"):
        resolve(f"{tmp_path}/renamed")


class FullDisk(LocalStorage):
    """No room for anything whose path holds `word`."""

    def __init__(self, folder: str, word: str) -> None:
        super().__init__(folder)
        self._word = word

    def write(self, path: str, data: bytes) -> None:
        if self._word in path:
            raise DataError(f"{path}: the disk is full")
        super().write(path, data)


@pytest.mark.parametrize("word", ["shared_optim", "anna", "COMMIT"])
def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path, word: str) -> None:
    save_at(tmp_path, 1)
    with pytest.raises(
        CheckpointError, match=r"step 2: rank 0 could not write: .*disk is full; .*before it are untouched"
    ):
        save(FullDisk(str(tmp_path), word), "checkpoints", 2, SHARED, OPTIM, PEOPLE, {}, Process(), keep=1)
    assert newest(open_storage(tmp_path), "checkpoints") == "checkpoints/step-00000001"
    save_at(tmp_path, 2, keep=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


KILLED = """
import os, signal, sys, torch
from fiag_dist.dist import saving
from fiag_dist.dist.process import Process
from fiag_dist.storage import LocalStorage

class Killed(LocalStorage):
    def write(self, path, data):
        if sys.argv[2] in path:
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(path, data)

saving.save(Killed(sys.argv[1]), "checkpoints", 2, {"a": torch.ones(3)}, {}, {"anna": {}}, {}, Process(), keep=1)
"""


@pytest.mark.parametrize("word", ["shared.safetensors", "COMMIT"])
def test_kill_9_in_a_save_leaves_the_one_before(tmp_path: Path, word: str) -> None:
    save_at(tmp_path, 1)
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), word], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == -9, ended.stderr
    assert (tmp_path / "checkpoints/step-00000002").exists()
    storage, folder = resolve(str(tmp_path))
    assert folder == "checkpoints/step-00000001"
    assert equal(load(storage, folder).shared, SHARED)


def test_the_commit_names_every_file_with_its_size(tmp_path: Path) -> None:
    folder = tmp_path / save_at(tmp_path, 1)
    commit = json.loads((folder / "COMMIT.json").read_text())
    on_disk = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*.safetensors")}
    assert {path: entry["bytes"] for path, entry in commit["files"].items()} == on_disk
    assert checkpoint.SHARED in on_disk
