"""fiag-dist pretrain, and torchrun ... -m fiag_dist.pretrain: many identities, one field, one IE-Net, one UM-Net; IM-Nets with their owners."""

import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fiag_dist.config import PretrainConfig
from fiag_dist.configfile import load, to_yaml
from fiag_dist.dist import checkpoint, process
from fiag_dist.dist.checkpoint import Checkpoint
from fiag_dist.dist.engine import Engine, Group, ZeroEngine
from fiag_dist.dist.heartbeat import Heartbeat
from fiag_dist.dist.neighbours import Neighbours
from fiag_dist.dist.ownership import Ownership, assign
from fiag_dist.dist.pool import PersonalPool, first_embeddings
from fiag_dist.dist.saving import Saved, Saver
from fiag_dist.ending import guarded
from fiag_dist.images import raster
from fiag_dist.model.head import Head
from fiag_dist.monitoring.mirror import Mirror
from fiag_dist.monitoring.monitor import Monitor
from fiag_dist.monitoring.status import Teller, refuse_a_second, told
from fiag_dist.pretraining import dryrun, resume
from fiag_dist.shards.manifest import Manifest, read_manifest
from fiag_dist.stages import stage_at, total_steps
from fiag_dist.storage import Storage, open_storage
from fiag_dist.training.feed import Feed
from fiag_dist.training.loop import run
from fiag_dist.training.settings import refuse_below, refuse_nonsense
from fiag_dist.training.start import fresh_head, load_head
from fiag_dist.training.step import Training, optimizer_groups, perceptual_loss


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
    data, stored = open_storage(config.data), newest_of(run_storage, here)
    training = build(config, here, data, stored)
    manifest, ownership = read_manifest(data, check=False), training.feed.ownership  # `build` has checked it
    info = resume.info(config, manifest, ownership.names, stored.info if stored else {})
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
        monitor.text("ownership", dryrun.report(config, manifest, ownership))

        begun = f"goes on from step {training.step} of {steps}" if training.step else f"starts, {steps} steps"
        monitor.say(
            f"{folder}: {begun}, {len(ownership.names)} people, {here.world} rank{'s' if here.world > 1 else ''}"
        )

        def say(saved: Saved) -> None:
            monitor.say(
                f"checkpoint {folder}/{saved.folder}: {saved.seconds:.2f} s, for {saved.waited_s:.2f} s of which training stood still "
                f"(shared parameters {saved.fingerprint} on all {here.world} ranks)"
            )

        saver = Saver(run_storage, checkpoint.FOLDER, here, train.keep, train.keep_every, mirror.publish, say)
        keeper = Keeper(config, training, saver, heartbeat, status, info)
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
    info: dict[str, Any]
    """What checkpoints say of the run."""

    def save(self) -> None:
        """Begins a checkpoint."""
        training = self.training
        self.heartbeat.beat(training.step, patient=True)  # the one before may still be on its way
        self.status.say("running", training.step)
        shared, optim = training.shared()
        identities = {name: identity_tensors(training, name) for name in training.feed.names}
        self.saver.begin(training.step, shared, optim, identities, self.info)

    def between(self) -> None:
        """After a step. The first one of a stage may compile kernels."""
        step = self.training.step
        self.heartbeat.beat(step, patient=self.training.stage is not stage_at(step - 1, self.config.train))
        self.saver.poll()


def newest_of(run_storage: Storage, here: process.Process) -> Checkpoint | None:
    """The checkpoint that a run goes on from, the same on every rank; None: it begins."""
    newest = process.broadcast_object(checkpoint.newest(run_storage, checkpoint.FOLDER) if here.is_first else None)
    return checkpoint.load(run_storage, newest) if newest else None


def build(
    config: PretrainConfig,
    here: process.Process,
    data: Storage,
    stored: Checkpoint | None = None,
    make_engine: Callable[[Head, Sequence[Group]], Engine] | None = None,
) -> Training:
    """The training of this rank: fresh, or as a checkpoint left it. make_engine: None for ZeRO as configured. Raises CheckpointError as `resume.check`."""
    # Where gsplat never ran it compiles now, and not in a step that others wait for.
    raster.choose(config.train.raster, here.device)
    manifest = read_manifest(data)
    ownership = _assign(config, manifest, here.world)
    if stored:
        for line in resume.check(stored, config, manifest, ownership.names):
            if here.is_first:
                print(line, flush=True)
        head = load_head(config.train, stored.info["formats"], stored.shared, averaged=False).to(here.device)
    else:
        names = sorted(ownership.names[: config.init_identities])
        head = fresh_head(config.train, data, manifest, names, config.train.seed, here.device)
        # What is fitted and drawn differs in last bits between kinds of CPU.
        process.broadcast(head.state_dict().values())
    feed = Feed(config.train, data, manifest, ownership, here.rank, here.device)
    personals = {name: _personal(head, config.train.seed, name).to(here.device) for name in feed.names}
    embeddings = first_embeddings(config.train.model.identity, feed.names, config.train.seed)
    pool = PersonalPool(personals, {name: start.to(here.device) for name, start in embeddings.items()})
    make_engine = make_engine or partial(
        ZeroEngine, zero_stage=config.zero_stage, grad_clip=config.train.optim.grad_clip
    )
    engine = make_engine(head, optimizer_groups(head))
    perceptual = perceptual_loss(config.train, here.device)
    training = Training(config.train, head, engine, pool, feed, perceptual)
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


def _launcher(world: int) -> str:
    """torchrun as it started these ranks."""
    a_node = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    nodes = f"--nnodes={world // a_node} " if world > a_node else ""
    return f"torchrun {nodes}--nproc-per-node={a_node}"


def _personal(head, seed: int, name: str):  # the same start for an identity, whoever owns it
    torch.manual_seed(sum(byte << (8 * (i % 7)) for i, byte in enumerate(name.encode())) ^ seed)
    return head.universal.new_personal()


if __name__ == "__main__":
    process.leave(guarded(main))
