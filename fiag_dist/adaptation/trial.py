"""One identity's adaptation from start to finished folder: what a Ray Tune trial runs, and what can run without Ray."""

import json
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

import torch
from torch.nn import functional as F

from fiag_dist.acting.actor import INFO, TENSORS
from fiag_dist.acting.backdrop import POSES, VIDEO
from fiag_dist.acting.synthesize import PREVIEW, write_preview
from fiag_dist.adaptation.hparams import write_hparams
from fiag_dist.adaptation.job import DONE, Job, Progress, Report, Search, is_adapted, write_done
from fiag_dist.adaptation.plateau import Plateau
from fiag_dist.adaptation.search import chosen_sample, samples
from fiag_dist.config import ModelConfig, StageConfig
from fiag_dist.configfile import from_dict
from fiag_dist.dist import checkpoint, saving
from fiag_dist.dist.engine import LocalEngine
from fiag_dist.dist.ownership import assign
from fiag_dist.dist.pool import PersonalPool, first_embeddings
from fiag_dist.dist.process import Process
from fiag_dist.evaluation.examine import METRICS, evaluate_identity
from fiag_dist.kernels.launch import use_threads
from fiag_dist.model.head import Head
from fiag_dist.monitoring.mirror import Mirror
from fiag_dist.monitoring.monitor import Monitor, peak_mib
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.stages import Stage, due, first_of_fusion, learnt_degree, total_steps
from fiag_dist.storage import Storage, open_storage
from fiag_dist.training import hearing
from fiag_dist.training.bake import write_identity_folder
from fiag_dist.training.feed import Feed
from fiag_dist.training.loop import run
from fiag_dist.training.planting import settle
from fiag_dist.training.start import bake_in, fresh_head, load_head, roomier, take_field
from fiag_dist.training.step import Training, optimizer_groups, perceptual_loss

PREVIEW_S = 4.0
WORK = "work"
"""Folder of an identity that holds the checkpoints of its training, for as long as it lasts."""
SCRATCH = "scratch"


@dataclass
class Trained:
    """Where a job's training stands, beside what the training itself knows."""

    training: Training
    plateau: Plateau
    skipped: int = 0
    """Steps of the motion stage that a plateau saved."""
    seconds_before: float = 0.0
    """What the processes took that were interrupted, up to the checkpoint that this one goes on from."""

    @property
    def steps(self) -> int:
        """Steps that were trained."""
        return self.training.step - self.skipped

    @property
    def score_db(self) -> float | None:
        """The last look at held-out frames."""
        return self.plateau.scores_db[-1] if self.plateau.scores_db else None


def adapt_identity(job: Job, report: Report, threads: int = 1) -> None:
    """Trains (going on from the last checkpoint of an interrupted job), bakes, evaluates and writes the identity folder.

    A searched job bakes the best of its samples, which are trained already, and what lacks no more than a note of consent gets that alone.
    Raises DataError or CheckpointError for what trying again can't mend.
    """
    if is_adapted(job):
        _note_consent(job, report, threads)
        return
    open_storage(job.folder).delete(DONE)  # from here on the folder is no longer the answer to the job before
    if not job.scratch:
        open_storage(job.folder).delete(SCRATCH)  # what it was compared with
    began = time.time()
    sample = chosen_sample(job) if job.search.settings else job
    mirror = Mirror(job.folder, Process())
    trained = train(sample, report, threads)
    training, steps = trained.training, total_steps(trained.training.config)

    def tell(state: str) -> None:
        report(Progress(state, training.step, steps, trained.score_db))

    tell("baking")
    data, folder = open_storage(job.data), mirror.folder
    manifest, personal = read_manifest(data, check=False), training.pool[job.name]
    open_storage(job.folder).delete(INFO)  # while its files are replaced, a folder is no identity, on S3 neither
    embedding, steps_trained = training.embedding(job.name), trained.steps
    write_identity_folder(
        folder, training.head, personal, data, manifest, job.name, job.start, steps_trained, embedding
    )
    tell("scoring")
    metrics = evaluate_identity(folder) | {
        "seconds": round(trained.seconds_before + time.time() - began, 1),
        "steps": trained.steps,
        "skipped_steps": trained.skipped,
        "validation_psnr_db": trained.score_db,
        "peak_mib": round(peak_mib()),
    }
    open_storage(folder).write(METRICS, json.dumps(metrics, indent=1).encode())
    write_hparams(folder / "tb", sample.config, metrics)
    tell("filming")
    write_preview(folder, PREVIEW_S)
    training.feed.close()
    mirror.publish()
    if job.scratch and job.start:
        same_model = replace(job.config, train=replace(sample.config.train, model=training.config.model))
        scratch = replace(
            job, start="", folder=f"{job.folder}/{SCRATCH}", config=same_model, scratch=False, search=Search()
        )
        adapt_identity(scratch, lambda progress: report(replace(progress, state="from scratch")), threads)
    for spent in [job, *(samples(job) if job.search.settings else [])]:
        open_storage(spent.folder).delete(WORK)
    write_done(job)


