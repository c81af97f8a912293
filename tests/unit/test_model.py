"""The model against what must hold of it whatever it has learnt."""

from dataclasses import replace

import pytest
import torch
from heads import camera, rest_landmarks, small_config, small_head, small_shot

from fiag_dist.acting.actor import Actor
from fiag_dist.config import AudioConfig
from fiag_dist.errors import ConfigError
from fiag_dist.model.audio import NARROW, TAPS, WIDE, AudioCode, Listener, held, taps
from fiag_dist.model.head import FACE_SCALE_M, Performance, Person, act, at_most, shown_colors
from fiag_dist.model.motion import hook
from fiag_dist.model.surface import FaceSurface, MotionGate
from fiag_dist.types import BOUND_M, Rendering


def _layer(color: float, alpha: float) -> Rendering:
    image = torch.full((3, 2, 2), color * alpha)
    return Rendering(
        image=image, alpha=torch.full((1, 2, 2), alpha), means2d=torch.zeros(0, 2), radii=torch.zeros(0, 2)
    )


@pytest.mark.parametrize(
    ("face", "mouth", "expected"),
    [(1.0, 1.0, 0.9), (0.0, 1.0, 0.5), (0.0, 0.0, 0.1), (1.0, 0.0, 0.9), (0.5, 0.5, 0.45 + 0.125 + 0.025)],
)
def test_face_lies_over_mouth_over_backdrop(face, mouth, expected):
    person = Person(*[small_head().face_field.gaussians()] * 2)
    performance = Performance(person, None, None, None, _layer(0.9, face), _layer(0.5, mouth))
    torch.testing.assert_close(performance.over(torch.full((3, 2, 2), 0.1)), torch.full((3, 2, 2), expected))


def test_hook_is_the_kth_largest_and_smallest():
    d_means = torch.zeros(50, 3)
    d_means[:, 1] = torch.randperm(50, generator=torch.Generator().manual_seed(0)).float() / 1000
    torch.testing.assert_close(hook(d_means, k=3), torch.tensor([4.7, 0.2, 4.5]))
    with pytest.raises(ConfigError, match="hook_k is 51"):
        hook(d_means, k=51)


def test_two_embeddings_make_two_people():
    head = small_head()
    with torch.no_grad():
        head.face_identity.grid.table.uniform_(-1, 1)
    shots = [small_shot("anna", 1), small_shot("ben", 2)]
    personal = head.universal.new_personal()
    images = [head.perform(shot, personal, moving=False).face.image for shot in shots]
    assert (images[0] - images[1]).abs().max() > 1e-3


def test_personal_nets_move_differently():
    head, shot = small_head(), small_shot()
    moved = [head.perform(shot, head.universal.new_personal()).motion.means for _ in range(2)]
    assert (moved[0] - moved[1]).abs().max() > 1e-5


def test_baked_performs_like_unbaked():
    head, shot = small_head().eval(), small_shot()
    personal = head.universal.new_personal()
    with torch.no_grad():
        unbaked = head.perform(shot, personal).over(torch.zeros(3, 48, 48))
    baked = Actor.bake(head, personal, shot.embedding)(shot.audio, shot.expression, shot.camera).over(
        torch.zeros(3, 48, 48)
    )
    torch.testing.assert_close(baked, unbaked, rtol=0, atol=1e-6)


def test_expression_moves_nothing_below_the_nose_and_audio_nothing_above():
    head, shot = small_head().eval(), small_shot()
    personal = head.universal.new_personal()
    points = rest_landmarks()[:468]
    nose_y = points[1, 1]
    drive = head.drive(shot)
    moved = head.universal.move(points, personal, drive).means
    other_face = head.universal.move(points, personal, replace(drive, expression=1 - drive.expression)).means
    other_voice = head.universal.move(points, personal, replace(drive, heard=drive.heard + 1)).means
    below, above = points[:, 1] < nose_y - 0.04, points[:, 1] > nose_y + 0.04
    torch.testing.assert_close(moved[below], other_face[below], rtol=0, atol=1e-6)
    torch.testing.assert_close(moved[above], other_voice[above], rtol=0, atol=1e-6)
    assert (moved[above] - other_face[above]).abs().max() > 1e-6
    assert (moved[below] - other_voice[below]).abs().max() > 1e-6


