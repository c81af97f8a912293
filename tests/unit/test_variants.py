"""The paper's ablations: each variant trains, checkpoints, goes on and is baked; what is left out costs nothing; what makes no sense is refused."""

import copy
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_identity
import torch
from heads import small_config, small_head, small_shot

from fiag_dist.acting.actor import Actor, load_actor, load_info
from fiag_dist.acting.rehearsal import Rehearsal
from fiag_dist.adaptation import trial
from fiag_dist.adaptation.job import Job
from fiag_dist.config import AdaptConfig, PretrainConfig
from fiag_dist.configfile import from_dict, to_dict
from fiag_dist.dist import checkpoint, saving
from fiag_dist.dist.engine import LocalEngine
from fiag_dist.dist.process import Process
from fiag_dist.errors import CheckpointError, ConfigError
from fiag_dist.monitoring.monitor import Monitor
from fiag_dist.pretrain import build, identity_tensors, newest_of
from fiag_dist.pretraining import resume
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.stages import Stage
from fiag_dist.storage import open_storage
from fiag_dist.training.bake import bake_run
from fiag_dist.training.loop import run
from fiag_dist.training.settings import refuse_nonsense
from fiag_dist.training.step import Training

NO_IDENTITY = {"model": {"identity": {"enabled": False}}, "loss": {"triplet": 0}}
NO_PERSONAL = {"model": {"motion": {"personal": False}}, "loss": {"contrast": 0}}
NO_HOOK = {"model": {"motion": {"hook_k": 0}}, "loss": {"triplet": 0, "contrast": 0}}
TABLE = {"model": {"identity": {"embedding": "table", "table_dim": 12}}}
SCHEDULES = {"curriculum_every": 2, "stages": {"sh_every": 3}, "optim": {"universal_schedule": "pretraining"}}
VARIANTS = {
    "full": {},
    "no IE-Net": NO_IDENTITY,
    "no IM-Net": {**NO_PERSONAL, "model": {"motion": {"personal": False, "form": "attention"}}},
    "no hook, L_t, L_c": NO_HOOK,
    "learnt embeddings, schedules": TABLE | SCHEDULES,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_identity.pack(tmp_path_factory.mktemp("two"), "ball", "twin")


def merged(tree: dict, over: dict) -> dict:
    return tree | {k: merged(tree[k], v) if isinstance(v, dict) and k in tree else v for k, v in over.items()}


@contextmanager
def training(shards: str, variant: dict) -> Iterator[Training]:
    model = to_dict(small_config())
    tiny = {
        "steps": 8,
        "frames_per_step": 2,
        "stages": {"landmark_steps": 1, "warm_up": 0.2, "identity": 0.4},
        "model": model,
    }
    tree = merged({**tiny, "loss": {"lpips": 0.0}}, variant)
    config = from_dict(PretrainConfig, {"data": shards, "train": tree})
    made = build(config, Process(), open_storage(shards), make_engine=lambda h, g: LocalEngine(h, g, 0.0))
    with closing(made.feed):
        yield made


def learnt(made: Training) -> list[dict[str, float]]:
    return [made.learn(made.feed.next(made.step)) for _ in range(9)]


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_trains_is_kept_and_rehearsed(shards: str, name: str) -> None:
    with training(shards, VARIANTS[name]) as made:
        tags = learnt(made)
        assert all(torch.tensor(t["loss/total"]).isfinite() for t in tags)
        assert tags[-1]["train/refused_steps"] == 0
        seen = {key for t in tags for key in t}
        assert ("loss/triplet" in seen) == (name not in ("no IE-Net", "no hook, L_t, L_c"))
        assert ("loss/contrast" in seen) == (name not in ("no IM-Net", "no hook, L_t, L_c"))
        person = made.feed.names[0]
        kept = identity_tensors(made, person)
        with training(shards, VARIANTS[name]) as other:
            other.restore(made.step, *made.shared(), rank=0)
            other.pool.load(person, kept)
            shot = made.feed.test_shots(person, 1)[0]
            images = [t.compare(person, [shot])[1][0][2] for t in (made, other)]
            torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-6)
        actor = Actor.bake(made.head.eval(), made.pool[person], made.embedding(person))
        performed = actor(shot.audio, shot.expression, shot.camera).over(torch.zeros(3, 1, 1))
        rehearsed = Rehearsal(actor).perform(shot.audio, shot.expression, shot.camera).image
        assert float((performed - rehearsed).abs().mean().detach()) < 1e-4


