"""What a run tells its people: a console line, TensorBoard, a log file for each rank, and metrics.jsonl, which is the record."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from fiag_dist.dist.process import Process, all_gather_object
from fiag_dist.memory import peak_resident_mib
from fiag_dist.monitoring.board import Board
from fiag_dist.monitoring.mirror import METRICS, is_mirrored
from fiag_dist.monitoring.progress import Bar, Pace
from fiag_dist.stages import due

LINE = (
    "loss/total",
    "field/num_gaussians_face",
    "field/num_gaussians_mouth",
    "time/step_ms",
    "time/data_pct",
    "throughput/frames_per_s",
    "memory/peak_mib",
)
"""Tags that the console line shows, in this order; all others are in TensorBoard and metrics.jsonl."""

SCORE = "eval/psnr_db/"
"""Start of the tags of scores by identity, of which the line shows the mean."""


class Ratio(NamedTuple):
    """A number that is so much of one thing to so much of another: over several steps, it is that of the sums."""

    of: float
    to: float


class Clock:
    """Times the steps of one rank: `with clock.data():` around waiting for data, then `tags = clock.step(num_frames)`.

    What is done between two steps belongs to none: `with clock.aside(tag):`.
    """

    def __init__(self) -> None:
        self._step_began = time.perf_counter()
        self._data_s = 0.0
        self._aside: dict[str, float] = {}

    @contextmanager
    def data(self) -> Iterator[None]:
        """Counts its body as waiting for data."""
        began = time.perf_counter()
        yield
        self._data_s += time.perf_counter() - began

    @contextmanager
    def aside(self, tag: str) -> Iterator[None]:
        """Counts its body, between two steps, in neither of them; its milliseconds come under `tag` with the tags of the next step."""
        began = time.perf_counter()
        yield
        took_s = _now() - began
        self._step_began += took_s
        self._aside[tag] = self._aside.get(tag, 0.0) + 1e3 * took_s

    def step(self, num_frames: int, communication_s: float = 0.0) -> dict[str, float | Ratio]:
        """Tags of the step that ends now. num_frames: frames of the global batch. communication_s: spent with the other ranks, of this rank's time."""
        now = _now()
        step_s, data_s, aside = now - self._step_began, self._data_s, self._aside
        self._step_began, self._data_s, self._aside = now, 0.0, {}
        return {
            **aside,
            "time/step_ms": 1e3 * step_s,
            "time/data_ms": 1e3 * data_s,
            "time/data_pct": Ratio(100 * data_s, step_s),
            "time/communication_ms": 1e3 * communication_s,
            "time/compute_ms": 1e3 * (step_s - data_s - communication_s),
            "throughput/frames_per_s": Ratio(num_frames, step_s),
            "memory/peak_mib": peak_mib(),
        }


def _now() -> float:
    """Seconds, when all is done that was begun: a step's time is that of its kernels, not of their launches."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mib() -> float:
    """Largest memory so far, MiB: allocated on the GPU when there is one, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_resident_mib()


