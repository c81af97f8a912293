"""fiag-dist evaluate: how near identities come to the frames that they were not trained on, and whether their mouths follow a voice."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fiag_dist.acting.actor import INFO, load_info, refuse_remote
from fiag_dist.dist import checkpoint
from fiag_dist.ending import guarded
from fiag_dist.errors import ConfigError, DataError, FiagError
from fiag_dist.evaluation import report
from fiag_dist.evaluation.examine import METRICS, PROTOCOL, STRIP, Evaluation, evaluate_identity, stored_metrics
from fiag_dist.ingest.identity import MODEL
from fiag_dist.media.sound import Sound
from fiag_dist.metrics.panel import Panel, asked
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.shards.reader import read_meta
from fiag_dist.storage import open_storage
from fiag_dist.training.bake import bake_run

REPORT, SCRATCH = "evaluation.md", "scratch"
METHODS = (
    "Faces are found in render and truth alike by the landmark model that also prepared the clips, and whose landmarks supervised training: PSNR, SSIM and "
    "LPIPS do not depend on it. Left empty where the truth hardly moves. AUE is taken from blendshapes. docs/metrics.md defines every number."
)


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Scores identities on the frames of their clips that they were not trained on, beside what any head must beat: the nearest training frame."""

    folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IDENTITY_OR_DIR...")] = ()
    """Identity folders, or folders of them; each of the latter gets an evaluation.md. A pretraining's run folder stands for its own identities."""
    fast: bool = False
    """Only PSNR and SSIM: a few seconds an identity instead of half a minute."""
    metrics: str = ""
    """Only these, separated by commas, of psnr, ssim, lpips, lmd, mouth, eyes, aue, identity, speech, sync (with --syncnet); none:
    all that this installation can measure."""
    syncnet: Path | None = None
    """SyncNet's weights, the file syncnet_v2.model, which you bring: adds its Sync-C and Sync-E, of test frames and of another person's voice."""
    audio: Path | None = None
    """The voice for the speech metrics: any file with a sound track. Without it, that of the longest other clip in the same shards."""
    encoded: bool = False
    """Score test frames through an H.264 video as well, render and truth alike."""
    data: str = ""
    """Where the shards are, when they are no longer where the identities were adapted from."""

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics asked for. Raises ConfigError when `fast` and `metrics` are both given."""
        return asked(self.fast, self.metrics, self.syncnet)


def main(argv: list[str]) -> int:
    """The command. Returns 0, or 1 when some of several identities can't be scored. Raises ConfigError, WeightsError or DataError."""
    command = tyro.cli(EvaluateCommand, args=argv, prog="fiag-dist evaluate")
    if not command.folders:
        raise ConfigError(
            "no folder given; name identity folders, or a folder of them as `fiag-dist adapt --out` wrote it"
        )
    if command.audio:
        refuse_remote(command.audio, is_file=True)
        Sound(command.audio)  # what can't be heard is said now, and not after all else
    folders = dict.fromkeys(
        bake_run(str(f), data=command.data) if (f / checkpoint.FOLDER).is_dir() else f for f in command.folders
    )
    groups = {folder: identities_in(folder) for folder in folders}
    todo = list(dict.fromkeys(identity for group in groups.values() for identity in group))
    console = Console(highlight=False, markup=False)
    strict = bool(command.metrics)
    rows: dict[Path, report.Row] = {}
    failed: dict[Path, FiagError] = {}
    notes: list[str] = []
    with Panel(command.names, strict, command.syncnet) as panel, _progress(console) as bar:
        scratches = {identity: identity / SCRATCH for identity in todo if (identity / SCRATCH / INFO).is_file()}
        task = bar.add_task("", total=len(todo) + len(scratches))
        evaluation = Evaluation(panel, audio=command.audio, encoded=command.encoded, data=command.data, strict=strict)
        people = {folder: embeddings_of(group, evaluation) for folder, group in groups.items()}

        def scored(identity: Path, home: Path, name: str) -> dict[str, Any]:
            before = round(bar.tasks[task].completed)

            def moved(what: str, share: float) -> None:
                bar.update(task, completed=before + share, description=f"{name}: {what}")

            metrics = evaluate_identity(identity, evaluation, people[home], moved)
            bar.update(task, completed=before + 1)
            return metrics

        for identity in todo:
            home = next(folder for folder, group in groups.items() if identity in group)
            name = identity.resolve().name
            after = round(bar.tasks[task].completed) + 1 + (identity in scratches)
            try:
                metrics = scored(identity, home, name)
                scratch = scored(scratches[identity], home, f"{name} from scratch") if identity in scratches else None
            except FiagError as error:
                failed[identity] = error
                bar.update(task, completed=after)
                continue
            rows[identity] = report.row_of(metrics, scratch)
            notes += [f"{name}: {note}" for note in metrics["notes"]]
            notes += [f"{name} from scratch: {note}" for note in (scratch or {}).get("notes", [])]
    if not rows:
        raise next(iter(failed.values()))
    notes += panel.left_out
    for table in report.tables([(identity.resolve().name, row) for identity, row in rows.items()]):
        console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True)
    console.print(f"{METRICS} and {STRIP} (truth above render) are in each identity's folder")
    for folder, group in groups.items():
        scored_ones = [identity for identity in group if identity in rows]
        if group != [folder] and scored_ones:
            _write_report(folder, scored_ones, scratches, notes)
            console.print(f"table: {folder / REPORT}", soft_wrap=True)
    for identity, error in failed.items():
        print(f"fiag-dist: {identity.resolve().name} left out: {error}", file=sys.stderr)
    return 1 if failed else 0


def _write_report(
    folder: Path, identities: Sequence[Path], scratches: Mapping[Path, Path], notes: Sequence[str]
) -> None:
    """evaluation.md of all that metrics.json holds, which may be more than this call has measured."""
    rows = []
    for identity in identities:
        of_scratch = stored_metrics(scratches[identity]) if identity in scratches else None
        rows.append((identity.name, report.row_of(stored_metrics(identity), of_scratch)))
    sees_faces = any("faces_found_true_frames" in row for _, row in rows)
    text = report.markdown(rows, [PROTOCOL, *([METHODS] if sees_faces else []), *notes])
    open_storage(folder).write(REPORT, text.encode())


def identities_in(folder: Path) -> list[Path]:
    """The folder itself when it is an identity, else those in it, by name. Raises DataError when there are none."""
    refuse_remote(folder)
    if (folder / INFO).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{INFO}"))
    if not found:
        runs = sorted(path.parent for path in folder.glob(f"*/{checkpoint.FOLDER}"))
        if runs:
            raise DataError(f"{folder}: a folder of runs; name one: {', '.join(map(str, runs[:6]))}")
        what = "holds no identity folders" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: {what}; make some: fiag-dist adapt CLIPS --from RUN --out {folder}")
    return found


def embeddings_of(group: Sequence[Path], evaluation: Evaluation) -> Mapping[str, np.ndarray]:
    """Embeddings of the people of several identities, from their clips' training frames; none when nobody asks, or another recogniser made them."""
    if "identity" not in evaluation.panel.names or len(group) < 2:
        return {}
    people = {}
    for folder in group:
        with suppress(FiagError):  # whoever is damaged is named when it is that one's turn
            info = load_info(folder)
            storage = open_storage(evaluation.data_of(folder, info))
            manifest = read_manifest(storage, check=False)
            if manifest.id_embedding.model == MODEL:
                people[info.name] = read_meta(storage, manifest.entry(info.name)).embedding
    return people


def _progress(console: Console) -> Progress:
    columns = (TextColumn("evaluating"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=console, transient=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