def test_learnt_embeddings_start_apart_are_learnt_and_whoever_is_new_starts_from_their_mean(
    shards: str, tmp_path: Path
) -> None:
    run = open_storage(tmp_path / "run")
    with training(shards, TABLE) as made:
        first = {name: made.embedding(name).clone() for name in made.feed.names}
        assert float(first["ball"] @ first["twin"]) < 0.9
        learnt(made)
        kept = {name: identity_tensors(made, name) for name in first}
        info = resume.info(PretrainConfig(train=made.config), read_manifest(shards), made.feed.names, {})
        saving.save(run, checkpoint.FOLDER, made.step, *made.shared(), kept, info, Process(), keep=1)
    for name, tensors in kept.items():
        assert 0 < float((tensors["embedding"] - first[name]).abs().max()) < 0.1
    settings = from_dict(AdaptConfig, {"train": {"steps": 4, "stages": {"landmark_steps": 0}, "loss": {"lpips": 0}}})
    new = trial.build(Job("ball", shards, f"{tmp_path}/run", str(tmp_path / "ball"), settings))
    mean = torch.stack([tensors["embedding"] for tensors in kept.values()]).mean(0)
    with closing(new.feed):
        torch.testing.assert_close(new.embedding("ball"), mean)
        for step in range(2):  # IE-Net's last layer starts from 0, so the first step is that layer's alone
            new.learn(new.feed.next(step))
        assert float((new.embedding("ball") - mean).abs().max()) > 0
        assert new.pool.tensors("ball")["embedding"].shape == (12,)


def test_degrees_of_colour_that_have_not_taken_part_yet_are_not_baked(shards: str, tmp_path: Path) -> None:
    """Nobody has taught IE-Net what to say of them."""
    late, run = {"stages": {"landmark_steps": 0, "sh_every": 2}}, str(tmp_path / "run")
    with training(shards, late) as made:
        for step in range(2):  # the next step would have been the first of degree 1
            made.learn(made.feed.next(step))
        kept = {name: identity_tensors(made, name) for name in made.feed.names}
        config = PretrainConfig(data=shards, train=made.config)
        info = resume.info(config, read_manifest(shards), made.feed.names, {})
        saving.save(open_storage(run), checkpoint.FOLDER, made.step, *made.shared(), kept, info, Process(), keep=1)
        with training(shards, late) as again:
            again.restore(made.step, *made.shared(), rank=0)
            assert again.head.sh_degree == 0
    person = bake_run(run) / "ball"
    assert load_actor(person, load_info(person)).person.face.sh_rest.shape[1] == 0
    settings = from_dict(AdaptConfig, {"settle": False, "train": {"loss": {"lpips": 0}}})
    new = trial.build(Job("ball", shards, run, str(tmp_path / "ball"), settings))
    with closing(new.feed):
        assert not new.head.face_field.sh_rest.any()


def test_people_are_trained_with_the_embedding_that_is_baked(shards: str) -> None:
    with training(shards, {"stages": {"landmark_steps": 0}}) as made:
        baked = made.embedding("ball")
        own = [replace(shot, embedding=shot.embedding.roll(1)) for shot in made.feed.test_shots("ball", 2)]
        assert not torch.equal(own[0].embedding, baked), "made-up frames all have their mean"
        assert all(torch.equal(shot.embedding, baked) for shot, _, _ in made.compare("ball", own)[1])
        seen: list[torch.Tensor] = []
        made.head.face_identity.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
        lesson = next(one for step in range(9) for one in made.feed.next(step) if one.shot.identity == "ball")
        made.learn([replace(lesson, shot=replace(lesson.shot, embedding=own[0].embedding))])
        assert torch.equal(seen[0], baked)


