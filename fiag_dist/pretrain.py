"""fiag-dist pretrain, and torchrun ... -m fiag_dist.pretrain: many identities, one field, one IE-Net, one UM-Net; IM-Nets with their owners."""

import os
import shlex
from collections.abc import Callable, Container, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch

from fiag_dist import __version__, dryrun, raster
from fiag_dist.config import PretrainConfig
from fiag_dist.configfile import changes, load, to_dict, to_yaml
from fiag_dist.dist import checkpoint, process
from fiag_dist.dist.engine import Engine, Group, ZeroEngine
from fiag_dist.dist.heartbeat import Heartbeat
from fiag_dist.dist.neighbours import Neighbours
from fiag_dist.dist.ownership import Ownership, assign
from fiag_dist.dist.pool import PersonalPool, first_embeddings
from fiag_dist.dist.saving import Saved, Saver
from fiag_dist.errors import CheckpointError, guarded
from fiag_dist.feed import feed_of
from fiag_dist.loop import run
from fiag_dist.mirror import Mirror
from fiag_dist.model.head import Head
from fiag_dist.monitor import Monitor
from fiag_dist.shards.manifest import Manifest, read_manifest
from fiag_dist.stages import stage_at, total_steps
from fiag_dist.start import check_formats, fresh_head, load_head, refuse_below, refuse_nonsense
from fiag_dist.status import Teller, refuse_a_second, told
from fiag_dist.storage import Storage, open_storage
from fiag_dist.training import Training, optimizer_groups, perceptual_loss

BEGINS_WITH = (
    "init_identities",
    "train.model.field.init",
    "train.model.field.num_face",
    "train.model.field.num_mouth",
    "train.model.identity.grid.init",
    "train.model.motion.universal_grid.init",
    "train.model.motion.personal_grid.init",
    "train.model.motion.mouth_grid.init",
    "train.model.motion.audio.silence",
)
"""Settings that only a run's first step asks for."""


def main(argv: list[str]) -> int:
    """Trains a run folder to its end, going on from its newest checkpoint."""
    config = load(PretrainConfig, argv, prog="fiag-dist pretrain")
    refuse_nonsense(config.train)
    refuse_below({"init_identities": 1, "dry_run_world": 0, "neighbour_every": 0}, config)
    if config.dry_run_world:
        manifest = read_manifest(config.data)
        plan = dryrun.report(config, manifest, _assign(config, manifest, config.dry_run_world))
        print(f"dry run: nothing is started\n{plan}")
        return 0
    here = process.start(config.first_step_timeout_s)
    folder = checkpoint.join(config.runs, config.name)
    run_storage = open_storage(folder)
    if here.is_first:  # it takes some seconds
        print(f"{folder}: looks through {config.data} and at the run so far", flush=True)
        refuse_a_second(run_storage)
    training = build(config, here, open_storage(config.data), run_storage)
    if here.is_first and not training.done:  # a finished run keeps the settings that it was trained with
        command = f"{_launcher(here.world)} -m fiag_dist.pretrain {shlex.quote(f'{folder}/config.yaml')}"
        run_storage.write("config.yaml", to_yaml(config, command).encode())
        run_storage.write("command.txt", (shlex.join(["fiag-dist", "pretrain", *argv]) + "\n").encode())
    process.barrier()
    mirror = Mirror(folder, here)
    steps = total_steps(config.train)
    train, first_s = config.train, config.first_step_timeout_s
    with (
        closing(Monitor(mirror.folder, here, training.step, steps, train.stages.landmark_steps)) as monitor,
        told(run_storage, here, training.step, steps) as status,
        closing(process.StopSignal()) as stop,
        closing(Heartbeat(here, first_s, config.step_timeout_s, training.step)) as heartbeat,
    ):
        monitor.text(
            "ownership", dryrun.report(config, read_manifest(config.data, check=False), training.feed.ownership)
        )

        begun = f"goes on from step {training.step} of {steps}" if training.step else f"starts, {steps} steps"
        people = sum(len(lane) for lane in training.feed.ownership.lanes)
        monitor.say(f"{folder}: {begun}, {people} people, {here.world} rank{'s' if here.world > 1 else ''}")

        def say(saved: Saved) -> None:
            monitor.say(
                f"checkpoint {folder}/{saved.folder}: {saved.seconds:.2f} s, for {saved.waited_s:.2f} s of which training stood still "
                f"(shared parameters {saved.fingerprint} on all {here.world} ranks)"
            )

        saver = Saver(run_storage, checkpoint.FOLDER, here, train.keep, train.keep_every, mirror.publish, say)
        keeper = Keeper(config, training, saver, heartbeat, status)
        finished = run(training, monitor, keeper.save, lambda: stop.agreed(here.device), keeper.between)
        saver.finish()
        status.say("finished" if finished else "stopped", training.step)
        monitor.say(
            f"{'done' if finished else 'stopped'} at step {training.step}; look: tensorboard --logdir {shlex.quote(str(mirror.folder.parent))}"
        )
    mirror.publish()
    training.feed.close()
    process.finish()
    return 0


