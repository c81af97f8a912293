"""One identity's trial, without Ray: what a plateau leaves out, and that a trial which was cut off goes on as if nothing had happened."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fiag_dist.adaptation.job import Job, Progress
from fiag_dist.adaptation.trial import WORK, final_score_db, train
from fiag_dist.config import AdaptConfig, LossConfig, PlateauConfig, StageConfig, TrainConfig

STEPS, LANDMARKS = 30, 5


@pytest.fixture
def job(shards: Path, pretrained: Path, tmp_path: Path) -> Job:
    stages = StageConfig(warm_up=0.1, identity=0.2, motion=0.8, landmark_steps=LANDMARKS)
    config = TrainConfig(
        steps=STEPS,
        frames_per_step=1,
        images_every=0,
        checkpoint_every=10,
        stages=stages,
        loss=LossConfig(triplet=0.0, contrast=0.0, lpips=0.0),
    )
    name = sorted(i["name"] for i in json.loads((shards / "manifest.json").read_text())["identities"])[3]
    start = str(pretrained / "checkpoints" / "step-00000048")
    return Job(
        name, str(shards), start, str(tmp_path / name), AdaptConfig(train=config, plateau=PlateauConfig(every=5))
    )


def quiet(progress: Progress) -> None:
    """Nobody listens."""


def test_a_plateau_ends_motion_early_and_fusion_follows(job: Job, tmp_path: Path) -> None:
    flat = replace(job.config, plateau=PlateauConfig(every=5, patience=2, rise_db=100.0))
    told: list[Progress] = []
    trained = train(replace(job, config=flat), told.append)
    # Looks at steps 15, 20 and 25 of motion, whose last step is 28: the first is a rise, the next two are none.
    assert trained.skipped == 4
    assert trained.steps == STEPS + LANDMARKS - 4
    assert trained.training.feed.counts[job.name] == trained.steps
    assert told[-1].step == told[-1].steps == STEPS + LANDMARKS


def test_looks_at_0_steps_are_one_at_the_end(job: Job) -> None:
    assert (
        len(train(replace(job, config=replace(job.config, plateau=PlateauConfig(every=0))), quiet).plateau.scores_db)
        == 1
    )


def test_held_out_frames_are_never_trained_on(job: Job) -> None:
    trained = train(job, quiet)
    feed = trained.training.feed
    held_out = set(feed.held_out[job.name].tolist())
    drawn = {feed._streams[job.name].position(count) for count in range(500)}
    assert held_out
    assert drawn == set(feed.readers[job.name].train.tolist()) - held_out
    assert len(held_out) + len(drawn) == len(feed.readers[job.name].train)


def test_what_was_cut_off_goes_on_to_the_same_bits(job: Job, tmp_path: Path) -> None:
    whole = train(replace(job, folder=str(tmp_path / "whole")), quiet)

    def dies(progress: Progress) -> None:
        if progress.step == 25:  # after the checkpoint of step 20
            raise MemoryError

    with pytest.raises(MemoryError):
        train(job, dies)
    assert [path.name for path in (Path(job.folder) / WORK / "checkpoints").iterdir()] == ["step-00000020"]
    assert final_score_db(job) is None
    seen: list[Progress] = []
    again = train(job, seen.append)
    assert seen[0].step == 20
    assert again.seconds_before > 0
    for (name, tensor), other in zip(
        whole.training.head.state_dict().items(), again.training.head.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name
    assert again.plateau.scores_db == whole.plateau.scores_db
    assert final_score_db(job) == again.score_db


def test_other_settings_begin_anew(job: Job) -> None:
    train(job, quiet)
    seen: list[Progress] = []
    train(replace(job, config=replace(job.config, nearest_personal=False)), seen.append)
    assert seen[0].step == 0
