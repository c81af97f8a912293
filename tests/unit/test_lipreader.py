"""Lips read from speech: the regression against one solved another way, who it is learnt from, and silence that lies beside speech."""

from dataclasses import replace
from pathlib import Path

import heads
import made_shards
import numpy as np
import pytest
import torch

from fiag_dist.config import AudioConfig, FieldConfig, ModelConfig, MotionConfig, TrainConfig
from fiag_dist.landmarks import INNER_LIP_BOTTOM, INNER_LIP_TOP
from fiag_dist.model.audio import NARROW, WIDE, Listener
from fiag_dist.model.lipreader import MOTIONS, RIDGE, LipReader, motions
from fiag_dist.shards.manifest import Manifest
from fiag_dist.shards.reader import read_meta
from fiag_dist.storage import Storage, open_storage
from fiag_dist.training.hearing import OWN_FRAMES, attune
from fiag_dist.training.start import fresh_head, load_head
from fiag_dist.types import EXPRESSION_NAMES, IdentityMeta


def test_it_solves_the_regularised_least_squares_of_all_frames_by_their_weights() -> None:
    torch.manual_seed(0)
    reader = LipReader(6)
    parts = [(torch.randn(n, 6), torch.randn(n, MOTIONS), weight) for n, weight in ((300, 1.0), (40, 12.0))]
    rows, wanted = [RIDGE**0.5 * np.eye(6)], [np.zeros((6, MOTIONS))]
    for heard, lips, weight in parts:
        reader.add(heard, lips, weight)
        rows.append(weight**0.5 * heard.double().numpy())
        wanted.append(weight**0.5 * lips.double().numpy())
    expected = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)[0]
    np.testing.assert_allclose(reader.weights.numpy(), expected, atol=1e-5)


def test_motions_are_deviations_of_each_persons_own() -> None:
    rng = np.random.default_rng(0)
    small = rng.normal(size=(50, 478, 3)).astype(np.float32)
    found, of_a_giant = motions(list(small)), motions(list(3 * small))
    np.testing.assert_allclose(found, of_a_giant, atol=1e-4)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(0), 1, atol=1e-3)
    gap = np.linalg.norm(small[:, INNER_LIP_TOP] - small[:, INNER_LIP_BOTTOM], axis=1)
    assert np.corrcoef(found[:, 0], gap)[0, 1] == pytest.approx(1)


def test_silence_lies_beside_speech_and_not_in_its_midst() -> None:
    """An average window of speech has the code of a silence; a mouth that is shut in silence must not be shut in it."""
    rng = torch.Generator().manual_seed(0)
    voiced = (torch.rand(400, 8, generator=rng) > 0.4).float()
    audio = torch.randn(400, 8, 6, 2, generator=rng)
    audio[:, :, 0] = 4 * voiced[..., None] + 0.3 * audio[:, :, 0]
    listener = Listener(AudioConfig(code="lips", dim=30), 6, 2)
    listener.fit([(audio, voiced)])
    lips = audio[:, 4, 1].mean(-1, keepdim=True) * torch.tensor([1.0, -1.0])
    listener.watch(audio, lips, 1.0)
    speech = audio[:1].clone()
    speech[:, :, 0] = 4.0
    heard, silence = listener(speech[0]), listener.silence()
    assert heard.shape == silence.shape == (1 + MOTIONS,)
    assert heard[0] == 1
    assert silence[0] == 0
    speaking = voiced[:, 4] == 1
    codes = torch.stack([listener(a) for a in audio[speaking]])
    for k in range(MOTIONS):
        assert np.corrcoef(codes[:, 1 + k].numpy(), lips[speaking, k].numpy())[0, 1] > 0.8


