"""One training or examination of a paper experiment: run once, in a process of its own, and remembered, so that an interrupted table goes on."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fiag_dist.acting.actor import load_actor, load_info
from fiag_dist.acting.synthesize import Identity
from fiag_dist.adaptation.job import Job
from fiag_dist.adaptation.trial import adapt_identity
from fiag_dist.bench.machine import machine
from fiag_dist.config import AdaptConfig, PackConfig, PretrainConfig
from fiag_dist.configfile import from_dict, from_yaml, to_dict, to_yaml
from fiag_dist.dist import checkpoint
from fiag_dist.errors import ConfigError, DataError
from fiag_dist.evaluate import embeddings_of
from fiag_dist.evaluation.examine import Evaluation, evaluate_identity
from fiag_dist.ingest.gather import find_clips
from fiag_dist.media.sound import SAMPLE_RATE
from fiag_dist.metrics.panel import Panel
from fiag_dist.monitoring.monitor import peak_mib
from fiag_dist.pack import pack
from fiag_dist.shards.manifest import FILE as MANIFEST
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.storage import open_storage
from fiag_dist.training.bake import bake_run
from fiag_dist.training.start import forget

ROOT = Path(__file__).resolve().parents[1]
TEST_S = 2.0
"""Footage that follows what is adapted to, for the test."""
RENDERED_S = 2.0

Numbers = dict[str, Any]
Settings = Mapping[str, Any]
"""Nested settings that differ from a configuration file's."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all cells of an experiment share."""

    clips: str
    """Folder of clips, or of packed shards."""
    out: Path
    steps: int
    """Of an adaptation, with images."""
    pretrain_steps: int
    pretrain_config: str
    adapt_config: str
    ranks: int
    metrics: tuple[str, ...]
    """What is measured of each identity, of fiag_dist.metrics.panel.ALL."""
    syncnet: Path | None = None
    """The weights for `sync` among them."""
    isolated: bool = True
    """Each cell in a process of its own, or its memory could not be told from that of others."""

    @property
    def is_packed(self) -> bool:
        return open_storage(self.clips).exists(MANIFEST)


