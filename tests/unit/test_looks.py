"""Looks at people in training: everybody is seen by somebody, and pictures hold what their headings say."""

import io
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_identity
import torch
from made_shards import write_two
from PIL import Image

from fiag_dist.acting import backdrop
from fiag_dist.bench.step import Bench, build
from fiag_dist.config import AudioConfig, TrainConfig
from fiag_dist.dist.ownership import assign
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.storage import open_storage
from fiag_dist.training import looks
from fiag_dist.training.feed import Feed


@pytest.mark.parametrize("form", ["direct", "attention"])
def test_a_picture_has_truth_render_coverage_and_what_moves(tmp_path: Path, form: str) -> None:
    data = open_storage(tiny_identity.pack(tmp_path))
    config = Bench(num_gaussians=300)._config()
    config = replace(
        config, model=replace(config.model, motion=replace(config.model.motion, form=form, audio=AudioConfig(dim=32)))
    )
    training = build(config, data, read_manifest(data), torch.device("cpu"))
    with torch.no_grad():  # fresh networks hardly say anything
        for parameter in training.head.universal.face.parameters():
            parameter.mul_(2)
    with closing(training.feed):
        seen = looks.look(training, fps=25)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(backdrop, "behind", None)  # what is fixed of these frames is known by now
            again = looks.look(training, fps=25)
    assert (again.scores, again.pictures) == (seen.scores, seen.pictures)
    (name,) = training.feed.names
    assert seen.scores.keys() == {f"eval/psnr_db/{name}", "memory/personal_mib"}
    assert 0 < seen.scores[f"eval/psnr_db/{name}"] < 60
    with Image.open(io.BytesIO(seen.pictures[f"identities/{name}"])) as image:
        rows = np.asarray(image)[-looks.PICTURED * tiny_identity.SIZE :]
    truth, render, coverage, drives = np.split(rows[: tiny_identity.SIZE].astype(int), 4, 1)
    shot = training.feed.test_shots(name, looks.FRAMES)[0]
    assert np.abs(truth - 255 * shot.image.permute(1, 2, 0).numpy()).max() <= 1
    far = shot.alpha[0].numpy() == 0
    clear = far & (coverage[..., 0] == 0)
    assert clear.any()
    assert np.abs(truth - render)[clear].max() <= 1, "around the head it is the truth's own background"
    assert coverage[~far].mean() > 3 * coverage[far].mean()
    assert (coverage[..., 0] == coverage[..., 2]).all()
    assert np.ptp(drives[..., 0] - drives[..., 1]) + np.ptp(drives[..., 2] - drives[..., 1]) > 20
    with Image.open(io.BytesIO(seen.pictures[f"films/{name}"])) as film:
        assert (film.n_frames, film.size) == (tiny_identity.TEST, (2 * tiny_identity.SIZE, tiny_identity.SIZE))


def test_those_who_are_watched_do_not_depend_on_ranks(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    manifest = write_two(storage)
    frames = dict.fromkeys(manifest.names, 20)
    for limit, wanted in ((1, ["anna"]), (9, ["anna", "bert"])):
        for world in (1, 2):
            found = []
            for rank in range(world):
                ownership = assign(manifest.names, frames, 2, world)
                with closing(Feed(TrainConfig(), storage, manifest, ownership, rank)) as feed:
                    found += feed.watched(limit)
            assert found == wanted


def test_whoever_has_no_test_frames_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip of a single frame has none."""
    monkeypatch.setattr(tiny_identity, "TEST", 0)
    data = open_storage(tiny_identity.pack(tmp_path))
    training = build(Bench(num_gaussians=300)._config(), data, read_manifest(data), torch.device("cpu"))
    with closing(training.feed):
        seen = looks.look(training, fps=25)
    assert seen.scores.keys() == {"memory/personal_mib"}
    assert not seen.pictures
