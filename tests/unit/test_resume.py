"""With what a pretraining goes on from a checkpoint: its people, their footage, its settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_identity
import torch
from test_variants import training

from fiag_dist.acting.actor import load_info
from fiag_dist.config import PretrainConfig
from fiag_dist.dist import checkpoint, saving
from fiag_dist.dist.checkpoint import Checkpoint
from fiag_dist.dist.process import Process
from fiag_dist.errors import CheckpointError, DataError
from fiag_dist.pretrain import identity_tensors, newest_of
from fiag_dist.pretraining import resume
from fiag_dist.shards.manifest import Manifest, read_manifest, write_manifest
from fiag_dist.shards.writer import write_identity
from fiag_dist.storage import open_storage
from fiag_dist.training.bake import bake_run


@contextmanager
def begun(folder: Path) -> Iterator[tuple[Checkpoint, PretrainConfig, Manifest]]:
    """A run of two people in `folder`, saved before its first step; its settings, and the shards' manifest."""
    url = tiny_identity.pack(folder / "shards", "ball", "twin")
    storage, manifest = open_storage(folder / "run"), read_manifest(url)
    with training(url, {}) as made:
        config = PretrainConfig(data=url, train=made.config)
        kept = {name: identity_tensors(made, name) for name in made.feed.names}
        info = resume.info(config, manifest, made.feed.names, {})
        saving.save(storage, checkpoint.FOLDER, 0, *made.shared(), kept, info, Process(), keep=1)
    stored = newest_of(storage, Process())
    assert stored
    yield stored, config, manifest


def repacked(manifest: Manifest, name: str) -> Manifest:
    """The same people, one of them with other shards."""
    entries = [replace(e, shards=[replace(s, sha256="5e" * 32) for s in e.shards]) for e in manifest.identities]
    changed = {entry.name: entry for entry in entries}[name]
    return replace(manifest, identities=[changed if e.name == name else e for e in manifest.identities])


def test_a_run_goes_on_with_its_people_or_with_some_that_are_named(tmp_path: Path) -> None:
    with begun(tmp_path) as (stored, config, manifest):
        assert resume.check(stored, config, manifest, ("ball", "twin")) == []
        with pytest.raises(CheckpointError, match=r"begun without anna; go on without them \(--identities\)"):
            resume.check(stored, config, manifest, ("ball", "twin", "anna"))
        with pytest.raises(CheckpointError, match=rf"begun with twin, not in {config.data} now; wait until they are"):
            resume.check(stored, config, manifest, ("ball",))
        named = replace(config, identities=("ball",))
        assert [line for line in resume.check(stored, named, manifest, ("ball",)) if "twin" in line] == []
        done = replace(stored, step=10**9)
        assert resume.check(done, config, manifest, ("ball",)) == [], "nothing more is trained"


def test_other_footage_is_named_and_never_forgotten(tmp_path: Path) -> None:
    with begun(tmp_path) as (stored, config, manifest):
        people, first = ("ball", "twin"), manifest.entry("ball").sha256
        assert stored.info["footage"] == {name: manifest.entry(name).sha256 for name in people}
        anew = repacked(manifest, "ball")
        (line,) = resume.check(stored, config, anew, people)
        assert "holds other footage of ball, or packed otherwise" in line
        footage = resume.info(config, anew, people, stored.info)["footage"]
        assert footage == {"ball": f"{first}+{anew.entry('ball').sha256}", "twin": manifest.entry("twin").sha256}
        for now in (anew, manifest):  # packed as before it is still somebody who was learnt from twice
            later = resume.info(config, now, people, {"footage": footage})["footage"]
            assert later == footage
        assert (
            "other footage of ball"
            in resume.check(replace(stored, info={**stored.info, "footage": footage}), config, manifest, people)[0]
        )


def test_people_of_a_run_know_what_it_has_learnt_from(tmp_path: Path) -> None:
    """Not what lies in the shards when they are baked."""
    with begun(tmp_path) as (stored, config, manifest):
        learnt = stored.info["footage"]
        store = open_storage(config.data)
        anew = write_identity(store, *tiny_identity.clip("ball"), 10)  # in two shards, where it was in one
        write_manifest(store, replace(manifest, identities=[anew, manifest.entry("twin")]))
        people = bake_run(str(tmp_path / "run"))
        assert read_manifest(config.data).entry("ball").sha256 != learnt["ball"]
        assert {name: load_info(people / name).footage for name in learnt} == learnt


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it can be had")
def test_people_are_baked_where_what_encoded_in_training_cannot_be_had(tmp_path: Path) -> None:
    with begun(tmp_path) as (stored, _, _):
        commit = tmp_path / "run" / stored.folder / checkpoint.COMMIT
        asked = commit.read_text().replace('"encoder": "auto"', '"encoder": "tcnn"')
        assert asked.count("tcnn") == 1
        commit.write_text(asked)
        assert load_info(bake_run(str(tmp_path / "run")) / "ball").steps == 0


def test_who_was_taken_out_of_the_shards_keeps_nobody_else_from_being_baked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with begun(tmp_path) as (stored, config, manifest):
        store = open_storage(config.data)
        write_manifest(store, replace(manifest, identities=[manifest.entry("twin")]))
        people = bake_run(str(tmp_path / "run"))
        assert [folder.name for folder in people.iterdir() if folder.is_dir()] == ["twin"]
        assert capsys.readouterr().out == f"{tmp_path}/run: left out, no longer in {store.url}: ball\n"
        strangers = [replace(manifest.entry(name), name=f"{name}_2") for name in stored.identities]
        write_manifest(store, replace(manifest, identities=strangers))
        with pytest.raises(DataError, match=f"^{store.url}: holds nobody of run {tmp_path}/run; name its shards with"):
            bake_run(str(tmp_path / "run"))