class Lab:
    """Makes cells, or remembers them: by all of their settings and by the footage that they see."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.origins: set[str] = set()
        """What made the cells that were asked for: machine, date and code of each."""
        self._packed: set[Path] = set()

    def shards(self, seconds: float = 0.0, extractor: str = "whisper:3") -> str:
        """Shards with so many seconds to train on for each person, 0: all there are. Clips that changed are packed again.

        Raises ConfigError when what was packed before holds somebody who is not among the clips now.
        """
        plan = self.plan
        if plan.is_packed:
            return plan.clips
        out = plan.out / "shards" / f"{extractor.replace(':', '_').replace('/', '_')}_{seconds:g}s"
        if out not in self._packed:
            self._refuse_strangers(out)
            settings = PackConfig(extractor=extractor)
            if seconds:
                whole = seconds + TEST_S
                settings = replace(settings, max_seconds=whole, test_share=TEST_S / whole)
            pack([plan.clips], str(out), settings)
            self._packed.add(out)
        return str(out)

    def _refuse_strangers(self, shards: Path) -> None:
        there = read_manifest(str(shards), check=False).names if (shards / MANIFEST).is_file() else []
        if strangers := sorted(set(there) - set(find_clips([Path(self.plan.clips)]))):
            raise ConfigError(
                f"--out {self.plan.out}: was made of other clips, {', '.join(strangers[:3])} among them; give another --out, or delete {shards}"
            )

    def need_clips(self, what: str) -> None:
        """Raises ConfigError when shards were given where clips are needed."""
        if self.plan.is_packed:
            raise ConfigError(
                f"--clips {self.plan.clips}: holds shards, but {what} are packed anew from clips; give the folder of clips"
            )

    def pretrained(self, data: str, people: Sequence[str], seed: int, settings: Settings | None = None) -> Numbers:
        """A pretraining: `run`, its folder; how large its field became, how long it took, and its peak memory."""
        plan = self.plan
        base = from_yaml(PretrainConfig, ROOT / plan.pretrain_config)
        lanes = min(base.train.frames_per_step, len(people))
        own = {"steps": plan.pretrain_steps, "seed": seed, "frames_per_step": lanes}
        tree = merged(to_dict(base), {"data": _absolute(data), "identities": sorted(people), "train": own})
        tree = merged(tree, settings or {})
        asked = {**tree, "footage": _footage(data, people)}
        return self._cell("pretrain", asked, lambda key: _pretrain(plan, key, tree))

    def adapted(self, data: str, name: str, start: str, seed: int, settings: Settings | None = None) -> Numbers:
        """An adaptation from a run, or from scratch when `start` is empty: all metrics of its test frames, `folder`, `minutes` and `peak_mib`."""
        plan = self.plan
        tree = merged(
            to_dict(from_yaml(AdaptConfig, ROOT / plan.adapt_config)), {"train": {"steps": plan.steps, "seed": seed}}
        )
        config = from_dict(AdaptConfig, merged(tree, settings or {}))
        if start:
            storage, folder = checkpoint.resolve(start)
            start = f"{storage.url}/{folder}"
        job = Job(name, _absolute(data), start, "", config, footage=_footage(data, [name])[name])
        asked = {"job": job.key, "name": name, "metrics": list(plan.metrics)}

        def work(key: str) -> Numbers:
            folder = plan.out / "identities" / key
            return self._apart(_adapt, replace(job, folder=str(folder)), plan.metrics, plan.syncnet) | {
                "folder": str(folder)
            }

        return self._cell("adapt", asked, work)

    def rendered(self, folder: str) -> Numbers:
        """How fast a finished identity speaks, frames a second, and its peak memory."""
        return self._cell("render", {"folder": folder}, lambda _: self._apart(_render, folder))

    def baked(self, run: str, forgotten: bool = False) -> Numbers:
        """All identities of a pretraining, straight from its field: metrics of each by name, and `folder`. forgotten: after IE-Net was taken away."""
        asked = {"run": run, "metrics": list(self.plan.metrics)} | ({"forgotten": True} if forgotten else {})
        return self._cell(
            "baked", asked, lambda _: self._apart(_bake, run, self.plan.metrics, self.plan.syncnet, forgotten)
        )

    def _cell(self, kind: str, asked: Mapping[str, Any], work: Callable[[str], Numbers]) -> Numbers:
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
        path = self.plan.out / "cells" / f"{kind}-{key}.json"
        if path.is_file():
            cell = json.loads(path.read_text())
            self.origins.add(cell.get("made", "code that wrote no name"))
            return cell["numbers"]
        began = time.monotonic()
        numbers = work(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        made = _origin()
        part.write_text(json.dumps({"asked": asked, "made": made, "numbers": numbers}, indent=1))
        part.replace(path)
        self.origins.add(made)
        print(f"{kind} {key}: {time.monotonic() - began:.0f} s", flush=True)
        return numbers

    def _apart(self, function: Callable[..., Numbers], *arguments: Any) -> Numbers:
        if not self.plan.isolated:
            return function(*arguments)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()


def _origin() -> str:
    about = machine()
    where = about["gpu"] or f"{about['cpu']}, {about['cores']} cores"
    return f"{where}, {about['date'][:10]}, commit {about['commit']}"


def merged(tree: Mapping[str, Any], over: Settings) -> dict[str, Any]:
    """Nested settings, those of `over` first."""
    deeper = {k: merged(tree[k], v) if isinstance(v, Mapping) and k in tree else v for k, v in over.items()}
    return {**tree, **deeper}


def _footage(data: str, people: Sequence[str]) -> dict[str, str]:
    """What the shards hold of each, as one SHA-256."""
    manifest = read_manifest(data, check=False)
    return {name: manifest.entry(name).sha256 for name in sorted(people)}


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).resolve())


def _pretrain(plan: Plan, key: str, tree: Settings) -> Numbers:
    """Runs the command, which goes on from its newest checkpoint if it was interrupted. Raises DataError with its last line when it fails."""
    runs = plan.out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    config = from_dict(PretrainConfig, {**tree, "runs": str(runs.resolve()), "name": key})
    path, log = runs / f"{key}.yaml", runs / f"{key}.log"
    path.write_text(to_yaml(config, f"python -m fiag_dist.pretrain {path}"))
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={plan.ranks}"] if plan.ranks > 1 else []
    )
    words = [sys.executable, *launcher, "-m", "fiag_dist.pretrain", str(path.resolve())]
    began = time.monotonic()
    with log.open("a") as stream:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, env=env, check=False)
    if done.returncode:
        raise DataError(
            f"pretraining {path} ended with {done.returncode}: {log.read_text().splitlines()[-1][:300]}; see {log}"
        )
    records = [json.loads(line) for line in (runs / key / "metrics.jsonl").read_text().splitlines()]
    last = {name: value for record in records for name, value in record.items()}
    return {
        "run": str((runs / key).resolve()),
        "minutes": (time.monotonic() - began) / 60,
        "peak_mib": last["memory/peak_mib"],
        "gaussians_face": last["field/num_gaussians_face"],
        "gaussians_mouth": last["field/num_gaussians_mouth"],
        "bytes_of_a_gaussian": 4 * (11 + 3 * (config.train.model.field.sh_degree + 1) ** 2),
    }


def _adapt(job: Job, metrics: Sequence[str], syncnet: Path | None) -> Numbers:
    adapt_identity(job, lambda progress: None)
    noted = json.loads((Path(job.folder) / "metrics.json").read_text())
    return _examined([Path(job.folder)], metrics, syncnet)[0] | {
        "minutes": noted["seconds"] / 60,
        "peak_mib": noted["peak_mib"],
    }


def _examined(folders: Sequence[Path], metrics: Sequence[str], syncnet: Path | None) -> list[Numbers]:
    """Of each identity, the metrics that this installation can measure, those of the nearest warped training frame as `nearest.KEY`, and what was left out.

    Of several also `cosine_to_own_clip`, the largest `cosine_to_another` of these people's clips, and whether the first is the larger.
    """
    with Panel(metrics, syncnet=syncnet) as panel:
        evaluation = Evaluation(panel)
        people = embeddings_of(folders, evaluation)
        return [
            _plain(evaluate_identity(folder, evaluation, people)) | {"left_out": panel.left_out} for folder in folders
        ]


def _plain(found: Numbers) -> Numbers:
    """What a table needs of an evaluation's metrics."""
    numbers = {key: value for key, value in found.items() if isinstance(value, int | float | str)}
    if near := dict(found.get("identity_cosine_to", {})):
        own, other = near.pop(found["name"]), max(near.values())
        numbers |= {"cosine_to_own_clip": own, "cosine_to_another": other, "nearest_to_own_clip": float(own > other)}
    return numbers | {f"nearest.{key}": value for key, value in found["baselines"]["nearest_warped"].items()}


def _render(folder: str) -> Numbers:
    identity = Identity.load(folder)
    sound: NDArray[np.float32] = np.zeros(round(RENDERED_S * SAMPLE_RATE), np.float32)
    for _ in identity.frames(sound[: SAMPLE_RATE // 5]):  # kernels are loaded
        pass
    began = time.perf_counter()
    frames = sum(1 for _ in identity.frames(sound))
    return {"frames_per_s": frames / (time.perf_counter() - began), "peak_mib": peak_mib()}


def _bake(run: str, metrics: Sequence[str], syncnet: Path | None, forgotten: bool) -> Numbers:
    out = bake_run(run, "forgotten", forget) if forgotten else bake_run(run)
    folders = sorted(path for path in out.iterdir() if path.is_dir())
    each = zip(folders, _examined(folders, metrics, syncnet), strict=True)
    return {folder.name: numbers | {"folder": str(folder)} for folder, numbers in each}


def people_of(data: str) -> list[str]:
    """Names in shards."""
    return read_manifest(data).names


def gaussians_of(folder: str) -> int:
    """How many Gaussians an identity is made of."""
    person = load_actor(Path(folder), load_info(Path(folder))).person
    return len(person.face) + len(person.mouth)
