"""fiag-dist runs ls: the runs in a folder, and what is known of each: whether it runs, how far it came, its last loss."""

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import tyro

from fiag_dist.dist import checkpoint
from fiag_dist.ending import guarded
from fiag_dist.errors import DataError
from fiag_dist.monitoring import status
from fiag_dist.monitoring.mirror import METRICS
from fiag_dist.monitoring.status import Status
from fiag_dist.storage import LocalStorage, Storage, open_storage

SILENT_S = 300.0
"""A run on another machine may be silent for so long, or for thrice its usual time between two words, and still count as running."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of a run."""

    name: str
    state: str
    """running, finished, stopped, failed (said so itself), crashed (is gone without a word), silent (nobody can say), unknown."""
    because: str
    """How that is known."""
    step: int
    steps: int | None
    saved: int | None
    """Step of the newest committed checkpoint, from which it would go on."""
    loss: float | None
    when: datetime | None
    """The last sign of life."""


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """Lists the runs in a folder, newest first: state, step, newest checkpoint, last loss, last sign of life, and how the state is known.

    A run on S3 brings its loss and its word up to date with each checkpoint, so both may be that old. Example: fiag-dist runs ls runs
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[DIR]")] = "runs"
    """A folder of runs, or one run; a local path or s3://bucket/prefix."""


def find(url: str, now: datetime | None = None) -> list[Run]:
    """The runs in a folder, or the one that it is; the last sign of life first. Raises DataError when there is no run."""
    storage, now = open_storage(url), now or datetime.now(UTC)
    names = [child.rstrip("/") for child in storage.children() if child.endswith("/")]
    found = [look(storage, name, now) for name in names if _is_run(storage, name)]
    if _is_run(storage, ""):
        found.append(look(storage, "", now))
    if not found:
        raise DataError(
            f"{url}: no runs in it; give the folder that --runs named (runs, unless it was set), or one run of it"
        )
    return sorted(found, key=lambda run: run.when or datetime.min.replace(tzinfo=UTC), reverse=True)


def look(storage: Storage, folder: str, now: datetime) -> Run:
    """One run, from its status, its record and its checkpoints."""
    last, (step, loss) = status.read(storage, folder), _recorded(storage, folder)
    saved = _saved(storage, folder)
    when = max((t for t in (last and last.said_at, _written(storage, folder)) if t), default=None)
    state, because = _judged(last, when, now)
    return Run(
        name=folder or storage.url.rstrip("/").rpartition("/")[2],
        state=state,
        because=because,
        step=max(step, saved or 0, last.step if last else 0),
        steps=last.steps if last else None,
        saved=saved,
        loss=loss,
        when=when,
    )


def _judged(last: Status | None, when: datetime | None, now: datetime) -> tuple[str, str]:
    """State, and how it is known."""
    if last is None or when is None:
        return "unknown", "it left no status.json"
    if last.state == "failed":
        return "failed", last.error
    if last.state != "running":
        return last.state, "by its own word"
    if last.is_here is not None:
        process = f"process {last.pid} on this machine"
        return ("running", f"{process} lives") if last.is_here else ("crashed", f"{process} is gone and said nothing")
    silence_s = (now - when).total_seconds()
    heard = f"last heard of {_ago(silence_s)} ago, from {last.host}"
    return ("running" if silence_s <= max(SILENT_S, 3 * last.every_s) else "silent"), heard


def _recorded(storage: Storage, folder: str) -> tuple[int, float | None]:
    """The last step on record, and the last loss."""
    step, loss = 0, None
    path = checkpoint.join(folder, METRICS)
    for line in storage.read(path).decode().splitlines() if storage.exists(path) else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut off in writing
        step, loss = entry["step"], entry.get("loss/total", loss)
    return step, loss


def _saved(storage: Storage, folder: str) -> int | None:
    """Step of the newest committed checkpoint, by its commit alone."""
    newest_first = checkpoint.folders(storage, checkpoint.join(folder, checkpoint.FOLDER))
    committed = (step for step in newest_first if storage.exists(f"{step}/{checkpoint.COMMIT}"))
    newest = next(committed, None)
    return int(newest.rpartition("-")[2]) if newest else None


def _written(storage: Storage, folder: str) -> datetime | None:
    """When the record of a run on local disk last grew."""
    if not isinstance(storage, LocalStorage):
        return None
    path = storage.folder / folder / METRICS
    return datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.is_file() else None


def _is_run(storage: Storage, folder: str) -> bool:
    return any(
        storage.exists(checkpoint.join(folder, name)) for name in (status.FILE, "config.yaml", checkpoint.FOLDER)
    )


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def table(runs: list[Run], now: datetime) -> str:
    """The runs as aligned columns, one a line."""
    rows = [("run", "state", "step", "checkpoint", "loss", "last sign", "how that is known")]
    for run in runs:
        step = f"{run.step}" + (f"/{run.steps} {100 * run.step // max(run.steps, 1)}%" if run.steps else "")
        saved = "-" if run.saved is None else str(run.saved)
        loss = "-" if run.loss is None else f"{run.loss:.4g}"
        sign = "-" if run.when is None else f"{_ago((now - run.when).total_seconds())} ago"
        rows.append((run.name, run.state, step, saved, loss, sign, run.because))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(argv: list[str]) -> int:
    """The command. Returns 0."""
    command = tyro.extras.subcommand_cli_from_dict({"ls": ListCommand}, args=argv, prog="fiag-dist runs")
    now = datetime.now(UTC)
    print(table(find(command.folder, now), now))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
