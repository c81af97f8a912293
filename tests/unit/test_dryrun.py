"""The dry run of a pretraining: who owns what on so many ranks, what that takes, and what is refused, counted on the real thing."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_shards import SIZE, make, manifest_of

from fiag_dist import cli
from fiag_dist.config import FieldConfig, IdentityConfig, ModelConfig, MotionConfig, TrainConfig
from fiag_dist.dist.pool import PersonalPool, first_embeddings
from fiag_dist.model.head import Head
from fiag_dist.pretraining.scaling import FLOAT, Machine, memory, sizes, step_time, traffic
from fiag_dist.shards.manifest import write_manifest
from fiag_dist.shards.writer import write_identity
from fiag_dist.storage import open_storage

TRAIN = TrainConfig(
    model=ModelConfig(field=FieldConfig(num_face=300, num_mouth=30, capacity_face=400, capacity_mouth=40))
)
NAMES = ("ann", "bob", "cat", "dan", "eve")
MACHINE = Machine(
    frame_ms=40, fixed_ms=10, decode_ms=5, latency_us=100, gb_per_s=1, gb_per_s_between=0.1, ranks_per_node=8
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    store = open_storage(folder)
    write_manifest(store, manifest_of(*(write_identity(store, *make(name, k), 10) for k, name in enumerate(NAMES))))
    return str(folder)


@pytest.mark.parametrize(
    "variant",
    [{}, {"identity": IdentityConfig(embedding="table", table_dim=12)}, {"motion": MotionConfig(personal=False)}],
)
def test_parameters_are_those_of_the_model(variant: dict[str, Any]) -> None:
    model = replace(TRAIN.model, **variant)
    found = sizes(replace(TRAIN, model=model), 16, 4, 2)
    head = Head(model, 16, 4, 2, torch.randn(478, 3) / 20, "torch")
    pool = PersonalPool({"ann": head.universal.new_personal()}, first_embeddings(model.identity, ["ann"], 0))
    assert found.shared == sum(p.numel() for p in head.parameters() if p.requires_grad)
    assert found.personal == sum(tensor.numel() for tensor in pool.tensors("ann").values())
    assert found.field == sum(p.numel() for field in head.fields.values() for p in field.parameters())


def test_memory_follows_ranks_and_people() -> None:
    found = sizes(TRAIN, 16, 4, 2)
    held = {world: memory(found, zero_stage=1, world=world, owned=64 // world, lanes=1) for world in (1, 2, 64)}
    assert held[1].moments == 2 * held[2].moments == 2 * FLOAT * found.shared
    assert held[64].parameters == held[1].parameters == FLOAT * found.shared
    nets = {world: m.personal - FLOAT * found.personal for world, m in held.items()}  # less the gradients of one lane
    assert nets[1] == 2 * nets[2] == 64 * nets[64] == 64 * 3 * FLOAT * found.personal
    plain = memory(found, zero_stage=0, world=64, owned=1, lanes=1)
    assert plain.moments == held[1].moments
    assert memory(found, zero_stage=2, world=64, owned=1, lanes=1).gradients < held[64].gradients / 60


def test_time_follows_lanes_ranks_and_nodes() -> None:
    found = sizes(TRAIN, 16, 4, 2)
    alone = step_time(MACHINE, found, world=1, frames_per_step=8)
    assert (alone.compute_ms, alone.gradients_ms, alone.agreement_ms) == (10 + 8 * 40, 0, 0)
    eight = step_time(MACHINE, found, world=8, frames_per_step=8)
    assert eight.compute_ms == 50
    assert eight.gradients_ms == pytest.approx(traffic(found, 8) / 1e6 + 2 * 3 * 0.1)
    assert alone.total_ms / 6 < eight.total_ms < alone.total_ms / 5
    sixteen = step_time(MACHINE, found, world=16, frames_per_step=16)
    assert sixteen.gradients_ms > 9 * traffic(found, 16) / 1e6
    assert step_time(MACHINE, found, world=3, frames_per_step=8).compute_ms == 10 + 3 * 40  # the fullest rank decides


def dry(shards: str, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["pretrain", "--data", shards, *words])
    return status, *capsys.readouterr()


def test_ranks_people_and_memory_are_listed(
    shards: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = dry(shards, capsys, "--dry-run-world", "2", "--train.frames-per-step", "2")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "dry run: nothing is started"
    assert lines[1].endswith(": 2 ranks, 5 identities")
    assert f"2 frames of {SIZE}x{SIZE} a step" in lines[2]
    rows = [line.split() for line in lines if re.match(r" +\d", line)]
    assert [row[:4] for row in rows] == [["0", "1", "3", "60"], ["1", "1", "2", "40"]]
    assert sorted(" ".join(" ".join(row[8:]) for row in rows).replace(",", "").split()) == sorted(NAMES)
    assert float(rows[0][5]) > float(rows[1][5])
    assert lines[-1].startswith("balance  frames a rank 40 to 60")
    assert not any(tmp_path.iterdir()), "a run folder was made"


def test_a_name_given_twice_is_one_person(shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--dry-run-world", "2", "--train.frames-per-step", "2", "--identities", NAMES[0], NAMES[0], NAMES[1])
    assert ": 2 ranks, 2 identities" in dry(shards, capsys, *words)[1]


def test_what_a_run_would_refuse_is_refused(shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, error = dry(shards, capsys, "--dry-run-world", "64", "--train.frames-per-step", "64")
    assert (status, out) == (2, "")
    assert "64 ranks for 5 identities" in error
    status, _, error = dry(shards, capsys, "--dry-run-world", "4", "--train.frames-per-step", "3")
    assert status == 2
    assert "frames_per_step 3 for 4 ranks" in error