@dataclass(frozen=True, eq=False)
class Keeper:
    """What a run does between its steps so that it survives: signs of life, and checkpoints."""

    config: PretrainConfig
    training: Training
    saver: Saver
    heartbeat: Heartbeat
    status: Teller

    def save(self) -> None:
        """Begins a checkpoint."""
        training = self.training
        self.heartbeat.beat(training.step, patient=True)  # the one before may still be on its way
        self.status.say("running", training.step)
        shared, optim = training.shared()
        identities = {name: identity_tensors(training, name) for name in training.feed.names}
        self.saver.begin(training.step, shared, optim, identities, _info(self.config, training))

    def between(self) -> None:
        """After a step. The first one of a stage may compile kernels."""
        step = self.training.step
        self.heartbeat.beat(step, patient=self.training.stage is not stage_at(step - 1, self.config.train))
        self.saver.poll()


def build(
    config: PretrainConfig,
    here: process.Process,
    data: Storage,
    run_storage: Storage,
    make_engine: Callable[[Head, Sequence[Group]], Engine] | None = None,
) -> Training:
    """The training of this rank: fresh, or as the newest checkpoint left it. make_engine: None for ZeRO as configured."""
    # Where gsplat never ran it compiles now, and not in a step that others wait for.
    raster.choose(config.train.raster, here.device)
    manifest = read_manifest(data)
    ownership = _assign(config, manifest, here.world)
    newest = process.broadcast_object(checkpoint.newest(run_storage, checkpoint.FOLDER) if here.is_first else None)
    stored = checkpoint.load(run_storage, newest) if newest else None
    if stored:
        check_formats(manifest, stored.info["formats"], f"run {run_storage.url}")
        _check_people(stored.identities, ownership, run_storage.url)
        if stored.step < total_steps(config.train):  # else nothing is trained with them
            others = _other_settings(stored.info["config"], config, run_storage.url)
            if here.is_first and others:
                print(f"{run_storage.url}: goes on with other settings: {others}", flush=True)
        head = load_head(config.train, stored.info["formats"], stored.shared, averaged=False).to(here.device)
    else:
        names = [name for lane in ownership.lanes for name in lane][: config.init_identities]
        head = fresh_head(config.train, data, manifest, sorted(names), config.train.seed, here.device)
        # What is fitted and drawn differs in last bits between kinds of CPU.
        process.broadcast(head.state_dict().values())
    feed = feed_of(config.train, data, manifest, ownership, here.rank, here.device)
    personals = {name: _personal(head, config.train.seed, name).to(here.device) for name in feed.names}
    embeddings = first_embeddings(config.train.model.identity, feed.names, config.train.seed)
    pool = PersonalPool(personals, {name: start.to(here.device) for name, start in embeddings.items()})
    make_engine = make_engine or partial(
        ZeroEngine, zero_stage=config.zero_stage, grad_clip=config.train.optim.grad_clip
    )
    engine = make_engine(head, optimizer_groups(head))
    perceptual = perceptual_loss(config.train, here.device)
    training = Training(config.train, head, engine, pool, feed, len(ownership.lanes), here.world, perceptual)
    neighbours = Neighbours(ownership, here.rank, pool, training.embedding, config.neighbour_every)
    training.neighbours = neighbours
    if stored:
        training.restore(stored.step, stored.shared, stored.optim, here.rank)
        for name in feed.names:
            tensors = stored.identities[name]
            pool.load(name, tensors)
            feed.restore({name: int(tensors["count"])})
        neighbours.load(stored.identities)
    return training


