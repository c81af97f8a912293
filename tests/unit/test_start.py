"""How an adaptation begins: a shared field with room to grow, settled on the new person."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_identity
import torch

from fiag_dist.config import FieldConfig, IdentityConfig, LossConfig, ModelConfig, TrainConfig
from fiag_dist.errors import CheckpointError
from fiag_dist.landmarks import LIPS_INNER
from fiag_dist.model.head import Head
from fiag_dist.shards.manifest import Manifest, read_manifest
from fiag_dist.shards.reader import read_meta
from fiag_dist.storage import Storage, open_storage
from fiag_dist.training import planting
from fiag_dist.training.formats import check_channels, check_formats
from fiag_dist.training.planting import settle
from fiag_dist.training.start import bake_in, forget, fresh_head, load_head, roomier
from fiag_dist.types import EXPRESSION_NAMES, SH_DC, Camera, IdentityMeta, Label, Shot

FIELD = FieldConfig(num_face=600, num_mouth=40, capacity_face=600, capacity_mouth=40)
EMBEDDING = torch.nn.functional.normalize(torch.arange(16.0), dim=0)


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Storage, Manifest]:
    store = open_storage(tiny_identity.pack(tmp_path, "ball"))
    return store, read_manifest(store)


def head_of(packed: tuple[Storage, Manifest], config: TrainConfig) -> Head:
    return fresh_head(config, *packed, ["ball"], seed=1)


def meta_of(packed: tuple[Storage, Manifest]) -> IdentityMeta:
    storage, manifest = packed
    return read_meta(storage, manifest.entry("ball"))


def on_the_ball(head: Head) -> torch.Tensor:
    """Share of the person's face Gaussians that the first frame shows within its disc."""
    camera = Camera(
        torch.from_numpy(tiny_identity.viewmat(0)),
        torch.tensor([[tiny_identity.FOCAL, 0, 32.0], [0, tiny_identity.FOCAL, 32.0], [0, 0, 1]]),
        tiny_identity.SIZE,
        tiny_identity.SIZE,
    )
    pixels = camera.project(head.person(EMBEDDING).face.means.detach())
    middle = torch.tensor([32.0 - 4, 32.0])
    return ((pixels - middle).norm(dim=1) < tiny_identity.FOCAL * tiny_identity.RADIUS_M).float().mean()


def test_a_settled_field_lies_on_the_person_and_has_the_clips_colours(packed: tuple[Storage, Manifest]) -> None:
    head = head_of(packed, TrainConfig(model=ModelConfig(field=FIELD)))
    with torch.no_grad():
        head.face_field.means[:300] += torch.tensor([0.09, 0.0, 0.0])  # a wider head than this one
        head.face_field.opacities[300:320] = -9.0  # somebody else's
        head.face_field.sh_dc.fill_(3.0)  # nobody is so white
    bake_in(head, EMBEDDING)
    assert on_the_ball(head) < 0.75
    settle(head, *packed, meta_of(packed))
    assert on_the_ball(head) > 0.97
    person = head.person(EMBEDDING).face
    colors = person.sh_dc.detach() * SH_DC + 0.5
    ball = torch.tensor([200.0, 150.0, 120.0]) / 255
    assert (colors.median(0).values - ball).abs().max() < 0.06
    assert torch.sigmoid(person.opacities[300:320]).min() > 0.2


def test_a_settled_mouth_has_no_gaussian_beside_the_cheeks(packed: tuple[Storage, Manifest]) -> None:
    head = head_of(packed, TrainConfig(model=ModelConfig(field=FIELD)))
    mouth = head.mouth_field
    lips = head.universal.rest_landmarks[list(LIPS_INNER)].mean(0)
    with torch.no_grad():
        mouth.means[:5, 0] += 0.05
        mouth.opacities[:5] = 4.0
    home = mouth.means[5:].clone()
    settle(head, *packed, meta_of(packed))
    assert ((mouth.means[:5] - lips).abs() < torch.tensor([0.0221, 0.0101, 0.0241])).all()
    assert (torch.sigmoid(mouth.opacities[:5]) < 0.31).all()
    assert torch.equal(mouth.means[5:], home)


