"""fiag-dist adapt: a folder of clips in, a folder of identities out, one Ray Tune trial a clip."""

import csv
import io
import json
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from fiag_dist.actor import INFO
from fiag_dist.config import AdaptConfig, PackConfig
from fiag_dist.configfile import from_yaml
from fiag_dist.dist import checkpoint
from fiag_dist.errors import CheckpointError, DataError, guarded
from fiag_dist.pack import pack
from fiag_dist.shards.manifest import FILE as MANIFEST
from fiag_dist.shards.manifest import Manifest, read_manifest
from fiag_dist.storage import open_storage
from fiag_dist.trial import Job, adapt_identity, is_done

COLUMNS = (
    "name",
    "state",
    "steps",
    "seconds",
    "head_psnr_db",
    "full_psnr_db",
    "nearest_warped_head_psnr_db",
    "scratch_head_psnr_db",
    "folder",
)


@dataclass(frozen=True, kw_only=True)
class AdaptCommand:
    """Adapts every clip of a folder, or every identity of packed shards, to a pretrained checkpoint. Run again, it does only what is missing."""

    clips: tyro.conf.Positional[str]
    """Folder of clips, a clip, or the folder or s3:// prefix of packed shards."""
    checkpoint: Annotated[str, tyro.conf.arg(name="from")]
    """Run folder of a pretraining (its newest checkpoint), or one checkpoints/step-NNNNNNNN."""
    out: str
    """Folder of the identity folders."""
    names: tuple[str, ...] = ()
    """Only these identities; none: all."""
    scratch: bool = False
    """Train each identity from scratch as well, for as many steps, into its folder scratch/: what adaptation is compared with."""
    config: str = ""
    """YAML file of the settings below, e.g. configs/adapt_fast.yaml."""
    settings: Annotated[AdaptConfig, tyro.conf.arg(name="")] = field(default_factory=AdaptConfig)


