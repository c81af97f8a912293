"""What came of all identities: results.csv, and the table at the end."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from fiag_dist.acting.actor import INFO
from fiag_dist.adaptation.job import DONE, Job, is_done, stored_json
from fiag_dist.adaptation.trial import SCRATCH, WORK
from fiag_dist.evaluation.examine import METRICS
from fiag_dist.storage import Storage
from fiag_dist.tables import tabulate

CSV = "results.csv"
COLUMNS = (
    "name",
    "state",
    "steps",
    "seconds",
    "head_psnr_db",
    "full_psnr_db",
    "nearest_warped_head_psnr_db",
    "gain_db",
    "scratch_head_psnr_db",
    "validation_psnr_db",
    "skipped_steps",
    "why",
    "folder",
)
SHOWN = {
    "name": "identity",
    "state": "state",
    "steps": "steps",
    "seconds": "seconds",
    "head_psnr_db": "head",
    "full_psnr_db": "full",
    "nearest_warped_head_psnr_db": "nearest + warp",
    "gain_db": "gain over it",
    "scratch_head_psnr_db": "from scratch",
}
"""The columns that fit a terminal of 80 characters, and what they are called there."""
ROWS_SHOWN = 30
SIGNS = (DONE, INFO, f"{WORK}/")
"""What tells a folder of an identity, finished or begun, from others."""
Value = str | float | int | None


@dataclass(frozen=True)
class Result:
    """What became of one identity."""

    values: Mapping[str, Value]
    """By COLUMNS."""

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts the worst to the front: what was refused or failed, what is missing, then by how much better it is than the nearest training frame."""
        gain = self.values["gain_db"]
        kinds = {"refused": 0, "failed": 0, "missing": 1}
        return kinds.get(str(self.values["state"]), 2), gain if isinstance(gain, float) else 0.0


def result_of(job: Job, failed: Mapping[str, str]) -> Result:
    """What became of a job. failed: reasons by name."""
    why = failed.get(job.name, "")
    return _result(job.name, job.folder, "failed" if why else "done" if is_done(job) else "missing", job.scratch, why)


def refused(name: str, why: str) -> Result:
    """A clip that could not be packed."""
    return Result({column: {"name": name, "state": "refused", "why": why}.get(column) for column in COLUMNS})


def results_in(storage: Storage, known: Sequence[Result]) -> list[Result]:
    """Everybody who has a folder here, by name: those that are known already, and the others as their own files have them."""
    results = {str(result.values["name"]): result for result in known}
    for name in (child.rstrip("/") for child in storage.children() if child.endswith("/")):
        if name not in results and not set(SIGNS).isdisjoint(storage.children(name)):
            folder = f"{storage.url}/{name}"
            state = "done" if stored_json(folder, DONE) else "missing"
            results[name] = _result(name, folder, state, True)
    return [results[name] for name in sorted(results)]


def _result(name: str, folder: str, state: str, scratch: bool, why: str = "") -> Result:
    """What an identity's folder says of itself. scratch: whether it may hold one that was trained from scratch."""
    metrics = stored_json(folder, METRICS)
    head, warped = (
        metrics.get("head_psnr_db"),
        metrics.get("baselines", {}).get("nearest_warped", {}).get("head_psnr_db"),
    )
    found: dict[str, Value] = {
        "name": name,
        "state": state,
        "nearest_warped_head_psnr_db": warped,
        "gain_db": head - warped if head is not None and warped is not None else None,
        "scratch_head_psnr_db": stored_json(f"{folder}/{SCRATCH}", METRICS).get("head_psnr_db") if scratch else None,
        "why": why,
        "folder": folder,
    }
    return Result({column: found.get(column, metrics.get(column)) for column in COLUMNS})


def write_csv(storage: Storage, results: Sequence[Result]) -> None:
    """results.csv, in the order given."""
    stream = io.StringIO(newline="")
    writer: csv.DictWriter[str] = csv.DictWriter(stream, list(COLUMNS))
    writer.writeheader()
    writer.writerows(result.values for result in results)
    storage.write(CSV, stream.getvalue().encode())


def table(results: Sequence[Result]) -> Table:
    """For the terminal: the worst first, and no more than can be read."""
    worst = sorted(results, key=lambda result: result.rank)[:ROWS_SHOWN]
    columns = [c for c in SHOWN if any(result.values[c] is not None for result in worst)]
    title = "Adapted identities: PSNR on test frames in dB, of the head where not full"
    if len(results) > len(worst):
        title += f"; the {len(worst)} worst of {len(results)}"
    rows = [[_cell(column, result.values[column]) for column in columns] for result in worst]
    return tabulate([SHOWN[column] for column in columns], rows, title=title, folded=("identity",))


def _cell(column: str, value: Value) -> str:
    if column == "seconds" and value is not None:
        return f"{float(value):.0f}"
    return f"{value:.2f}" if isinstance(value, float) else "" if value is None else str(value)