@pytest.mark.parametrize("shown", [False, True])
def test_a_mouth_that_no_frame_shows_keeps_its_colours(
    packed: tuple[Storage, Manifest], monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    """Of a clip that is quiet in the frames that are looked at, teeth and tongue of others are a better guess than grey."""
    head, look = head_of(packed, TrainConfig(model=ModelConfig(field=FIELD))), planting.look

    def seen(*of_whom: Any) -> list[Shot]:
        shots = look(*of_whom)
        for shot in shots:
            shot.labels[shot.labels == Label.MOUTH] = int(Label.LIPS)
            shot.labels[20:24, 20:24] = int(Label.MOUTH if shown else Label.LIPS)
        return shots

    monkeypatch.setattr(planting, "look", seen)
    with torch.no_grad():
        head.mouth_field.sh_dc.fill_(0.7)
    settle(head, *packed, meta_of(packed))
    assert bool((head.mouth_field.sh_dc == 0.7).all()) != shown


def test_settling_leaves_what_fits_where_it_is(packed: tuple[Storage, Manifest]) -> None:
    head = head_of(packed, TrainConfig(model=ModelConfig(field=FIELD)))
    bake_in(head, EMBEDDING)
    settle(head, *packed, meta_of(packed))
    before = {name: value.clone() for name, value in head.state_dict().items()}
    settle(head, *packed, meta_of(packed))
    for name, value in head.state_dict().items():
        torch.testing.assert_close(value, before[name], msg=name)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_baked_head_looks_the_same_and_its_identity_net_starts_anew(
    packed: tuple[Storage, Manifest], enabled: bool
) -> None:
    model = ModelConfig(field=FIELD, identity=IdentityConfig(enabled=enabled))
    head = head_of(packed, TrainConfig(model=model, loss=LossConfig(triplet=0.0)))
    before = [vars(branch) for branch in vars(head.person(EMBEDDING)).values()]
    learnt = [value.clone() for value in head.face_identity.parameters()]
    bake_in(head, EMBEDDING)
    for old, new in zip(learnt, head.face_identity.parameters(), strict=True):
        assert not torch.equal(old, new), "nothing stays of what told many people apart"
    for mine, theirs in zip(before, vars(head.person(EMBEDDING)).values(), strict=True):
        for name, value in mine.items():
            torch.testing.assert_close(value, getattr(theirs, name), msg=name)
    stranger = head.person(-EMBEDDING).face
    torch.testing.assert_close(stranger.sh_dc, head.face_field.gaussians().sh_dc)
    stranger.sh_dc.square().sum().backward()
    if enabled:
        last = [*head.face_identity.parameters()][-1]
        assert last.grad is not None  # and it learns
        assert last.grad.norm() > 0


def test_a_head_that_forgets_everybody_is_the_canonical_field(packed: tuple[Storage, Manifest]) -> None:
    head = head_of(packed, TrainConfig(model=ModelConfig(field=FIELD)))
    differs = head.person(EMBEDDING).face.sh_dc - head.face_field.gaussians().sh_dc
    assert differs.abs().max() > 1e-4
    forget(head)
    for branch, field in (
        (head.person(EMBEDDING).face, head.face_field),
        (head.person(-EMBEDDING).mouth, head.mouth_field),
    ):
        for name in ("means", "quats", "opacities", "sh_dc", "sh_rest"):  # a person's lengths have a bound
            torch.testing.assert_close(getattr(branch, name), getattr(field.gaussians(), name), msg=name)


def test_a_roomier_head_is_the_same_with_rows_to_spare(packed: tuple[Storage, Manifest]) -> None:
    config = TrainConfig(model=ModelConfig(field=FIELD))
    head = head_of(packed, config)
    formats = {"id_dim": 16, "audio_dim": 80, "audio_window": 4, "expression": EXPRESSION_NAMES}
    larger = replace(config, model=roomier(config.model, 1.5))
    loaded = load_head(larger, formats, dict(head.state_dict()), averaged=False)
    assert (loaded.face_field.capacity, loaded.mouth_field.capacity) == (900, 60)
    assert (len(loaded.face_field), len(loaded.mouth_field)) == (600, 40)
    for mine, theirs in zip(
        vars(loaded.person(EMBEDDING).face).values(), vars(head.person(EMBEDDING).face).values(), strict=True
    ):
        np.testing.assert_array_equal(mine.detach().numpy(), theirs.detach().numpy())
    assert not loaded.face_field.means[600:].any()


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            ModelConfig(field=replace(FIELD, num_face=400, capacity_face=500)),
            r"face_field.means is \[600, 3\] in it, \[500, 3\] in",
        ),
        (
            ModelConfig(field=replace(FIELD, capacity_face=700, sh_degree=2)),
            r"sh_rest is \[600, 3, 3\] in it, \[700, 8, 3\]",
        ),
        (
            ModelConfig(field=FIELD, identity=IdentityConfig(hidden=128)),
            r"face_identity\S+ is \[64, \d+\] in it, \[128, \d+\]",
        ),
    ],
)
def test_another_model_is_refused_in_a_line(packed: tuple[Storage, Manifest], model: ModelConfig, line: str) -> None:
    config = TrainConfig(model=ModelConfig(field=FIELD))
    formats = {"id_dim": 16, "audio_dim": 80, "audio_window": 4, "expression": EXPRESSION_NAMES}
    with pytest.raises(CheckpointError, match=rf"^checkpoint: \S*{line}.*; use the config.yaml") as refused:
        load_head(replace(config, model=model), formats, dict(head_of(packed, config).state_dict()), averaged=False)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_of_before_gaze_is_refused_in_a_line(packed: tuple[Storage, Manifest]) -> None:
    config = TrainConfig(model=ModelConfig(field=FIELD))
    head, formats = head_of(packed, config), {"id_dim": 16, "audio_dim": 80, "audio_window": 4}
    with pytest.raises(CheckpointError, match=r"^checkpoint: trained with .*AU07, AU45, .*gaze_up.*; pretrain again"):
        load_head(config, formats, dict(head.state_dict()), averaged=False)
    with pytest.raises(CheckpointError, match=r"^checkpoint runs/old: trained with"):
        check_channels(formats, "runs/old")


@pytest.mark.parametrize(
    ("key", "other"), [("fps", 50), ("audio_window", 2), ("size", 128), ("extractor", "whisper:3")]
)
def test_shards_of_other_formats_than_a_checkpoints_are_refused(
    packed: tuple[Storage, Manifest], key: str, other: object
) -> None:
    formats = {"fps": 25, "audio_window": 4, "size": tiny_identity.SIZE, "extractor": "mel"}
    check_formats(packed[1], formats, "run x")
    with pytest.raises(CheckpointError, match=f"run x: trained with {key} {other!r}, the shards have"):
        check_formats(packed[1], formats | {key: other}, "run x")