def test_shards_that_were_packed_otherwise_are_refused_in_a_line(tmp_path: Path) -> None:
    url, run = tiny_identity.pack(tmp_path / "two", "ball", "twin"), f"{tmp_path}/run"
    with training(url, {}) as made:
        kept = {name: identity_tensors(made, name) for name in made.feed.names}
        config = PretrainConfig(data=url, train=made.config)
        info = resume.info(config, read_manifest(config.data), made.feed.names, {})
        saving.save(open_storage(run), checkpoint.FOLDER, 0, *made.shared(), kept, info, Process(), keep=1)
    manifest = tmp_path / "two" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"extractor": "mel"', '"extractor": "whisper:2"'))
    line = rf"^run {run}: trained with extractor 'mel', the shards have 'whisper:2'; pack the clips with its settings$"
    with pytest.raises(CheckpointError, match=line):
        build(config, Process(), open_storage(url), newest_of(open_storage(run), Process()))
    with pytest.raises(CheckpointError, match=line):
        bake_run(run)
    shutil.move(tmp_path / "two", tmp_path / "moved")
    with pytest.raises(CheckpointError, match=line):
        bake_run(run, data=f"{tmp_path}/moved")


def test_people_of_a_run_are_those_of_its_newest_checkpoint(tmp_path: Path) -> None:
    """A step that was made anew has the name of the one before it, and a run may go on without somebody."""
    url, run = tiny_identity.pack(tmp_path / "two", "ball", "twin"), tmp_path / "run"
    with training(url, {}) as made:
        info = resume.info(PretrainConfig(data=url, train=made.config), read_manifest(url), made.feed.names, {})

        def stage(*names: str) -> None:
            kept = {name: identity_tensors(made, name) for name in names}
            saving.save(open_storage(run), checkpoint.FOLDER, 0, *made.shared(), kept, info, Process(), keep=1)

        stage("ball", "twin")
        before = (bake_run(str(run)) / "ball" / "identity.safetensors").read_bytes()
        first = (run / "identities" / "ball" / "identity.json").stat().st_mtime_ns
        assert (bake_run(str(run)) / "ball" / "identity.json").stat().st_mtime_ns == first, "kept"
        made.head.face_field.opacities.data -= 1
        stage("ball")
        people = bake_run(str(run))
    assert (people / "ball" / "identity.safetensors").read_bytes() != before
    assert not (people / "twin").exists()


def test_what_only_a_first_step_asks_for_are_settings() -> None:
    settings = to_dict(PretrainConfig())
    for name in resume.BEGINS_WITH:
        value = settings
        for key in name.split("."):
            value = value[key]
        assert not isinstance(value, dict)


def test_what_was_counted_goes_on_after_a_resume(shards: str) -> None:
    growing = {"density": {"start": 1, "every": 1, "grad_face": 0.0, "grad_mouth": 0.0}}
    with training(shards, growing) as made:
        last = learnt(made)[-1]
        assert last["field/grown"] > 0
        made.engine.refused = 2
        kept = {name: identity_tensors(made, name) for name in made.feed.names}
        shared, optim = made.shared()
    with training(shards, growing) as again:
        for name, tensors in kept.items():
            again.pool.load(name, tensors)
        again.restore(made.step, shared, optim, 0)
        tags = again.learn(again.feed.next(again.step))
        assert tags["field/grown"] >= last["field/grown"]
        assert tags["train/refused_steps"] == 2
        older = {name: value for name, value in optim.items() if name != "counts"}
        again.restore(made.step, shared, older, 0)


