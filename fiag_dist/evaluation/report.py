"""The tables of an evaluation: numbers of each identity, grouped, rounded, with means; for a terminal and for evaluation.md."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from fiag_dist.tables import tabulate

Row = Mapping[str, float | str | None]
"""The numbers of one identity by key; parts of a key are joined by dots, those of the one trained from scratch begin with `scratch.`."""

LMD, BLIND_LMD = "lmd_px_at_512", "baselines.mouth_blind_warped.lmd_px_at_512"
MEAN = "mean"
"""The last row's name, where there are several."""


@dataclass(frozen=True)
class Column:
    """One number of a table."""

    title: str
    key: str
    form: str = ".2f"
    screen: bool = True
    """Whether it is among those that fit a terminal."""


@dataclass(frozen=True)
class Group:
    """Columns that are read together."""

    title: str
    columns: tuple[Column, ...]


GROUPS = (
    Group(
        "Image: PSNR in dB, of the head where no region is named",
        (
            Column("head", "head_psnr_db"),
            Column("from scratch", "scratch.head_psnr_db"),
            Column("nearest + warp", "baselines.nearest_warped.head_psnr_db"),
            Column("gain over it", "gain_db", "+.2f"),
            Column("nearest", "baselines.nearest.head_psnr_db", screen=False),
            Column("train frames", "train.head_psnr_db", screen=False),
            Column("mouth", "mouth_psnr_db"),
            Column("mouth, nearest + warp", "baselines.nearest_warped.mouth_psnr_db", screen=False),
            Column("full", "full_psnr_db"),
            Column("head SSIM", "head_ssim", ".4f", screen=False),
            Column("full SSIM", "full_ssim", ".4f"),
            Column("head LPIPS", "head_lpips", ".4f"),
            Column("full LPIPS", "full_lpips", ".4f", screen=False),
            Column("head, mp4", "encoded.head_psnr_db", screen=False),
            Column("full, mp4", "encoded.full_psnr_db", screen=False),
            Column("full SSIM, mp4", "encoded.full_ssim", ".4f", screen=False),
            Column("full LPIPS, mp4", "encoded.full_lpips", ".4f", screen=False),
        ),
    ),
    Group(
        "Face: LMD in px at 512; mouth opening and eye closure against the truth's",
        (
            Column("LMD", LMD),
            Column("LMD from scratch", "scratch.lmd_px_at_512", screen=False),
            Column("mouth blind", BLIND_LMD),
            Column("ratio", "lmd_ratio"),
            Column("mouth corr.", "mouth_opening_correlation"),
            Column("mouth slope", "mouth_opening_slope"),
            Column("mouth corr. on train frames", "train.mouth_opening_correlation", screen=False),
            Column("mouth corr. from scratch", "scratch.mouth_opening_correlation", screen=False),
            Column("eyes corr.", "eye_closure_correlation"),
            Column("eyes slope", "eye_closure_slope"),
            Column("eyes corr. on train frames", "train.eye_closure_correlation", screen=False),
            Column("gaze corr.", "gaze_correlation", screen=False),
            Column("gaze slope", "gaze_slope", screen=False),
            Column("AUE upper", "aue_upper_intensity2", ".3f", screen=False),
            Column("AUE lower", "aue_lower_intensity2", ".3f", screen=False),
            Column("likeness", "identity_cosine", ".3f"),
        ),
    ),
    Group(
        "Speech: another voice; our own score, lag in ms, opening in distances of the eyes",
        (
            Column("voice", "speech_voice", screen=False),
            Column("score", "speech_score"),
            Column("rolled", "speech_score_rolled"),
            Column("rolls beaten", "speech_rolls_beaten_share", ".0%"),
            Column("true video", "speech_score_true_video"),
            Column("lag", "speech_lag_ms", "+.0f"),
            Column("score from scratch", "scratch.speech_score", screen=False),
            Column("opening", "speech_opening_eye_distances", ".3f"),
            Column("in silence", "speech_opening_in_silence_eye_distances", ".3f"),
            Column("closed", "speech_opening_closed_eye_distances", ".3f", screen=False),
        ),
    ),
    Group(
        "SyncNet, with the weights given: test frames and another voice; offset in ms",
        (
            Column("Sync-C", "sync_c"),
            Column("of the truth", "truth_sync_c"),
            Column("Sync-E", "sync_e"),
            Column("of the truth", "truth_sync_e"),
            Column("offset", "sync_offset_ms", "+.0f"),
            Column("Sync-C, mp4", "encoded.sync_c", screen=False),
            Column("Sync-E, mp4", "encoded.sync_e", screen=False),
            Column("Sync-C, voice", "speech_sync_c"),
            Column("Sync-E, voice", "speech_sync_e"),
            Column("offset, voice", "speech_sync_offset_ms", "+.0f"),
        ),
    ),
)