def test_hair_swings_and_the_face_does_not():
    head, shot = small_head().eval(), small_shot()
    personal = head.universal.new_personal()
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # a quarter to the left
    swing = torch.cat([turn, torch.tensor([[0.01], [0.0], [-0.02]])], 1)
    person, drive = head.person(shot.embedding), head.drive(shot)
    still = act(person, head.universal, personal, drive).face.means
    swung = act(person, head.universal, personal, replace(drive, swing=swing)).face.means
    gate = head.universal.gate(person.face.means)[:, 0]
    face, hair = gate == 1, gate == 0
    assert face.sum() > 10 < hair.sum()
    torch.testing.assert_close(swung[face], still[face], rtol=0, atol=0)
    x, y, z = still[hair].T
    torch.testing.assert_close(swung[hair], torch.stack([0.01 - y, x, z - 0.02], 1), rtol=0, atol=1e-6)
    between = ~face & ~hair
    part = ((swung - still).norm(dim=1) / (still @ turn.T + swing[:, 3] - still).norm(dim=1))[between]
    torch.testing.assert_close(part, 1 - gate[between], rtol=0, atol=1e-4)


def test_the_gate_is_open_on_the_face_and_shut_on_hair():
    surface = FaceSurface(rest_landmarks().numpy())
    gate = MotionGate(surface, 0.010, 0.030)
    assert gate(rest_landmarks()[:468]).min() > 0.9
    assert gate(torch.tensor([[0.0, 0.05, -0.10], [0.0, 0.149, 0.0]])).max() == 0


@pytest.mark.parametrize("form", ["direct", "attention"])
@pytest.mark.parametrize("order", ["sequential", "additive"])
@pytest.mark.parametrize("code", ["pca", "net"])
def test_every_shared_and_personal_parameter_learns(form, order, code):
    head = small_head(small_config(form=form, order=order, audio=AudioConfig(code=code, noise=0.0)))
    personal = head.universal.new_personal()
    performance = head.perform(small_shot(), personal, landmarks=True)
    loss = performance.over(torch.rand(3, 48, 48)).square().sum() + performance.landmark_motion.sum() * 100
    if form == "attention":
        assert performance.face.image.shape[0] == 5
    loss.backward()
    still = {
        n
        for n, p in [*head.named_parameters(), *personal.named_parameters()]
        if p.grad is None or not p.grad.abs().sum()
    }
    assert not still, still


def test_groups_hold_every_parameter_once():
    head = small_head()
    grouped = [p for params in head.groups().values() for p in params]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(head.parameters()))


def test_listener_whitens():
    audio = torch.randn(400, 8, 6, 2) @ torch.diag(torch.tensor([1.0, 5.0]))
    listener = Listener(AudioConfig(dim=8, noise=0.0), 6, 2)
    listener.fit([(audio, torch.ones(400, 8))])
    codes = torch.stack([listener(a) for a in audio])
    torch.testing.assert_close(codes.T @ codes / 399, torch.eye(8), rtol=0, atol=0.02)
    five = taps(audio, listener.taps)
    assert torch.equal(five, audio[:, list(TAPS)].mean(-1).flatten(1)), "one after the other, in their order"
    assert "taps" not in listener.state_dict()


@pytest.mark.parametrize("code", ["pca", "lips", "net"])
def test_a_listener_fitted_batch_by_batch_hears_the_same(code: str) -> None:
    audio = torch.randn(400, 8, 6, 2) * torch.linspace(0.5, 3, 6)[:, None]
    voiced = (audio[:, :, 0].mean(-1) > -0.3).float()
    whole, parts = (Listener(AudioConfig(code=code, dim=8), 6, 2) for _ in range(2))
    whole.fit([(audio, voiced)])
    parts.fit(list(zip(audio.split(150), voiced.split(150), strict=True)))
    for name, expected in whole.state_dict().items():
        found = parts.state_dict()[name]
        if name == "basis" and code != "net":  # a component may point either way
            found, expected = found.abs(), expected.abs()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if code == "net":
        clean = whole._clean(audio)
        torch.testing.assert_close(whole.basis, 1 / (clean.std((0, 1, 3)) + 1e-3), rtol=1e-3, atol=0)