def test_a_head_that_reads_lips_learns_and_moves() -> None:
    head, shot = heads.small_head(heads.small_config(audio=AudioConfig(code="lips"))), heads.small_shot()
    listener = head.universal.listener
    listener.watch(torch.randn(64, 8, 6, 2), torch.randn(64, MOTIONS), 1.0)
    personal = head.universal.new_personal()
    head.perform(shot, personal, landmarks=True).landmark_motion.square().sum().backward()
    for code in (head.universal.face.audio, personal.audio):
        assert code.net.weight.shape == (32, 1 + MOTIONS)
        assert code.net.weight.grad.abs().sum() > 0
    assert not [name for name, _ in head.named_parameters() if "listener" in name]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Storage, Manifest]:
    store = open_storage(tmp_path)
    return store, made_shards.write_two(store)


def meta_of(two: tuple[Storage, Manifest], name: str) -> IdentityMeta:
    storage, manifest = two
    return read_meta(storage, manifest.entry(name))


def head_of(two: tuple[Storage, Manifest]) -> tuple[TrainConfig, heads.Head]:
    model = ModelConfig(
        field=FieldConfig(init="cube", num_face=50, num_mouth=20, capacity_face=50, capacity_mouth=20),
        motion=MotionConfig(audio=AudioConfig(code="lips", dim=8)),
    )
    config = TrainConfig(model=model)
    return config, fresh_head(config, *two, ["anna"], seed=1)


def test_somebody_new_is_added_to_what_others_taught_and_what_is_kept_back_is_not(
    two: tuple[Storage, Manifest],
) -> None:
    _, head = head_of(two)
    reader = head.universal.listener.lips
    before, scatter = reader.weights.clone(), reader.scatter.clone()
    assert before.abs().sum() > 0
    trained = made_shards.FRAMES - 3
    attune(head.universal.listener, *two, meta_of(two, "bert"), np.array([0, 5]))
    added = reader.scatter - scatter
    assert not torch.equal(reader.weights, before)
    _, other = head_of(two)
    attune(other.universal.listener, *two, meta_of(two, "bert"), np.array([], int))
    both = other.universal.listener.lips.scatter - scatter
    of_the_two = (both * trained - added * (trained - 2)).diagonal() / OWN_FRAMES  # their squares: what was left out
    assert of_the_two.min() > -1e-3
    assert of_the_two.max() > 0.1


def test_what_lips_do_travels_in_a_checkpoint(two: tuple[Storage, Manifest]) -> None:
    config, head = head_of(two)
    formats = {"id_dim": 16, "audio_dim": 4, "audio_window": 2, "expression": EXPRESSION_NAMES}
    again = load_head(config, formats, head.state_dict(), averaged=False)
    attune(head.universal.listener, *two, meta_of(two, "bert"), np.array([], int))
    attune(again.universal.listener, *two, meta_of(two, "bert"), np.array([], int))
    assert torch.equal(head.universal.listener.lips.weights, again.universal.listener.lips.weights)
    windows = torch.randn(8, 4, 2)
    assert torch.equal(head.universal.listener(windows), again.universal.listener(windows))


def test_a_checkpoint_of_a_listener_that_was_not_shown_silence_keeps_its_gate(two: tuple[Storage, Manifest]) -> None:
    config, head = head_of(two)
    formats = {"id_dim": 16, "audio_dim": 4, "audio_window": 2, "expression": EXPRESSION_NAMES}
    now = head.state_dict()
    before = {name: tensor for name, tensor in now.items() if name != "universal.listener.gate"}
    gates = [load_head(config, formats, state, averaged=False).universal.listener.gate for state in (now, before)]
    assert [tuple(gate.tolist()) for gate in gates] == [pytest.approx(WIDE), pytest.approx(NARROW)]


def test_other_codes_learn_no_lips(two: tuple[Storage, Manifest]) -> None:
    config, _ = head_of(two)
    motion = replace(config.model.motion, audio=AudioConfig(dim=8))
    head = fresh_head(replace(config, model=replace(config.model, motion=motion)), *two, ["anna"], seed=1)
    attune(head.universal.listener, *two, meta_of(two, "bert"), np.array([], int))
    assert head.universal.listener.lips is None
    assert not [name for name in head.state_dict() if "lips" in name]
