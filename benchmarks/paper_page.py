"""The page of an experiment: a table of ours beside the paper's, where trends differ, what it was made with, and its picture."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from paper_facts import FACTS, SETTING, Facts

Value = float | str | None
COLOURS = ((70, 110, 170), (200, 90, 40), (60, 140, 80), (150, 80, 160))
"""Of bars and lines, RGB."""


@dataclass(frozen=True)
class Column:
    """One number of our tables. Titles that the paper's table has too are compared with it."""

    title: str
    key: str
    form: str = ".2f"


IMAGE = (Column("PSNR", "full_psnr_db"), Column("head PSNR", "head_psnr_db"))
LPIPS, SSIM = Column("LPIPS", "full_lpips", ".4f"), Column("SSIM", "full_ssim", ".4f")
LMD = Column("LMD", "lmd_px_at_512")
SPEECH = (Column("speech score", "speech_score"), Column("Sync-C", "sync_c"))
LAG = Column("lag, ms", "speech_lag_ms", "+.0f")
AUE = (Column("AUE upper", "aue_upper_intensity2", ".3f"), Column("AUE lower", "aue_lower_intensity2", ".3f"))
MOUTH = Column("mouth corr.", "mouth_opening_correlation")
EYES = Column("eyes corr.", "eye_closure_correlation")
MOUTH_PSNR = Column("mouth PSNR", "mouth_psnr_db")
MINUTES = Column("minutes", "minutes", ".1f")


@dataclass(frozen=True)
class Findings:
    """What an experiment found. rows: by name, one mapping of numbers for each seed."""

    rows: Mapping[str, Sequence[Mapping[str, Value]]]
    columns: Sequence[Column]
    remarks: Sequence[str] = ()
    picture: UInt8[np.ndarray, "height width 3"] | None = field(default=None, compare=False)
    made: str = ""
    """Who was trained with how many steps, where it is not what the command says for all."""


def write_page(out: Path, name: str, found: Findings, caption: str) -> Path:
    """Writes NAME.md, and NAME.png when there is a picture. Returns the page."""
    facts = FACTS[name]
    out.mkdir(parents=True, exist_ok=True)
    columns = [column for column in found.columns if any(_known(found, row, column) for row in found.rows)]
    parts = [f"# {facts.title}", "## Here"]
    titles = ["", *(column.title for column in columns)]
    parts.append(_grid(titles, [[row, *(_cell(found, row, column) for column in columns)] for row in found.rows]))
    if found.picture is not None:
        cv2.imwrite(str(out / f"{name}.png"), found.picture[..., ::-1])
        parts.append(f"![{facts.title}]({name}.png)")
    if facts.rows:
        parts += ["## In the paper", _theirs(facts)]
    differing = _differing(found, facts)
    if differing:
        parts.append("Trends that differ: " + "; ".join(differing) + ".")
    parts += [*found.remarks, caption, *([SETTING] if facts.rows else [])]
    page = out / f"{name}.md"
    page.write_text("\n\n".join(parts) + "\n")
    return page


def caption(clips: str, made: str, seeds: int, origins: Iterable[str]) -> str:
    """What the numbers were made with. made: who was trained with how many steps. origins: machine, date and code of each number."""
    spread = (
        f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "one seed: small differences say nothing"
    )
    return (
        f"Clips: {clips}; {made}. Where a row stands for several people its numbers are their means; {spread}. Frames that were never trained on, not encoded; "
        f"the speech score is our own (docs/metrics.md), not Sync-C. {'; '.join(sorted(origins))}."
    )


