"""A rehearsed actor shows what the actor shows, in every form of the motion networks."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_identity as tiny
import torch

from fiag_dist.acting.actor import Actor
from fiag_dist.acting.rehearsal import Rehearsal
from fiag_dist.acting.staging import composed
from fiag_dist.config import FieldConfig, ModelConfig, MotionConfig, TrainConfig
from fiag_dist.model.head import Person
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.storage import open_storage
from fiag_dist.training.start import fresh_head
from fiag_dist.types import Camera, Gaussians


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.pack(tmp_path_factory.mktemp("rehearsal"))


def actor_of(data: str, motion: MotionConfig) -> Actor:
    field = FieldConfig(num_face=900, num_mouth=80, capacity_face=900, capacity_mouth=80)
    store = open_storage(data)
    manifest = read_manifest(store)
    torch.manual_seed(1)
    head = fresh_head(TrainConfig(model=ModelConfig(field=field, motion=motion)), store, manifest, manifest.names)
    personal = head.universal.new_personal()
    with torch.no_grad():  # fresh networks hardly move anything
        for net in (personal.net, head.universal.face.net, head.universal.mouth.net):
            for parameter in net.parameters():
                parameter.mul_(3)
    return Actor.bake(head, personal, torch.eye(16)[3])


def camera_of(size: int) -> Camera:
    K = torch.tensor([[tiny.FOCAL * 2, 0, size / 2], [0, tiny.FOCAL * 2, size / 2], [0, 0, 1]])
    return Camera(torch.from_numpy(tiny.viewmat(10)), K, size, size)


@pytest.mark.parametrize(
    "motion",
    [
        MotionConfig(output_scale=1.0),
        MotionConfig(output_scale=1.0, drive_split=False, align=False),
        MotionConfig(form="attention", order="additive"),
    ],
    ids=["direct", "unsplit", "attention"],
)
def test_a_rehearsed_actor_shows_what_the_actor_shows(data: str, motion: MotionConfig) -> None:
    actor = actor_of(data, motion)
    rehearsal, camera = Rehearsal(actor), camera_of(128)
    generator = torch.Generator().manual_seed(2)
    seen, errors = [], []
    for _ in range(2):
        audio, expression = torch.randn(8, 80, 4, generator=generator), torch.rand(9, generator=generator)
        swing = torch.eye(3, 4) + 0.02 * torch.randn(3, 4, generator=generator)
        expected, layer = (show(audio, expression, camera, swing) for show in (actor, rehearsal.perform))
        image = expected.over(torch.zeros(3, 1, 1))
        error = (image - layer.image).abs()
        # A pixel that the face fills to the limit of blending shows nothing of the mouth then, not even a last percent.
        assert error.quantile(0.995) < 1e-3
        assert error.mean() < 1e-4
        assert (expected.alpha[0] - layer.alpha).abs().quantile(0.995) < 1e-3
        seen.append(layer.image)
        errors.append(float(error.mean()))
    assert (seen[0] - seen[1]).abs().mean() > 10 * max(errors), "speech moves something, else nothing was compared"


def test_a_mouth_in_front_is_still_behind_the_face(data: str) -> None:
    actor = actor_of(data, MotionConfig(output_scale=0.01))
    rest = actor.person
    nearer = replace(rest.mouth, means=rest.mouth.means + torch.tensor([0.0, 0.0, 0.12]))
    veil = replace(rest.face, opacities=rest.face.opacities - 3)
    actor = Actor(Person(veil, nearer), actor.universal, actor.personal)
    quiet, calm, camera = torch.zeros(8, 80, 4), torch.zeros(9), camera_of(64)
    layer, expected = Rehearsal(actor).perform(quiet, calm, camera), actor(quiet, calm, camera)
    through = (1 - expected.face.alpha) * expected.mouth.alpha
    assert through.max() > 0.05, "the mouth shows somewhere"
    error = (expected.over(torch.zeros(3, 1, 1)) - layer.image).abs()
    assert error.quantile(0.99) < 1e-3


def test_nothing_is_lighter_than_white(data: str) -> None:
    actor = actor_of(data, MotionConfig(output_scale=0.01))
    rest = actor.person
    glaring = replace(rest.mouth, sh_dc=rest.mouth.sh_dc + 100, means=rest.mouth.means + torch.tensor([0.0, 0.04, 0.0]))
    clear = replace(rest.face, opacities=rest.face.opacities - 20)
    layer = Rehearsal(Actor(Person(clear, glaring), actor.universal, actor.personal)).perform(
        torch.zeros(8, 80, 4), torch.zeros(9), camera_of(64)
    )
    thin = (layer.alpha > 0.05) & (layer.alpha < 0.5)
    assert thin.any()
    torch.testing.assert_close(layer.image[:, thin], layer.alpha[thin].expand(3, -1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("gone", ["face", "mouth"])
def test_one_branch_alone_is_shown(data: str, gone: str) -> None:
    actor = actor_of(data, MotionConfig(output_scale=0.01, hook_k=1))
    none = Gaussians(**{name: value[:0] for name, value in vars(getattr(actor.person, gone)).items()})
    person = replace(actor.person, **{gone: replace(none)})
    if gone == "face":  # the hook asks for a point of the face: a transparent one
        one = Gaussians(**{name: value[:1] for name, value in vars(actor.person.face).items()})
        person = replace(person, face=replace(one, opacities=one.opacities * 0 - 20))
    layer = Rehearsal(Actor(person, actor.universal, actor.personal)).perform(
        torch.zeros(8, 80, 4), torch.zeros(9), camera_of(64)
    )
    assert layer.alpha.max() > 0.1


def test_nothing_of_the_head_lies_outside_its_box(data: str) -> None:
    rehearsal = Rehearsal(actor_of(data, MotionConfig(output_scale=0.01)))
    layer = rehearsal.perform(torch.zeros(8, 80, 4), torch.zeros(9), camera_of(256))
    x0, y0, x1, y1 = layer.box
    assert 0 < x0 < x1 < 256
    outside = layer.alpha.clone()
    outside[y0:y1, x0:x1] = 0
    assert not outside.any()
    away = camera_of(64)
    beside = replace(away, viewmat=away.viewmat + torch.tensor([[0, 0, 0, 5.0]] + [[0.0] * 4] * 3))
    nobody = rehearsal.perform(torch.zeros(8, 80, 4), torch.zeros(9), beside)
    backdrop = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(composed(nobody, backdrop), backdrop)
    assert not composed(nobody, None).any()