class Monitor:
    """Collects numbers and pictures of a run. `add` is called by all ranks; rank 0 alone prints and keeps the record."""

    def __init__(
        self, run_dir: str | Path, process: Process, resume_step: int = 0, steps: int = 0, unrendered: int = 0
    ) -> None:
        """run_dir: a local folder. resume_step: what was recorded after it is dropped. steps, unrendered: the run's length and how many of its
        first steps are without images, for progress."""
        self._folder = Path(run_dir)
        self._process = process
        self._steps = steps
        self._sums: dict[str, tuple[float, float]] = {}
        self._last: dict[str, int] = {}
        self._pace = Pace(steps, unrendered)
        (self._folder / "logs").mkdir(parents=True, exist_ok=True)
        self._log = (self._folder / "logs" / f"rank{process.rank}.log").open("a", buffering=1)
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar: Bar | None = None
        if process.is_first:
            self._record = self._folder / METRICS
            _drop_after(self._record, resume_step)
            self._board = Board(self._folder / "tb", resume_step, in_files=is_mirrored(self._folder))
            if self._console.is_terminal and steps:
                self._bar = Bar(self._console, steps, resume_step)

    def add(self, step: int, values: Mapping[str, float | Ratio], every: int) -> None:
        """Takes one step's numbers by tag; when `every` divides `step`, reports them. All ranks call it with the same `step` and `every`.

        Floats are averaged over the steps since the last report and over the ranks that have them (without what isn't finite); both parts of a Ratio
        are added up; ints are states, of which the last counts; of memory/ the largest.
        """
        for tag, value in values.items():
            if isinstance(value, int):
                self._last[tag] = value
            else:
                total, count = self._sums.get(tag, (0.0, 0))
                of, to = value if isinstance(value, Ratio) else (value, 1)
                self._sums[tag] = (total + of, count + to) if math.isfinite(of) else (total, count)
        if self._bar:
            self._bar.advance(step)
        if not due(step, every):
            return
        gathered = all_gather_object((self._sums, self._last))
        self._sums, self._last = {}, {}
        if self._process.is_first:
            self._report(step, _merge(gathered))

    def pictures(self, step: int, encoded: Mapping[str, bytes]) -> None:
        """Puts PNGs and GIFs into TensorBoard by tag, whichever rank has them. All ranks call it."""
        for found in all_gather_object(dict(encoded)):
            if self._process.is_first:
                for tag, data in sorted(found.items()):
                    self._board.picture(step, tag, data)

    def text(self, tag: str, text: str) -> None:
        """Puts lines in columns into TensorBoard, and into this rank's log."""
        self._log.write(f"{tag}\n{text}\n")
        if self._process.is_first:
            self._board.text(tag, text)

    def say(self, text: str) -> None:
        """A line for people: on rank 0's console and in this rank's log."""
        self._write(text)
        if self._process.is_first:
            self._console.print(text, markup=False)

    def close(self) -> None:
        """Writes out what is buffered."""
        if self._bar:
            self._bar.close()
        if self._process.is_first:
            self._board.close()
        self._log.close()

    def _report(self, step: int, values: dict[str, float | int | None]) -> None:
        with self._record.open("a") as record:
            record.write(json.dumps({"step": step, **values}) + "\n")
        self._board.scalars(step, values)
        left = self._pace.left(step)
        line = self._line(step, values, left)
        if self._bar and "loss/total" in values:
            self._write(line)
            self._bar.report(" ".join([f"left {left or '-:--:--'}", *_numbers(values, LINE[:1] + LINE[-2:])]))
        else:
            self.say(line)

    def _write(self, text: str) -> None:
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _line(self, step: int, values: Mapping[str, Any], left: str) -> str:
        parts = [f"step {step}" + (f"/{self._steps} {100 * step // self._steps}%" if self._steps else "")]
        parts += _numbers(values, LINE)
        scores = [value for tag, value in values.items() if tag.startswith(SCORE)]
        if scores:
            parts.append(
                f"psnr_db {_short(sum(scores) / len(scores))} in the mean of {len(scores)} people's test frames"
            )
        if left:
            parts.append(f"left {left}")
        return " | ".join(parts)


def _merge(gathered: list[tuple[dict[str, tuple[float, float]], dict[str, int]]]) -> dict[str, float | int | None]:
    """All ranks' (sums and counts, last values) -> one value a tag; None where nothing finite was seen."""
    merged: dict[str, float | int | None] = {}
    for tag in {tag for sums, _ in gathered for tag in sums}:
        found = [sums[tag] for sums, _ in gathered if tag in sums]
        means = [total / count for total, count in found if count]
        if tag.startswith("memory/"):
            merged[tag] = max(means, default=None)
        else:
            # A term of the loss that some lanes lack (no mouth in sight, nobody to tell from) counts as 0 there: terms add up to the total, at any world size.
            steps = "loss/total" if tag.startswith("loss/") else tag
            count = sum(sums[steps][1] for sums, _ in gathered if steps in sums)
            merged[tag] = sum(total for total, _ in found) / count if count else None
        if tag == "time/compute_ms" and means:
            merged["balance/slowest_rank"] = max(means) / (sum(means) / len(means))
    for _, last in reversed(gathered):
        merged |= last
    return dict(sorted(merged.items()))


def _drop_after(record: Path, step: int) -> None:
    """Keeps the lines of metrics.jsonl up to `step`; one that was cut off in writing goes too."""
    if not record.exists():
        return
    kept = []
    for line in record.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    part = record.with_suffix(".part")
    part.write_text("".join(kept))
    part.replace(record)


def _numbers(values: Mapping[str, Any], tags: Sequence[str]) -> list[str]:
    """Those of `tags` that there are, each with its name."""
    return [f"{tag.partition('/')[2]} {_short(values[tag])}" for tag in tags if tag in values]


def _short(value: float | int | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"