def test_nothing_is_pruned_before_all_were_seen(shards: str) -> None:
    """Who was not rendered since the last update had no say: with more people in a lane than steps between updates, what only they need went."""
    pruning = {"density": {"start": 1, "every": 1, "prune_from": 0.3, "prune_to": 0.3, "grow": 0.0}}
    with training(shards, {"frames_per_step": 1, **pruning}) as made:
        assert made.feed.ownership.lanes == (("ball", "twin"),)
        for _ in range(3):  # landmarks; then images of one of them, the second in a round, and of the first in the next
            assert made.learn(made.feed.next(made.step))["field/pruned"] == 0
            opacities = made.statistics["face"].opacity
            assert opacities.any() == (made.step > 1)
        step, kept = made.step, {name: identity_tensors(made, name) for name in made.feed.names}
        shared, optim, kept = copy.deepcopy((*made.shared(), kept))  # they are those that training goes on with
        after = made.learn(made.feed.next(made.step))["field/pruned"]
        assert after > 0
        assert not opacities.any()
    with training(shards, {"frames_per_step": 1, **pruning}) as again:
        for name, tensors in kept.items():
            again.pool.load(name, tensors)
        again.restore(step, shared, optim, 0)
        again.feed.restore({name: int(tensors["count"]) for name, tensors in kept.items()})
        assert again.learn(again.feed.next(again.step))["field/pruned"] == after


def test_a_refused_step_is_nobodys_turn(shards: str) -> None:
    """Who was not rendered in it had no say, and what only they need went with the next pruning."""
    pruning = {"density": {"start": 1, "every": 1, "prune_from": 0.3, "prune_to": 0.3, "grow": 0.0}}
    with training(shards, {"frames_per_step": 1, "refused_at_most": 9, **pruning}) as made:
        for _ in range(3):
            made.learn(made.feed.next(made.step))
        hook = made.head.face_field.sh_dc.register_hook(lambda gradient: gradient * torch.inf)
        refused = made.learn(made.feed.next(made.step))
        assert refused["train/refused_steps"] == 1
        assert refused["field/pruned"] == 0, "with this step a round would have been whole"
        hook.remove()
        assert made.learn(made.feed.next(made.step))["field/pruned"] == 0
        assert made.learn(made.feed.next(made.step))["field/pruned"] > 0, "the next whole one counts"


def test_a_run_that_is_stopped_at_once_saves_nothing(shards: str, tmp_path: Path) -> None:
    """A save of the step that it began from would first take away the checkpoint of that step."""
    saved: list[int] = []
    with training(shards, {}) as made, closing(Monitor(tmp_path, Process())) as monitor:
        assert not run(made, monitor, lambda: saved.append(made.step), stopped=lambda: True)
        assert not saved
        assert not run(made, monitor, lambda: saved.append(made.step), stopped=lambda: made.step == 2)
        assert saved == [2]


def test_a_personal_net_without_a_finite_gradient_stays_as_it_is(shards: str) -> None:
    """The loss and the shared gradient are finite: the others learn on."""
    with training(shards, {}) as made:
        while made.stage < Stage.MOTION:
            made.learn(made.feed.next(made.step))
        lessons = made.feed.next(made.step)
        hurt, *others = [lesson.shot.identity for lesson in lessons]
        before = {name: {k: t.clone() for k, t in made.pool.tensors(name).items()} for name in (hurt, *others)}
        next(iter(made.pool[hurt].parameters())).register_hook(lambda gradient: gradient * torch.inf)
        tags = made.learn(lessons)
        assert tags["train/refused_steps"] == 0
        assert tags["train/refused_nets"] == 1 / len(lessons)
        for name, kept in before.items():
            unmoved = all(torch.equal(kept[key], now) for key, now in made.pool.tensors(name).items())
            assert unmoved == (name == hurt)