def row_of(metrics: Mapping[str, Any], scratch: Mapping[str, Any] | None = None) -> Row:
    """What the tables need of an identity's metrics, and of those of the same person trained from scratch."""
    return _compared(_flat(metrics) | {f"scratch.{key}": value for key, value in _flat(scratch or {}).items()})


def tables(rows: Sequence[tuple[str, Row]]) -> list[Table]:
    """For a terminal: a table for each group that has numbers."""
    out = []
    for group in GROUPS:
        titles, lines = _cells(rows, [column for column in group.columns if column.screen])
        if len(titles) == 1:
            continue
        cells = [[c.replace(" (", "\n(") for c in line] if line[0] == MEAN else line for line in lines]
        out.append(tabulate(titles, cells, title=group.title, folded=("identity",), bold=(MEAN,)))
    return out


def markdown(rows: Sequence[tuple[str, Row]], remarks: Sequence[str]) -> str:
    """evaluation.md: all groups, who looks like whom, and the remarks below."""
    parts = ["# Frames that were never trained on"]
    for group in GROUPS:
        titles, lines = _cells(rows, group.columns)
        if len(titles) > 1:
            parts += [f"## {group.title}", _grid(titles, lines)]
    parts += _likeness(rows)
    return "\n\n".join([*parts, *remarks]) + "\n"


def _likeness(rows: Sequence[tuple[str, Row]]) -> list[str]:
    """Each identity's render against each person's clip, when there are several."""
    names = [name for name, row in rows if f"identity_cosine_to.{name}" in row]
    # Folders that were evaluated apart have been compared with other people each.
    names = [name for name, row in rows if name in names and all(f"identity_cosine_to.{n}" in row for n in names)]
    if len(names) < 2:
        return []
    table = {
        name: [float(row[f"identity_cosine_to.{other}"] or 0) for other in names] for name, row in rows if name in names
    }
    wins = sum(int(np.argmax(table[name])) == i for i, name in enumerate(names))
    lines = [[name, *(f"**{v:.3f}**" if v == max(table[name]) else f"{v:.3f}" for v in table[name])] for name in names]
    title = f"## Likeness: cosine of a row's render and a column's clip; nearest to its own clip in {wins} of {len(names)} rows"
    return [title, _grid(["render", *names], lines)]


def _grid(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, marks, *lines))


def _cells(rows: Sequence[tuple[str, Row]], columns: Iterable[Column]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells; columns without a number are left out, and several identities have a mean, with how many it is of where not all have the number."""
    columns = [column for column in columns if any(row.get(column.key) is not None for _, row in rows)]
    cells = [[name, *(_cell(column.form, row.get(column.key)) for column in columns)] for name, row in rows]
    if len(rows) > 1:
        cells.append([MEAN, *(_mean([row for _, row in rows], column) for column in columns)])
    return ["identity", *(column.title for column in columns)], cells


def _mean(rows: Sequence[Row], column: Column) -> str:
    known = [row for row in rows if isinstance(row.get(column.key), float)]
    if not known:
        return ""

    def mean(key: str) -> float:
        return float(np.mean([row[key] for row in known]))  # type: ignore[arg-type]

    # Of a ratio, that of the means: one still mouth must not decide over all.
    value = mean(LMD) / mean(BLIND_LMD) if column.key == "lmd_ratio" else mean(column.key)
    return _cell(column.form, value) + (f" ({len(known)})" if len(known) < len(rows) else "")


def _compared(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what its numbers say together."""
    head, warped = row.get("head_psnr_db"), row.get("baselines.nearest_warped.head_psnr_db")
    lmd, blind = row.get(LMD), row.get(BLIND_LMD)
    if head is not None and warped is not None:
        row["gain_db"] = head - warped
    if lmd is not None and blind is not None:
        row["lmd_ratio"] = lmd / blind
    return row


def _cell(form: str, value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else format(value, form)


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in metrics.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out