def test_silence_is_heard_as_one_and_speech_as_it_is():
    rng = torch.Generator().manual_seed(0)
    voiced = (torch.rand(400, 8, generator=rng) > 0.4).float()
    # Channel 0 tells voice from silence; the others carry speech, and in silence the noise of a room.
    audio = torch.randn(400, 8, 6, 2, generator=rng)
    audio[:, :, 0] = 4 * voiced[..., None] + 0.3 * audio[:, :, 0]
    hearing, deaf = (Listener(AudioConfig(dim=8, noise=0.0, silence=s), 6, 2) for s in (True, False))
    hearing.fit([(audio, voiced)])
    deaf.fit([(audio, voiced)])
    silence, speech = audio[:2].clone(), audio[:2].clone()
    silence[:, :, 0], speech[:, :, 0] = 0.0, 4.0
    torch.testing.assert_close(hearing(silence[0]), hearing(silence[1]))
    assert (hearing(speech[0]) - hearing(speech[1])).norm() > 0.5
    assert (deaf(silence[0]) - deaf(silence[1])).norm() > 0.5
    hush = hearing.hush()
    assert hush is not None
    torch.testing.assert_close(hearing(hush[:, None].expand(8, 6, 2)), hearing.silence())
    assert deaf.hush() is None, "who hears a voice in everything has no silence to be given"


def test_a_sound_that_has_ended_is_learnt_to_be_silence():
    rng = torch.Generator().manual_seed(0)
    voiced = (torch.rand(400, 8, generator=rng) > 0.1).float()
    # In speech channel 0 tells a voice; where sound has ended it says nothing, and channel 1 tells.
    audio = torch.randn(400, 8, 6, 2, generator=rng)
    audio[:, :, 0] = 4 * voiced[..., None] + 0.3 * audio[:, :, 0]
    ended = torch.randn(80, 8, 6, 2, generator=rng)
    ended[:, :, 0], ended[:, :, 1] = 3.0, 9.0
    taught, untaught = (Listener(AudioConfig(dim=8, noise=0.0), 6, 2) for _ in range(2))
    taught.fit([(audio, voiced)], [(ended, torch.zeros(80, 8))])
    untaught.fit([(audio, voiced)])
    assert (tuple(taught.gate.tolist()), tuple(untaught.gate.tolist())) == (pytest.approx(WIDE), pytest.approx(NARROW))
    torch.testing.assert_close(taught(ended[0]), taught.silence())
    assert (untaught(ended[0]) - untaught.silence()).norm() > 0.5


def test_windows_beyond_the_clip_hear_its_last_frame():
    audio = torch.randn(8, 6, 2)
    ended = audio.clone()
    ended[5:] = 0
    expected = audio.clone()
    expected[5:] = audio[4]
    torch.testing.assert_close(held(ended), expected)
    begun = audio.clone()
    begun[[0, 1, 4]] = 0  # a window of zeros within the clip stays
    expected = begun.clone()
    expected[:2] = audio[2]
    torch.testing.assert_close(held(begun), expected)
    torch.testing.assert_close(held(torch.zeros(8, 6, 2)), torch.zeros(8, 6, 2))
    torch.testing.assert_close(held(audio), audio)


def test_audio_net_takes_every_extractors_shape():
    for dim, window in [(29, 16), (384, 2), (1024, 2), (80, 4)]:
        config = AudioConfig(code="net")
        listener = Listener(config, dim, window)
        assert AudioCode(config, dim, window)(listener(torch.randn(8, dim, window))).shape == (32,)