def _note_consent(job: Job, report: Report, threads: int) -> None:
    """Puts the consent into a finished identity: into its description, and into its preview, filmed again in a copy on this machine."""
    use_threads(threads)
    steps = total_steps(job.config.train)
    report(Progress("filming", steps, steps))
    folders = [job.folder, f"{job.folder}/{SCRATCH}"] if job.scratch and job.start else [job.folder]
    for folder in folders:
        home = open_storage(folder)
        info = json.loads(home.read(INFO)) | {"consent": job.consent}
        with TemporaryDirectory() as copy:
            here = open_storage(copy)
            for name in (TENSORS, VIDEO, POSES):
                here.write(name, home.read(name))
            here.write(INFO, (json.dumps(info, indent=1) + "\n").encode())
            write_preview(copy, PREVIEW_S)
            for name in (PREVIEW, INFO):
                home.write(name, here.read(name))
    write_done(job)


def train(job: Job, report: Report, threads: int = 1) -> Trained:
    """Trains a job to its end, going on from its last checkpoint. Reports at every look at held-out frames and every checkpoint."""
    began = time.time()
    use_threads(threads)
    here, mirror = Process(), Mirror(job.folder, Process())
    training = build(job)
    trained = Trained(training, Plateau(job.config.plateau))
    work = open_storage(f"{job.folder}/{WORK}")
    _go_on(trained, job, work)
    steps = total_steps(training.config)

    def tell() -> None:
        report(Progress("training", training.step, steps, trained.score_db))

    def look() -> None:
        """Takes a look when one is due; what has stopped rising goes on to fusion."""
        judged = len(training.feed.held_out[job.name]) and (training.stage is Stage.MOTION or training.done)
        if not judged or not (training.done or due(training.step, job.config.plateau.every)):
            return
        score = training.validate(job.name)
        monitor.add(training.step, {"eval/held_out_psnr_db": score}, every=1)
        if trained.plateau.look(score) and training.stage is Stage.MOTION:
            trained.skipped = first_of_fusion(training.config) - training.step
            training.step += trained.skipped
            monitor.say(f"{job.name}: no longer rises, {trained.skipped} steps of motion are left out")
        tell()

    def save() -> None:
        shared, optim = training.shared()
        personal = training.pool.tensors(job.name) | {"count": torch.tensor(training.feed.counts[job.name])}
        seconds = trained.seconds_before + time.time() - began
        looks, skipped = trained.plateau.scores_db, trained.skipped
        state = {"job": job.training_key, "looks": looks, "skipped": skipped, "seconds": seconds}
        saving.save(work, checkpoint.FOLDER, training.step, shared, optim, {job.name: personal}, state, here, keep=1)
        mirror.publish()
        tell()

    tell()
    unrendered = training.config.stages.landmark_steps
    with closing(Monitor(mirror.folder, here, training.step, steps, unrendered)) as monitor:
        run(training, monitor, save, between=look)
    mirror.publish()  # the last look
    return trained