def identity_tensors(training: Training, name: str) -> dict[str, torch.Tensor]:
    """One identity's part of a checkpoint: its personal net, how many of its frames were drawn, its embedding, and its frozen neighbour."""
    own = {"count": torch.tensor(training.feed.counts[name]), checkpoint.EMBEDDING: training.embedding(name).cpu()}
    neighbour = training.neighbours.tensors(name) if training.neighbours else {}
    return training.pool.tensors(name) | own | neighbour


def _assign(config: PretrainConfig, manifest: Manifest, world: int) -> Ownership:
    names = list(dict.fromkeys(config.identities)) or manifest.names  # a name given twice is one person, with one owner
    frames = {name: manifest.entry(name).split.train for name in names}
    return assign(names, frames, config.train.frames_per_step, world)


def _check_people(known: Container[str], ownership: Ownership, run: str) -> None:
    """A run goes on with the people that it began with, or with some of them: who came later would have no part in what is learnt already."""
    new = sorted(name for lane in ownership.lanes for name in lane if name not in known)
    if new:
        who = f"{', '.join(new[:6])}{' ...' if len(new) > 6 else ''}"
        raise CheckpointError(
            f"{run} was begun without {who}; go on without them (--identities), give another --name, or adapt them to it: fiag-dist adapt"
        )


def _launcher(world: int) -> str:
    """torchrun as it started these ranks."""
    a_node = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    nodes = f"--nnodes={world // a_node} " if world > a_node else ""
    return f"torchrun {nodes}--nproc-per-node={a_node}"


def _other_settings(before: dict, config: PretrainConfig, run: str) -> str:
    """The settings of a run that goes on that are not as they were, in words. Raises CheckpointError where it can't go on with them."""
    found = {
        name: f"{name} {now}, before {old}"
        for name, (old, now) in changes(before, to_dict(config)).items()
        if name not in ("data", "runs", "name")  # where things lie
    }
    late = [text for name, text in found.items() if name in BEGINS_WITH]
    if late:
        raise CheckpointError(
            f"{run}: {'; '.join(late)}: only a run's first step asks for that; give another --name, or go on with the run's config.yaml"
        )
    return "; ".join(found.values())


def _personal(head, seed: int, name: str):  # the same start for an identity, whoever owns it
    torch.manual_seed(sum(byte << (8 * (i % 7)) for i, byte in enumerate(name.encode())) ^ seed)
    return head.universal.new_personal()


def _info(config: PretrainConfig, training: Training) -> dict:
    manifest = read_manifest(config.data, check=False)
    return {
        "config": to_dict(config),
        "version": __version__,
        "formats": {
            "id_dim": manifest.id_embedding.dim,
            "expression": manifest.expression,
            "id_model": manifest.id_embedding.model,
            "audio_dim": manifest.audio.dim,
            "audio_window": manifest.audio.window,
            "extractor": manifest.audio.extractor,
            "size": manifest.size,
            "fps": manifest.fps,
        },
    }


if __name__ == "__main__":
    process.leave(guarded(main))