def main(argv: list[str]) -> int:
    """Returns 0 when every identity is done."""
    command = _parse(argv)
    storage, folder = checkpoint.resolve(command.checkpoint)
    stored = checkpoint.load(storage, folder)
    data = _packed(command, stored.info["formats"])
    manifest = read_manifest(data)
    _check_formats(manifest, stored.info["formats"], command.checkpoint)
    jobs = [_job(command, data, name, f"{storage.url}/{folder}") for name in command.names or manifest.names]
    todo = [job for job in jobs if not is_done(job)]
    console = Console(highlight=False)
    console.print(
        f"{len(jobs)} identities, {len(jobs) - len(todo)} done before, {len(todo)} to adapt from {command.checkpoint}"
    )
    failed = _tune(todo, command) if todo else {}
    rows = [_row(job, failed) for job in jobs]
    _write_results(Path(command.out) / "results.csv", rows)
    console.print(_table(rows))
    console.print(
        f"identities: {command.out}   table: {command.out}/results.csv   curves: tensorboard --logdir {command.out}"
    )
    for name, why in failed.items():
        print(
            f"fiag-dist: {name} failed: {why}; run the same command again to go on from its last checkpoint",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _parse(argv: list[str]) -> AdaptCommand:
    """Defaults < the file behind --config < flags."""
    path = next((argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--config"), None)
    path = path or next((word.partition("=")[2] for word in argv if word.startswith("--config=")), None)
    settings = from_yaml(AdaptConfig, path) if path else AdaptConfig()
    missing: Any = tyro.MISSING
    default = AdaptCommand(clips=missing, checkpoint=missing, out=missing, settings=settings)
    return tyro.cli(AdaptCommand, args=argv, default=default, prog="fiag-dist adapt")


def _packed(command: AdaptCommand, formats: dict[str, Any]) -> str:
    """The shards to adapt from: given, or packed now beside the identities, in the checkpoint's formats."""
    if open_storage(command.clips).exists(MANIFEST):
        return command.clips
    path = Path(command.clips)
    if not path.exists():
        raise DataError(
            f"{command.clips}: no such folder, clip or shards; give clips (mp4, mov, mkv, webm) or a folder with {MANIFEST}"
        )
    shards = f"{command.out}/shards"
    pack([path], shards, PackConfig(size=formats["size"], fps=formats["fps"], extractor=formats["extractor"]))
    return shards


def _check_formats(manifest: Manifest, formats: dict[str, Any], where: str) -> None:
    """What the shards hold must be what the checkpoint was trained on."""
    found = {
        "size": manifest.size,
        "extractor": manifest.audio.extractor,
        "audio_dim": manifest.audio.dim,
        "id_model": manifest.id_embedding.model,
        "id_dim": manifest.id_embedding.dim,
    }
    for key, value in found.items():
        if value != formats[key]:
            raise CheckpointError(
                f"checkpoint {where}: trained with {key} {formats[key]!r}, the shards have {value!r}; pack the clips with its settings"
            )


def _job(command: AdaptCommand, data: str, name: str, start: str) -> Job:
    absolute = data if "://" in data else str(Path(data).resolve())
    where = start if "://" in start else str(Path(start).resolve())
    return Job(name, absolute, where, str((Path(command.out) / name).resolve()), command.settings, command.scratch)


def _tune(jobs: list[Job], command: AdaptCommand) -> dict[str, str]:
    """One trial a job on whatever Ray has; returns why those failed that did."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray
    from ray import tune

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    by_name, num_jobs = {job.name: job for job in jobs}, len(jobs)

    def trial(space: dict[str, str]) -> None:
        adapt_identity(by_name[space["identity"]], lambda step, psnr: tune.report({"step": step, "head_psnr_db": psnr}))

    class Lines(tune.Callback):
        """A line for each report: who, how far, how good. Ray pickles it with the tuner, so it holds nothing but a count."""

        finished = 0

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            line = f"  {trial.config['identity']}: step {result['step']}, head {result['head_psnr_db']:.2f} dB on test frames"
            print(line, flush=True)

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.finished += 1
            print(f"  {trial.config['identity']}: done ({self.finished} of {num_jobs})", flush=True)

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            print(f"  {trial.config['identity']}: failed", flush=True)

    settings = command.settings
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial}),
        param_space={"identity": tune.grid_search(sorted(by_name))},
        tune_config=tune.TuneConfig(
            trial_name_creator=lambda t: t.config["identity"], trial_dirname_creator=lambda t: t.config["identity"]
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str((Path(command.out) / ".ray").resolve()),
            failure_config=tune.FailureConfig(max_failures=1),
            callbacks=[Lines()],
            verbose=0,
        ),
    )
    results = tuner.fit()
    failed = {}
    for result in results:
        if result.error is not None and result.config:
            failed[result.config["identity"]] = str(result.error).strip().splitlines()[-1]
    return failed


def _row(job: Job, failed: dict[str, str]) -> dict[str, Any]:
    metrics = _json(Path(job.folder) / "metrics.json")
    scratch = _json(Path(job.folder) / "scratch" / "metrics.json")
    return {
        "name": job.name,
        "state": "failed" if job.name in failed else "done" if is_done(job) else "missing",
        "steps": _json(Path(job.folder) / INFO).get("steps", ""),
        "seconds": metrics.get("seconds", ""),
        "head_psnr_db": metrics.get("head_psnr_db", ""),
        "full_psnr_db": metrics.get("full_psnr_db", ""),
        "nearest_warped_head_psnr_db": metrics.get("baselines", {}).get("nearest_warped", {}).get("head_psnr_db", ""),
        "scratch_head_psnr_db": scratch.get("head_psnr_db", ""),
        "folder": job.folder,
    }


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write_results(path: Path, rows: list[dict[str, Any]]) -> None:
    stream = io.StringIO(newline="")
    writer: csv.DictWriter[str] = csv.DictWriter(stream, list(COLUMNS))
    writer.writeheader()
    writer.writerows(rows)
    open_storage(path.parent).write(path.name, stream.getvalue().encode())


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="adapted identities (test frames, head region)")
    for column in COLUMNS[:-1]:
        table.add_column(
            column.removesuffix("_db").replace("_", " "), justify="left" if column in ("name", "state") else "right"
        )
    for row in rows:
        table.add_row(*(f"{row[c]:.2f}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS[:-1]))
    return table


if __name__ == "__main__":
    sys.exit(guarded(main))