def final_score_db(job: Job) -> float | None:
    """The last look at held-out frames of a training that came to its end and is not yet baked; none for any other, and where no frames were held out."""
    work = open_storage(f"{job.folder}/{WORK}")
    newest = checkpoint.newest(work, checkpoint.FOLDER)
    stored = checkpoint.load(work, newest) if newest else None
    if stored is None or stored.info["job"] != job.training_key or stored.step < total_steps(job.config.train):
        return None
    return stored.info["looks"][-1] if stored.info["looks"] else None


def _go_on(trained: Trained, job: Job, work: Storage) -> None:
    """Takes up the last checkpoint, if there is one of the same job."""
    training, newest = trained.training, checkpoint.newest(work, checkpoint.FOLDER)
    stored = checkpoint.load(work, newest) if newest else None
    if stored is None or stored.info.get("job") != job.training_key:
        work.delete(checkpoint.FOLDER)  # of a job with other settings
        return
    personal = stored.identities[job.name]
    training.restore(stored.step, stored.shared, stored.optim, 0)
    training.pool.load(job.name, personal)
    training.feed.restore({job.name: int(personal["count"])})
    trained.plateau.scores_db, trained.skipped = list(stored.info["looks"]), stored.info["skipped"]
    trained.seconds_before = stored.info.get("seconds", 0.0)


def build(job: Job) -> Training:
    """The training of a job at its first step."""
    data = open_storage(job.data)
    manifest = read_manifest(data, check=False)
    entry = manifest.entry(job.name)
    config = job.config.train
    device = torch.device("cuda" if torch.cuda.is_available() and job.config.gpus_per_trial != 0 else "cpu")
    owners = assign([job.name], {job.name: entry.split.train}, 1, 1)
    torch.manual_seed(config.seed)  # a new IM-Net is drawn
    feed = Feed(config, data, manifest, owners, 0, device, job.config.plateau.frames)
    if job.start:
        storage, name = checkpoint.resolve(job.start)
        stored = checkpoint.load(storage, name)
        before = stored.info["config"]["train"]
        model, stages = from_dict(ModelConfig, before["model"]), from_dict(StageConfig, before["stages"])
        config = replace(config, model=roomier(model, job.config.room))
        head = load_head(config, stored.info["formats"], stored.shared, averaged=True).to(device)
        head.sh_degree = learnt_degree(stored.step, replace(config, stages=stages))
        embeddings: dict[str, torch.Tensor] = {}
        known = feed.embedding(job.name).cpu()
        if config.model.identity.embedding == "table":  # nobody knows yet whom the new one is like
            known = torch.stack([*stored.embeddings.values()]).mean(0)
            embeddings = {job.name: known}
        if job.config.own_field:
            take_field(head, fresh_head(config, data, manifest, [job.name], config.seed, device))
        else:
            bake_in(head, known.to(device))
            if job.config.settle:
                settle(head, data, manifest, feed.metas[job.name], config.seed)
        kept = feed.held_out[job.name]
        hearing.attune(head.universal.listener, data, manifest, feed.metas[job.name], kept, config.seed)
        pool = _pool(job.name, head, embeddings)
        nearest = _nearest(stored, known) if job.config.nearest_personal else None
        if nearest:
            pool.load(job.name, stored.identities[nearest], moments=False)
    else:
        head = fresh_head(config, data, manifest, [job.name], config.seed, device)
        pool = _pool(job.name, head, first_embeddings(config.model.identity, [job.name], config.seed))
    engine = LocalEngine(head, optimizer_groups(head), config.optim.grad_clip)
    return Training(config, head, engine, pool, feed, perceptual_loss(config, device))


def _pool(name: str, head: Head, embeddings: Mapping[str, torch.Tensor]) -> PersonalPool:
    device = head.face_field.means.device
    return PersonalPool(
        {name: head.universal.new_personal().to(device)}, {n: start.to(device) for n, start in embeddings.items()}
    )


def _nearest(stored: checkpoint.Checkpoint, embedding: torch.Tensor) -> str | None:
    """The pretrained identity whose embedding is nearest."""
    similar = {name: float(F.cosine_similarity(e, embedding, dim=0)) for name, e in stored.embeddings.items()}
    return max(similar, key=lambda name: similar[name]) if similar else None