def bars(values: Mapping[str, float], unit: str, width: int = 720) -> UInt8[np.ndarray, "height width 3"]:
    """A bar for each value, its name on the left and the number on its right."""
    left, line = 260, 44
    picture = np.full((line * len(values) + 16, width, 3), 255, np.uint8)
    longest = max(values.values())
    for row, (name, value) in enumerate(values.items()):
        top = 8 + row * line
        right = left + max(round(value / longest * (width - left - 150)), 1)
        cv2.rectangle(picture, (left, top + 6), (right, top + line - 8), COLOURS[0], -1)
        for text, x in ((name, 8), (f"{value:,.0f} {unit}", right + 8)):
            cv2.putText(picture, text, (x, top + 27), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return picture


def beside(
    strips: Sequence[UInt8[np.ndarray, "height width 3"]], height: int = 256
) -> UInt8[np.ndarray, "height width 3"]:
    """Pictures of one height in a row."""
    scaled = [
        cv2.resize(s, (round(s.shape[1] * height / s.shape[0]), height), interpolation=cv2.INTER_AREA) for s in strips
    ]
    return np.concatenate(scaled, 1)


def curves(
    values: Mapping[str, Mapping[int, float]], unit: str, width: int = 720, height: int = 360
) -> UInt8[np.ndarray, "height width 3"]:
    """A line for each name over steps, which are drawn as if each were as far from the next."""
    left, right, top, bottom = 60, width - 210, 20, height - 40
    picture = np.full((height, width, 3), 255, np.uint8)
    steps = sorted({step for line in values.values() for step in line})
    numbers = [number for line in values.values() for number in line.values()]
    low, high = min(numbers), max(max(numbers), min(numbers) + 1e-3)

    def place(step: int, number: float) -> tuple[int, int]:
        x = left + (right - left) * steps.index(step) / max(len(steps) - 1, 1)
        return round(x), round(bottom - (bottom - top) * (number - low) / (high - low))

    def write(text: str, x: int, y: int, color: tuple[int, int, int] = (0, 0, 0)) -> None:
        cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, color, 1, cv2.LINE_AA)

    for step in steps:
        write(str(step), place(step, low)[0] - 12, bottom + 22)
    for number in np.linspace(low, high, 5):
        y = place(steps[0], float(number))[1]
        cv2.line(picture, (left, y), (right, y), (225, 225, 225), 1)
        write(f"{number:.1f}", 8, y + 4)
    write(f"{unit}, over steps", left, height - 4)
    for k, (name, line) in enumerate(values.items()):
        points = [place(step, line[step]) for step in sorted(line)]
        cv2.polylines(picture, [np.array(points, np.int32)], False, COLOURS[k % len(COLOURS)], 2, cv2.LINE_AA)
        write(name, right + 10, 40 + 24 * k, COLOURS[k % len(COLOURS)])
    return picture


def _theirs(facts: Facts) -> str:
    rows = [
        [row, *(f"{value:g}" if isinstance(value, float) else value for value in values)]
        for row, values in facts.rows.items()
    ]
    return _grid(["", *facts.columns], rows)


def _differing(found: Findings, facts: Facts) -> list[str]:
    """Pairs of rows that both tables have and order differently, in columns that both have."""
    out = []
    shared = [row for row in facts.rows if row in found.rows]
    for column in found.columns:
        if column.title not in facts.columns:
            continue
        place = facts.columns.index(column.title)
        for one, other in combinations(shared, 2):
            theirs = [facts.rows[row][place] for row in (one, other)]
            ours = [_mean(found, row, column) for row in (one, other)]
            if any(not isinstance(value, float) for value in (*theirs, *ours)):
                continue
            if np.sign(theirs[0] - theirs[1]) * np.sign(ours[0] - ours[1]) < 0:  # type: ignore[operator]
                out.append(f"{column.title} of {one} and {other} (here {ours[0]:.3g} and {ours[1]:.3g})")
    return out


def _known(found: Findings, row: str, column: Column) -> list[Value]:
    return [value for numbers in found.rows[row] if (value := numbers.get(column.key)) is not None]


def _mean(found: Findings, row: str, column: Column) -> float | None:
    values = [value for value in _known(found, row, column) if isinstance(value, int | float)]
    return float(np.mean(values)) if values else None


def _cell(found: Findings, row: str, column: Column) -> str:
    values = _known(found, row, column)
    if not values or isinstance(values[0], str):
        return str(values[0]) if values else ""
    mean = format(np.mean(values), column.form)  # type: ignore[arg-type]
    return f"{mean} ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else mean  # type: ignore[arg-type]


def _grid(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, marks, *lines))