def test_a_checkpoint_with_statistics_of_an_older_layout_goes_on(shards: str) -> None:
    with training(shards, {}) as made:
        shared, optim = made.shared()
        older = {name: value[:, :5] + 1 if name.endswith(".sums") else value for name, value in optim.items()}
        made.restore(3, shared, older, 0)
        assert made.step == 3
        assert not any(seen.sums.any() for seen in made.statistics.values())


def test_0_freezes_centres_and_lets_nothing_grow(shards: str) -> None:
    variant = {"optim": {"means": [0, 0]}, "density": {"start": 1, "every": 0, "prune_from": 1.0, "prune_to": 1.0}}
    with training(shards, variant) as made:
        means = made.head.face_field.means.detach().clone()
        tags = learnt(made)
        torch.testing.assert_close(made.head.face_field.means.detach(), means, rtol=0, atol=0)
        assert {t["field/pruned"] + t["field/grown"] for t in tags} == {0}


def test_what_is_left_out_has_no_parameters_and_is_not_read(shards: str) -> None:
    with training(shards, merged(NO_IDENTITY, NO_PERSONAL) | {"loss": {"triplet": 0, "contrast": 0}}) as bare:
        assert not [name for name, _ in bare.head.named_parameters() if "identity" in name]
        assert not list(bare.pool[bare.feed.names[0]].parameters())
        reads = []
        for reader in bare.feed.readers.values():
            original = reader.frame
            reader.frame = lambda position, original=original: reads.append(position) or original(position)
        for step in range(4):
            bare.feed.next(step)
    assert len(reads) <= 10  # two frames a step, and those of the step ahead; no frame for L_t


def test_without_ie_net_all_are_one_person() -> None:
    head = small_head(
        from_dict(type(small_config()), merged(to_dict(small_config()), {"identity": {"enabled": False}}))
    )
    people = [head.person(small_shot(seed=seed).embedding).face for seed in (1, 2)]
    torch.testing.assert_close(people[0].opacities, people[1].opacities, rtol=0, atol=0)


def test_k_of_the_hook_is_drawn_in_training_only() -> None:
    head = small_head(small_config(hook_k_most=50))
    moved = torch.randn(300, 3)
    drawn = {float(head.universal.hook(moved)[0]) for _ in range(20)}
    assert len(drawn) > 3
    head.eval()
    assert len({float(head.universal.hook(moved)[0]) for _ in range(5)}) == 1
    assert not small_head(small_config(hook_k=0)).universal.hook(moved).any()


@pytest.mark.parametrize(
    ("variant", "line"),
    [
        ({"model": {"identity": {"enabled": False}}}, "train.loss.triplet is 0.01"),
        ({"model": {"motion": {"personal": False}}}, "train.loss.contrast is 1.0"),
        ({"model": {"motion": {"hook_k": 20, "hook_k_most": 10}}}, "hook_k_most is 10 and hook_k 20"),
        (merged(NO_IDENTITY, {"model": {"identity": {"embedding": "table"}}}), "embedding is table, but"),
        ({"model": {"field": {"num_mouth": 3000}}}, "num_mouth is 3000 and capacity_mouth 2000: .* to 3000 or more"),
        ({"stages": {"warm_up": 0.5, "identity": 0.2}}, "warm_up 0.5, identity 0.2"),
        ({"optim": {"means": [0, 1e-6]}}, "train.optim.means goes from 0.0 to 1e-06: .* 0 0 to freeze it"),
        ({"optim": {"sh_dc": [1e-3, 0]}}, "train.optim.sh_dc goes from 0.001 to 0.0"),
        ({"optim": {"quats": [-1, -1]}}, "train.optim.quats goes from -1.0 to -1.0"),
        ({"keep": -1}, "train.keep is -1; give 0 or more"),
        ({"seed": -1}, "train.seed is -1; give 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(variant: dict, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as refused:
        refuse_nonsense(from_dict(PretrainConfig, {"train": variant}).train)
    assert "\n" not in str(refused.value)
