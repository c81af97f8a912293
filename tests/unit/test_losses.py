"""Loss terms, stages and growth against cases whose answer is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from heads import small_head, small_shot
from scipy.spatial.transform import Rotation

from fiag_dist.config import (
    DensityConfig,
    FieldConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    StageConfig,
    TrainConfig,
)
from fiag_dist.dist.ownership import draw
from fiag_dist.landmarks import IRISES, LIPS
from fiag_dist.model.motion import StillNet
from fiag_dist.stages import Stage, landmark_weight, rates, sh_degree, stage_at, total_steps
from fiag_dist.training import density, losses
from fiag_dist.training.losses import Rival
from fiag_dist.types import Label, Rendering, Shot, axes


def test_triplet_is_zero_for_identical_embeddings_at_margin_zero():
    head, shot = small_head(), small_shot()
    rival = Rival(shot.embedding, shot.embedding, None)
    assert losses.triplet_term(head, shot, rival, margin=0.0) == 0
    assert losses.triplet_term(head, shot, rival, margin=0.2) > 0.19


def test_contrast_is_zero_for_opposed_motion_and_positive_for_the_same():
    head, shot = small_head(), small_shot()
    personal, opposed = head.universal.new_personal(), head.universal.new_personal()
    opposed.load_state_dict(personal.state_dict())
    performance = head.perform(shot, personal)
    same = losses.contrast_term(head, performance, shot, opposed)
    last = opposed.net[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.neg_()
    assert losses.contrast_term(head, performance, shot, opposed) == 0
    assert same > 0


def test_landmark_term_vanishes_at_the_tracked_landmarks_only():
    shot = small_shot()
    true_motion = shot.landmarks - shot.rest_landmarks
    assert losses.landmark_term(true_motion, shot, 4.0) < 1e-4
    assert losses.landmark_term(torch.zeros(478, 3), shot, 4.0) > 0.05


def test_irises_teach_while_they_are_seen():
    shot = small_shot()
    looking = shot.rest_landmarks.clone()
    looking[list(IRISES), 0] += 0.002
    awake, asleep = (replace(shot, landmarks=looking, blink=blink) for blink in (0.1, 0.9))
    still = torch.zeros(478, 3)
    assert losses.landmark_term(still, awake, 4.0) > 0.01
    assert losses.landmark_term(still, asleep, 4.0) < 1e-5
    assert losses.landmark_term(looking - shot.rest_landmarks, awake, 4.0) < 1e-5
    looking[list(LIPS), 1] -= 0.002
    assert losses.landmark_term(still, replace(asleep, landmarks=looking), 4.0) > 0.01, "lips go on teaching"


def lips_up(shot: Shot, metres: float) -> torch.Tensor:
    """The shot's LIPS at rest, so far up: where they are to go in silence."""
    return shot.rest_landmarks[list(LIPS)] + torch.tensor([0.0, metres, 0.0])


def test_silence_term_is_the_lips_distance_in_pixels_of_a_256_pixel_frame():
    head, shot = small_head(), small_shot()
    still = StillNet(head.config.motion)
    with torch.no_grad():
        for net in (head.universal.face.net, head.universal.mouth.net):
            net[-1].weight.zero_()  # type: ignore[operator]
    assert losses.silence_term(head, still, shot, lips_up(shot, 0.0), 0.0) < 1e-6
    wanted = lips_up(shot, 0.006)
    ends = shot.camera.project(torch.stack([shot.rest_landmarks[LIPS[4]], wanted[4]]))
    expected = float((((ends[0] - ends[1]) * 256 / shot.camera.width).square().sum() + 1).sqrt() - 1)
    assert abs(losses.silence_term(head, still, shot, wanted, 0.0).item() / expected - 1) < 0.1