def test_embedding_of_unit_length_is_all_that_names_a_person():
    head, shot = small_head().eval(), small_shot()
    same = replace(shot, identity="somebody else")
    personal = head.universal.new_personal()
    torch.testing.assert_close(head.perform(shot, personal).face.image, head.perform(same, personal).face.image)


def test_points_outside_the_cube_have_no_features():
    head = small_head()
    assert head.universal.face.grid(torch.tensor([[0.0, BOUND_M * 1.01, 0.0]])).abs().max() == 0


def test_no_gaussian_of_the_mouth_is_a_needle():
    head, shot = small_head(), small_shot()
    with torch.no_grad():
        head.mouth_field.log_scales[:, 0] = 0.0  # a metre long
    person = head.person(shot.embedding)
    assert float(person.mouth.log_scales.exp().max().detach()) <= 0.006 * (1 + 1e-6)
    assert len(person.mouth.log_scales) == len(head.mouth_field)


def test_no_gaussian_of_the_face_is_wider_than_a_cheek():
    head, shot = small_head(), small_shot()
    with torch.no_grad():
        head.face_field.log_scales[:, 1] = 0.0
    assert float(head.person(shot.embedding).face.log_scales.exp().max().detach()) == pytest.approx(FACE_SCALE_M)


def test_what_is_too_large_can_shrink_and_does_not_grow_on():
    sizes = torch.tensor([-1.0, 0.5, 0.5], requires_grad=True)
    bounded = at_most(sizes, 0.0)
    assert bounded.tolist() == [-1.0, 0.0, 0.0]
    (bounded * torch.tensor([1.0, 1.0, -1.0])).sum().backward()
    assert sizes.grad is not None
    assert sizes.grad.tolist() == [1.0, 1.0, 0.0]


def test_nothing_is_lighter_than_white_and_what_is_can_only_come_back():
    dc = torch.tensor([[9.0, 9.0, 0.0]], requires_grad=True)
    colors = shown_colors(dc, torch.zeros(1, 0, 3), torch.zeros(1, 3), camera())
    assert colors.tolist() == [[1.0, 1.0, 0.5]]
    (colors * torch.tensor([[1.0, -1.0, -1.0]])).sum().backward()
    assert dc.grad is not None
    assert [sign(g) for g in dc.grad[0].tolist()] == [1, 0, -1]


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


@pytest.mark.parametrize("form", ["direct", "attention"])
def test_bf16_networks_train_nearly_as_fp32_ones(form: str) -> None:
    """Products in bf16: other bits, nearly the same image and gradients; what is kept stays float32."""
    images, gradients = [], []
    for precision in ("fp32", "bf16"):
        head, shot = small_head(small_config(form=form)), small_shot()
        head.precision = precision
        with torch.no_grad():
            head.universal.face.grid.table.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        performance = head.perform(shot, head.universal.new_personal(), landmarks=True)
        (performance.over(torch.zeros(3, 1, 1)).square().mean() + performance.landmark_motion.square().sum()).backward()
        assert performance.motion.means.dtype == performance.face.image.dtype == torch.float32
        images.append(performance.face.image.detach())
        found = {name: p.grad for name, p in head.named_parameters() if p.grad is not None}
        assert {grad.dtype for grad in found.values()} == {torch.float32}
        gradients.append(torch.cat([found[name].flatten() for name in sorted(found)]))
    assert 0 < (images[0] - images[1]).abs().max() < 0.05
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert not torch.equal(*gradients)


def test_silence_is_a_frame_without_its_speech() -> None:
    head, spoken = small_head(small_config(audio=AudioConfig(noise=0.0))), small_shot()
    listener = head.universal.listener
    nobody = listener.center[:, None].expand_as(spoken.audio)
    found = head.silence(spoken)
    assert torch.equal(found.heard, listener.silence())
    assert torch.allclose(found.heard, head.drive(replace(spoken, audio=nobody)).heard, atol=1e-6)
    assert torch.equal(found.expression, spoken.expression)
    assert not torch.allclose(found.heard, head.drive(spoken).heard)
    assert torch.equal(head.drive(replace(spoken, hushed=True)).heard, found.heard)
