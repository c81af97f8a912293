"""One identity's adaptation from start to finished folder: what a Ray Tune trial runs, and what can run without Ray."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional as F

from fiag_dist.bake import write_identity_folder
from fiag_dist.config import AdaptConfig, ModelConfig
from fiag_dist.configfile import from_dict, to_dict
from fiag_dist.dist import checkpoint
from fiag_dist.dist.engine import LocalEngine
from fiag_dist.dist.ownership import assign
from fiag_dist.dist.pool import PersonalPool
from fiag_dist.dist.process import Process
from fiag_dist.evaluate import evaluate_identity
from fiag_dist.feed import Feed
from fiag_dist.loop import run
from fiag_dist.monitor import Monitor
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.stages import total_steps
from fiag_dist.start import fresh_head, load_head
from fiag_dist.storage import open_storage
from fiag_dist.synthesize import write_preview
from fiag_dist.training import Training, optimizer_groups, perceptual_loss

PREVIEW_S = 4.0
DONE = "done.json"
"""Written last into an identity folder: a hash of the job it is the answer to."""


@dataclass(frozen=True)
class Job:
    """One identity to adapt. Paths are absolute."""

    name: str
    data: str
    """Folder or prefix of its shards."""
    start: str
    """The checkpoint, a step folder; empty: from scratch."""
    folder: str
    config: AdaptConfig
    scratch: bool = False
    """Also train it from scratch, for comparison."""

    @property
    def key(self) -> str:
        """Changes when the answer would."""
        plain = [self.name, self.data, self.start, to_dict(self.config), self.scratch]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def is_done(job: Job) -> bool:
    """Whether the identity folder holds the answer to exactly this job."""
    path = Path(job.folder) / DONE
    return path.is_file() and json.loads(path.read_text()).get("job") == job.key


def adapt_identity(job: Job, report: Callable[[int, float], None]) -> None:
    """Trains (going on from the last checkpoint of an interrupted job), bakes, evaluates and writes the identity folder.

    report: called with (step, head PSNR in dB on test frames) as training goes.
    """
    began = time.time()
    torch.set_num_threads(max(1, job.config.cpus_per_trial))
    folder = Path(job.folder)
    training = _build(job)
    here = Process()
    work = open_storage(str(folder / "work"))
    newest = checkpoint.newest(work, checkpoint.FOLDER)
    stored = checkpoint.load(work, newest) if newest else None
    if stored and stored.info["job"] == job.key:
        training.restore(stored.step, stored.shared, stored.optim, 0)
        training.pool.load(job.name, stored.identities[job.name])
        training.feed.restore({job.name: int(stored.identities[job.name]["count"])})
    else:
        work.delete(checkpoint.FOLDER)  # of a job with other settings

    def save() -> None:
        shared, optim = training.shared()
        personal = training.pool.tensors(job.name) | {"count": torch.tensor(training.feed.counts[job.name])}
        checkpoint.save(
            work, checkpoint.FOLDER, training.step, shared, optim, {job.name: personal}, {"job": job.key}, here, keep=1
        )
        report(training.step, _quick_psnr(training, job.name))

    with closing(Monitor(folder, here, training.step, total_steps(training.config))) as monitor:
        run(training, monitor, save)
    data = open_storage(job.data)
    personal = training.pool[job.name]
    write_identity_folder(
        folder, training.head, personal, data, read_manifest(data, check=False), job.name, job.start, training.step
    )
    metrics = evaluate_identity(folder) | {"seconds": round(time.time() - began, 1), "steps": training.step}
    open_storage(folder).write("metrics.json", json.dumps(metrics, indent=1).encode())
    write_preview(folder, PREVIEW_S)
    training.feed.close()
    if job.scratch and job.start:
        same_model = replace(job.config, train=replace(job.config.train, model=training.config.model))
        adapt_identity(
            replace(job, start="", scratch=False, folder=str(folder / "scratch"), config=same_model),
            lambda step, psnr: None,
        )
    work.delete(checkpoint.FOLDER)
    open_storage(folder).write(DONE, json.dumps({"job": job.key}).encode())


def _build(job: Job) -> Training:
    data = open_storage(job.data)
    manifest = read_manifest(data, check=False)
    entry = manifest.entry(job.name)
    device = torch.device("cuda" if torch.cuda.is_available() and job.config.gpus_per_trial else "cpu")
    feed = Feed(
        data, manifest, assign([job.name], {job.name: entry.split.train}, 1, 1), 0, job.config.train.seed, device
    )
    config = job.config.train
    if job.start:
        storage, name = checkpoint.resolve(job.start)
        stored = checkpoint.load(storage, name)
        config = replace(config, model=from_dict(ModelConfig, stored.info["config"]["train"]["model"]))
        head = load_head(config, stored.info["formats"], stored.shared, averaged=True).to(device)
        pool = PersonalPool({job.name: head.universal.new_personal().to(device)})
        nearest = _nearest(stored, feed.embedding(job.name).cpu()) if job.config.nearest_personal else None
        if nearest:
            pool.load(job.name, stored.identities[nearest], moments=False)
    else:
        head = fresh_head(config, data, manifest, [job.name], config.seed, device)
        pool = PersonalPool({job.name: head.universal.new_personal().to(device)})
    engine = LocalEngine(head, optimizer_groups(head), config.optim.grad_clip)
    return Training(config, head, engine, pool, feed, lanes=1, perceptual=perceptual_loss(config, device))


def _nearest(stored: checkpoint.Checkpoint, embedding: torch.Tensor) -> str | None:
    """The pretrained identity whose embedding is nearest."""
    similar = {
        name: float(F.cosine_similarity(stored.identities[name]["embedding"], embedding, dim=0))
        for name in stored.identities
    }
    return max(similar, key=lambda name: similar[name]) if similar else None


def _quick_psnr(training: Training, name: str) -> float:
    return training.examine(frames=4)[0][f"eval/psnr_db/{name}"]