def test_lips_learn_to_shut_in_silence():
    head, shot = small_head(), small_shot()
    personal, wanted = head.universal.new_personal(), lips_up(shot, 0.006)
    before = losses.silence_term(head, personal, shot, wanted, 0.0).item()
    optimizer = torch.optim.Adam([*head.universal.face.parameters(), *personal.parameters()], lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        losses.silence_term(head, personal, shot, wanted, 0.002).backward()
        optimizer.step()
    assert losses.silence_term(head, personal, shot, wanted, 0.0).item() < 0.3 * before


def test_silence_is_asked_of_all_that_is_around_the_lips(monkeypatch: pytest.MonkeyPatch):
    head, shot = small_head(), small_shot()
    lips, move, asked = shot.rest_landmarks[list(LIPS)], head.universal.move, []

    def spied(points: torch.Tensor, *others: Any) -> Any:
        asked.append(points - lips)
        return move(points, *others)

    monkeypatch.setattr(head.universal, "move", spied)
    for _ in range(40):
        losses.silence_term(head, head.universal.new_personal(), shot, lips_up(shot, 0.0), 0.002)
    assert torch.stack(asked).std() == pytest.approx(0.002, rel=0.1)
    assert torch.stack(asked).mean(0).abs().max() < 0.002


def test_silence_is_asked_where_shut_lips_are_known():
    head, shot = small_head(), small_shot()
    personal, still = head.universal.new_personal(), torch.zeros(478, 3)
    assert "silence" not in losses.landmark_terms(head, personal, still, shot, LossConfig())
    told = replace(shot, shut_lips=lips_up(shot, 0.006))
    assert losses.landmark_terms(head, personal, still, told, LossConfig())["silence"] > 0


def test_mouth_ignores_what_lips_hide():
    head, shot = small_head(), small_shot()
    performance = head.perform(shot, head.universal.new_personal(), moving=False)
    backdrop = torch.zeros_like(shot.image)
    changed = shot.image.clone()
    changed[:, 20:29] = 0  # lips and cheeks, not the inside of the mouth
    critic = losses.Critic(LossConfig())
    before = losses.mouth_terms(performance, shot, backdrop, critic)["mouth"]
    assert losses.mouth_terms(performance, replace(shot, image=changed), backdrop, critic)["mouth"] == before
    closed = replace(shot, labels=torch.zeros_like(shot.labels), mouth_seen=False)
    assert "mouth" not in losses.mouth_terms(performance, closed, backdrop, critic)


def test_what_lips_hide_is_not_pulled_anywhere():
    """SSIM of a window that is half hidden has a gradient for the hidden half: a white seam grew behind the lips of everybody."""
    head, shot = small_head(), small_shot()
    mouth = head.perform(shot, head.universal.new_personal(), moving=False).mouth
    image = mouth.image.detach().requires_grad_()
    performance = replace(
        head.perform(shot, head.universal.new_personal(), moving=False), mouth=replace(mouth, image=image)
    )
    backdrop = torch.rand_like(shot.image)
    losses.mouth_terms(performance, shot, backdrop, losses.Critic(LossConfig()))["mouth"].backward()
    assert image.grad is not None
    pull = image.grad.abs().sum(0)
    assert pull[shot.labels == Label.MOUTH].min() > 0
    assert pull[shot.labels != Label.MOUTH].max() == 0


@pytest.mark.parametrize("in_place", [True, False])
def test_a_face_that_paints_its_surroundings_in_front_of_the_teeth_is_wrong(in_place: bool):
    """It has learnt the colour that is behind it there; before a random one it shows."""
    head, shot = small_head(), small_shot()
    around = torch.where(shot.alpha > 0, 0.3, shot.image)
    shot = replace(shot, surroundings=around if in_place else None)
    performance = head.perform(shot, head.universal.new_personal(), moving=False)
    hole = (shot.labels == Label.MOUTH).float()[None]

    def error(picture: torch.Tensor, alpha: torch.Tensor) -> float:
        face = replace(performance.face, image=picture * alpha, alpha=alpha)
        terms = losses.face_terms(
            replace(performance, face=face), shot, losses.backdrop_of(shot, Stage.IDENTITY), losses.Critic(LossConfig())
        )
        return terms["face"].item()

    assert error(shot.image, shot.alpha * (1 - hole)) < 1e-5
    assert error(torch.where(hole > 0, around, shot.image), shot.alpha) > 1e-3


def test_in_its_own_surroundings_a_head_is_asked_for_what_the_matte_cuts_off():
    head, shot = small_head(), small_shot()
    performance = head.perform(shot, head.universal.new_personal(), moving=False)
    face = performance.face
    nothing = replace(
        performance, face=replace(face, image=torch.zeros_like(face.image), alpha=torch.zeros_like(face.alpha))
    )
    critic = losses.Critic(LossConfig())

    def error(shot: Shot) -> float:
        return losses.face_terms(nothing, shot, losses.backdrop_of(shot, Stage.MOTION), critic)["face"].item()

    # Where frame and surroundings are alike no head is missed.
    assert error(replace(shot, surroundings=shot.image)) < 1e-6
    strand = shot.image.clone()
    strand[:, 2, 12:36] += 0.5  # hair above the matte
    cut_off = replace(shot, surroundings=shot.image, image=strand)
    assert error(cut_off) > 1e-3
    torch.manual_seed(0)
    before = error(shot)
    torch.manual_seed(0)
    assert error(replace(shot, image=strand)) == before  # over a colour only the matte says what a head is


def test_in_its_own_surroundings_a_head_is_composed_onto_the_frame():
    head, shot = small_head(), small_shot()
    performance = head.perform(shot, head.universal.new_personal())
    around = torch.rand_like(shot.image)
    placed = replace(shot, surroundings=around)
    backdrop = losses.backdrop_of(placed, Stage.FUSION)
    placed = replace(placed, image=performance.over(backdrop).detach())
    terms = losses.fusion_terms(performance, placed, backdrop, losses.Critic(LossConfig()))
    assert terms["fusion"].abs() < 1e-5


def test_stages_follow_each_other_and_freeze_what_they_should():
    config = TrainConfig(steps=100, stages=StageConfig(warm_up=0.05, identity=0.2, motion=0.9, landmark_steps=10))
    assert total_steps(config) == 110
    seen = [stage_at(step, config) for step in (0, 9, 10, 14, 15, 29, 30, 99, 100, 109)]
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    groups = ["means", "sh_dc", "identity_nets", "universal_nets", "personal_nets"]
    assert [bool(r) for r in rates(0, config, groups).values()] == [False, False, False, True, True]
    assert [bool(r) for r in rates(50, config, groups).values()] == [True, True, True, True, True]
    assert [bool(r) for r in rates(105, config, groups).values()] == [False, True, False, False, False]
    assert landmark_weight(10, config) == 0.02
    assert abs(landmark_weight(110, config) - 0.002) < 1e-9


def test_degrees_of_colour_come_one_by_one_and_all_at_once_by_default():
    config = TrainConfig(model=ModelConfig(field=FieldConfig(sh_degree=2)), stages=StageConfig(landmark_steps=10))
    assert sh_degree(0, config) == 2
    config = replace(config, stages=replace(config.stages, sh_every=100))
    assert [sh_degree(step, config) for step in (0, 109, 110, 209, 210, 900)] == [0, 0, 1, 1, 2, 2]
    head, shot = small_head(), small_shot()
    head.sh_degree = 0
    assert head.person(shot.embedding).face.sh_rest.shape[1] == 0


def test_a_run_of_few_steps_starts_with_higher_rates_of_gaussians_and_ends_with_the_same():
    def starts_and_ends(steps: int, paced_for: int) -> tuple[dict[str, float], dict[str, float]]:
        optim = OptimConfig(means=(1e-4, 1e-6), paced_for=paced_for)
        stages = StageConfig(landmark_steps=0, motion=1.0)
        config = TrainConfig(steps=steps, frames_per_step=1, stages=stages, optim=optim)
        groups = ["means", "personal_nets"]
        return rates(0, config, groups), rates(steps, replace(config, stages=replace(stages, motion=2.0)), groups)

    for steps, means in ((4000, 1e-4), (2000, 1e-4), (1000, 2e-4), (500, 4e-4), (100, 4e-4)):
        first, last = starts_and_ends(steps, 2000)
        np.testing.assert_allclose([first["means"], last["means"]], [means, 1e-6])
        assert first["personal_nets"] == OptimConfig().personal_nets
    np.testing.assert_allclose(starts_and_ends(100, 0)[0]["means"], 1e-4)


def test_universal_rates_fall_as_the_relatives_do():
    def shares(schedule: str) -> list[float]:
        stages = StageConfig(warm_up=0.1, landmark_steps=0)
        optim = OptimConfig(universal_schedule=schedule, universal=1.0, nets=1.0)
        config = TrainConfig(steps=100, frames_per_step=1, stages=stages, optim=optim)
        return [rates(step, config, ["universal_nets"])["universal_nets"] for step in (0, 5, 50, 80)]

    np.testing.assert_allclose(shares("decay"), [1, 0.1**0.05, 0.1**0.5, 0.1**0.8])
    np.testing.assert_allclose(shares("pretraining"), [1, 0.5**0.075, 0.5**0.75, 0.1**0.8])
    np.testing.assert_allclose(shares("adaptation"), [0.1, 0.1, 0.5**0.5, 0.5**0.8])


def test_all_of_a_lane_have_had_a_turn_after_a_whole_round():
    names = [f"p{k}" for k in range(7)]
    for since in range(20):
        for until in range(since, since + 20):
            drawn = {draw(0, step, 1, names) for step in range(since, until)}
            assert not density.everybody_had_a_turn(since, until, [7]) or drawn == {*names}
        assert density.everybody_had_a_turn(since, since + 13, [7])
    assert not density.everybody_had_a_turn(8, 14, [7])
    assert density.everybody_had_a_turn(7, 14, [7])
    assert not density.everybody_had_a_turn(7, 14, [7, 6]), "the shorter lane's rounds lie elsewhere"


def test_a_gaussian_that_one_identity_needs_survives():
    head = small_head()
    field, seen = head.face_field, density.Statistics(400)
    canonical = field.gaussians()
    for needed in (3, 7):
        opacities = torch.full((300,), -6.0)
        opacities[needed] = 2.0
        person = replace(canonical, opacities=opacities)
        rendering = Rendering(torch.zeros(3, 8, 8), torch.zeros(1, 8, 8), torch.zeros(300, 2), torch.ones(300, 2))
        seen.observe(rendering, canonical, person, 1.0)
    seen.opacity[100:300] = 0.5  # enough others live on
    regrowth = density.regrow(field, seen, DensityConfig(), 1.0, 0.05, torch.Generator())
    assert {3, 7} <= set(regrowth.source.tolist())
    assert not set(range(100)) - {3, 7} & set(regrowth.source.tolist())
    assert regrowth.pruned == 98
    assert density.regrow(field, seen, DensityConfig(), 1.0, 0.0, torch.Generator()).pruned == 0, (
        "others are yet to come"
    )
    kept = torch.tensor([3, 200, 3])
    opacities = seen.opacity[kept].tolist()
    seen.clear(kept)
    assert seen.opacity[:4].tolist() == [*opacities, 0.0]
    seen.clear()
    assert not seen.opacity.any()


def test_growth_is_where_the_gradient_is_and_stops_at_capacity():
    head = small_head()
    field, seen = head.face_field, density.Statistics(400)
    seen.opacity[:300] = 0.5
    seen.sums[:300, 4] = 2
    seen.sums[50:60, 0] = int(2 * 0.01 * density.UNIT)
    seen.sums[60, 0] = int(2 * 0.02 * density.UNIT)
    seen.sums[60, 2] = int(2 * 0.05 * density.UNIT)  # displaced by 5 cm along y: its child is born where it is seen
    regrowth = density.regrow(field, seen, DensityConfig(grow=0.5), 0.005, 0.05, torch.Generator().manual_seed(0))
    assert regrowth.grown == 11
    assert regrowth.source[300:].tolist() == list(range(50, 61))
    torch.testing.assert_close(regrowth.values["means"][310], field.means[60].detach() + torch.tensor([0, 0.05, 0]))
    assert regrowth.fresh[300:].all()
    assert regrowth.fresh[50:61].all()
    assert not regrowth.fresh[:50].any()
    seen.sums[:300, 0] = int(density.UNIT)
    assert density.regrow(field, seen, DensityConfig(grow=1.0), 0.005, 0.05, torch.Generator()).grown == 100


def test_a_child_lies_within_its_parent_as_that_is_seen():
    """However large the canonical one is, and however it is turned."""
    head = small_head()
    field, seen = head.face_field, density.Statistics(400)
    canonical = field.gaussians()
    turn = Rotation.from_euler("xyz", [0.3, 0.5, 0.7])
    needle = torch.log(torch.tensor([3e-3, 3e-4, 1e-4]))
    quats = torch.from_numpy(turn.as_quat(scalar_first=True)).float().expand(300, 4)
    person = replace(canonical, quats=2 * quats, log_scales=needle.expand(300, 3))
    rendering = Rendering(torch.zeros(3, 8, 8), torch.zeros(1, 8, 8), torch.zeros(300, 2), torch.ones(300, 2))
    rendering.means2d.grad = torch.ones(300, 2)
    for _ in range(3):
        seen.observe(rendering, canonical, person, 1.0)
    regrowth = density.regrow(field, seen, DensityConfig(grow=0.3), 0.005, 0.05, torch.Generator().manual_seed(0))
    parents, children = regrowth.source[-regrowth.grown :], regrowth.values["means"][-regrowth.grown :]
    assert regrowth.grown == 90
    offsets = turn.inv().apply((children - canonical.means.detach()[parents]).numpy())
    np.testing.assert_allclose(offsets.std(0), np.exp(needle.numpy()) / 1.5, rtol=0.2)


def test_axes_are_those_of_turned_ellipsoids():
    generator = np.random.default_rng(0)
    turns = Rotation.random(20, rng=generator)
    scales = np.exp(generator.normal(-6, 1, (20, 3)))
    found = axes(torch.from_numpy(np.log(scales)), torch.from_numpy(3 * turns.as_quat(scalar_first=True)))
    np.testing.assert_allclose(found, turns.as_matrix() * scales[:, None], rtol=1e-9, atol=1e-12)


def test_a_gaussian_outside_the_cube_is_removed():
    head = small_head()
    seen = density.Statistics(400)
    seen.opacity[:300] = 0.5
    with torch.no_grad():
        head.face_field.means[5, 0] = 0.2
    assert 5 not in density.regrow(head.face_field, seen, DensityConfig(), 1.0, 0.05, torch.Generator()).source.tolist()
