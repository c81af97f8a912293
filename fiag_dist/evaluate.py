"""fiag-dist evaluate: how near an identity's rendered heads come to the frames that it was not trained on."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import tyro
from jaxtyping import Bool, UInt8
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fiag_dist import baselines
from fiag_dist.actor import INFO, Actor, load_actor, load_info
from fiag_dist.backdrop import behind
from fiag_dist.bake import bake_run
from fiag_dist.baselines import Pasted
from fiag_dist.dist import checkpoint
from fiag_dist.errors import ConfigError, DataError, guarded
from fiag_dist.feed import shot_of
from fiag_dist.kernels.ssim import ssim
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.shards.reader import FrameReader, read_meta
from fiag_dist.storage import open_storage
from fiag_dist.synthesize import to_image
from fiag_dist.types import Frame, IdentityMeta

METRICS, STRIP, REPORT, SCRATCH = "metrics.json", "strip.png", "evaluation.md", "scratch"
TRAIN_EVERY = 5
STRIP_FRAMES = 6
PROTOCOL = (
    "Each frame is rendered with its own camera, speech and upper-face expression, put over the true frame with its head taken out and filled in, "
    "rounded to 8 bits, and not encoded. Means over frames. head: pixels with alpha > 127; mouth: the lip rectangle; full: all pixels. "
    "SSIM: 11 x 11 Gaussian window, sigma 1.5, zero padding, mean over RGB; head_ssim over the bounding box of the head."
)
"""What the numbers mean; written beside them."""
Row = Mapping[str, float | None]
"""The numbers of one identity, by column of the table."""
COLUMNS = {
    "head": "head",
    "head_scratch": "from scratch",
    "head_nearest_warped": "nearest + warp",
    "gain": "gain over it",
    "head_nearest": "nearest",
    "head_train": "train frames",
    "mouth": "mouth",
    "mouth_nearest_warped": "mouth, nearest + warp",
    "full": "full",
    "head_ssim": "head SSIM",
    "full_ssim": "full SSIM",
}
ON_SCREEN = ("head", "head_scratch", "head_nearest_warped", "gain", "head_nearest", "mouth", "full", "head_ssim")
"""What fits a terminal of 80 columns."""


@dataclass(frozen=True, eq=False)
class Truth:
    """A frame to compare with, and what all heads are put over."""

    frame: Frame
    backdrop: UInt8[np.ndarray, "size size 3"]
    head: Bool[np.ndarray, "size size"]

    @classmethod
    def of(cls, frame: Frame) -> "Truth":
        return cls(frame, behind(frame.image, frame.alpha), frame.alpha > 127)

    def scores(self, image: UInt8[np.ndarray, "size size 3"]) -> dict[str, float]:
        """The metrics of one composed frame. A frame that shows no head scores its full frame as its head."""
        error = np.square(image.astype(np.float64) - self.frame.image).mean(2) / 255**2
        head = self.head if self.head.any() else np.ones_like(self.head)
        ys, xs = np.flatnonzero(head.any(1)), np.flatnonzero(head.any(0))
        box = (slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1))
        x0, y0, x1, y1 = self.frame.lips_rect
        return {
            "head_psnr_db": psnr(error[head].mean()),
            "full_psnr_db": psnr(error.mean()),
            "mouth_psnr_db": psnr(error[y0:y1, x0:x1].mean()),
            "head_ssim": similarity(image[box], self.frame.image[box]),
            "full_ssim": similarity(image, self.frame.image),
        }


def psnr(error: float) -> float:
    """Decibels of a mean squared error of values in 0..1; 100 at most."""
    return float(-10 * np.log10(max(error, 1e-10)))


def similarity(image: UInt8[np.ndarray, "h w 3"], truth: UInt8[np.ndarray, "h w 3"]) -> float:
    """SSIM of two 8-bit images."""
    image_CHW, truth_CHW = (torch.from_numpy(x).permute(2, 0, 1).float() / 255 for x in (image, truth))
    return float(ssim(image_CHW, truth_CHW))


def composed(actor: Actor, frame: Frame, meta: IdentityMeta, backdrop: np.ndarray) -> UInt8[np.ndarray, "size size 3"]:
    """The actor in the place of a frame's head."""
    device = next(actor.buffers()).device
    shot = shot_of(frame, meta, device)
    behind_3HW = torch.from_numpy(backdrop).to(device).permute(2, 0, 1).float() / 255
    return to_image(actor(shot.audio, shot.expression, shot.camera).over(behind_3HW))


def evaluate_identity(folder: str | Path) -> dict[str, Any]:
    """Scores an identity on all test frames of its clip, beside the baselines, and on every fifth training frame. Writes metrics.json and strip.png.

    Returns what metrics.json holds: `head_psnr_db`, `full_psnr_db`, `mouth_psnr_db`, `head_ssim`, `full_ssim` of the identity, the same by name
    under `baselines` and `train`, `train_head_psnr_db`, and the protocol. Raises DataError when the folder or its clip's shards can't be read.
    """
    folder = Path(folder)
    info = load_info(folder)
    actor = load_actor(folder, info)
    actor = actor.cuda() if torch.cuda.is_available() else actor
    storage = open_storage(info.data)
    entry = read_manifest(storage, check=False).entry(info.name)
    meta, reader = read_meta(storage, entry), FrameReader(storage, entry)
    if not len(reader.test):
        raise DataError(
            f"identity {folder}: its clip {info.name} in {info.data} has no test frames; pack a longer clip"
        )
    rows: dict[str, list[dict[str, float]]] = {"model": [], "nearest": [], "nearest_warped": []}
    shown = set(np.linspace(0, len(reader.test) - 1, STRIP_FRAMES).round().astype(int).tolist())
    pairs = []
    neighbours = baselines.nearest(meta, reader.mouth_open, reader.train, reader.test)
    for i, (position, neighbour) in enumerate(zip(reader.test, neighbours, strict=True)):
        truth, source = Truth.of(reader.frame(int(position))), reader.frame(int(neighbour))
        image = composed(actor, truth.frame, meta, truth.backdrop)
        rows["model"].append(truth.scores(image))
        rows["nearest"].append(truth.scores(Pasted(source.image, source.alpha).over(truth.backdrop)))
        rows["nearest_warped"].append(truth.scores(baselines.warped(source, truth.frame).over(truth.backdrop)))
        if i in shown:
            pairs.append(np.concatenate([truth.frame.image, image]))
    train = []
    for position in reader.train[::TRAIN_EVERY]:
        truth = Truth.of(reader.frame(int(position)))
        train.append(truth.scores(composed(actor, truth.frame, meta, truth.backdrop)))
    means = {name: _mean(scores) for name, scores in rows.items()}
    metrics = {
        "name": info.name,
        **means.pop("model"),
        "train_head_psnr_db": _mean(train)["head_psnr_db"],
        "train": _mean(train),
        "baselines": means,
        "test_frames": len(reader.test),
        "train_frames_scored": len(train),
        "protocol": PROTOCOL,
    }
    _write_strip(folder / STRIP, pairs)
    open_storage(folder).write(METRICS, json.dumps(_stored(folder) | metrics, indent=1).encode())
    return metrics


@dataclass(frozen=True)
class EvaluateCommand:
    """Scores identities on the frames of their clips that they were not trained on, beside what any head must beat: the nearest training frame."""

    folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IDENTITY_OR_DIR...")] = ()
    """Identity folders, or folders of them; each of the latter gets an evaluation.md. A pretraining's run folder stands for its own identities."""


def main(argv: list[str]) -> int:
    """The command. Returns 0. Raises ConfigError or DataError."""
    command = tyro.cli(EvaluateCommand, args=argv, prog="fiag-dist evaluate")
    if not command.folders:
        raise ConfigError(
            "no folder given; name identity folders, or a folder of them as `fiag-dist adapt --out` wrote it"
        )
    folders = dict.fromkeys(bake_run(str(f)) if (f / checkpoint.FOLDER).is_dir() else f for f in command.folders)
    groups = {folder: identities_in(folder) for folder in folders}
    todo = list(dict.fromkeys(identity for group in groups.values() for identity in group))
    console = Console(highlight=False)
    rows: dict[Path, Row] = {}
    for identity in track(todo, "evaluating", console=console, transient=True):
        scratch = identity / SCRATCH
        metrics = evaluate_identity(identity)
        rows[identity] = _row(metrics, evaluate_identity(scratch) if (scratch / INFO).is_file() else None)
    console.print(_table([(identity.resolve().name, row) for identity, row in rows.items()]))
    console.print(f"{METRICS} and {STRIP} (truth above render) are in each identity's folder")
    for folder, group in groups.items():
        if group != [folder]:
            open_storage(folder).write(
                REPORT, _markdown([(identity.name, rows[identity]) for identity in group]).encode()
            )
            console.print(f"table: {folder / REPORT}", soft_wrap=True)
    return 0


def identities_in(folder: Path) -> list[Path]:
    """The folder itself when it is an identity, else those in it, by name. Raises DataError when there are none."""
    if (folder / INFO).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{INFO}"))
    if not found:
        what = "holds no identity folders" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: {what}; make some: fiag-dist adapt CLIPS --from RUN --out {folder}")
    return found


def _row(metrics: Mapping[str, Any], scratch: Mapping[str, Any] | None) -> Row:
    """The numbers of one line of the table, by column."""
    nearest, warped = metrics["baselines"]["nearest"], metrics["baselines"]["nearest_warped"]
    return {
        "head": metrics["head_psnr_db"],
        "head_scratch": scratch["head_psnr_db"] if scratch else None,
        "head_nearest_warped": warped["head_psnr_db"],
        "head_nearest": nearest["head_psnr_db"],
        "gain": metrics["head_psnr_db"] - warped["head_psnr_db"],
        "head_train": metrics["train_head_psnr_db"],
        "mouth": metrics["mouth_psnr_db"],
        "mouth_nearest_warped": warped["mouth_psnr_db"],
        "full": metrics["full_psnr_db"],
        "head_ssim": metrics["head_ssim"],
        "full_ssim": metrics["full_ssim"],
    }


def _lines(rows: Sequence[tuple[str, Row]], wanted: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the table; columns without a number are left out, and several identities have a mean."""
    columns = [name for name in wanted if any(row[name] is not None for _, row in rows)]
    if len(rows) > 1:
        known = {name: [value for _, row in rows if (value := row[name]) is not None] for name in columns}
        rows = [*rows, ("mean", {name: float(np.mean(values)) for name, values in known.items()})]
    cells = [[name, *(_cell(column, row[column]) for column in columns)] for name, row in rows]
    return ["identity", *(COLUMNS[name] for name in columns)], cells


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if column.endswith("ssim") else f"{value:+.2f}" if column == "gain" else f"{value:.2f}"


def _table(rows: Sequence[tuple[str, Row]]) -> Table:
    titles, cells = _lines(rows, ON_SCREEN)
    table = Table(
        title="test frames: PSNR in dB, of the head where no region is named", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for title in titles:
        is_name = title == "identity"
        table.add_column(title, justify="left" if is_name else "right", no_wrap=is_name)
    for line in cells:
        table.add_row(*line, style="bold" if line[0] == "mean" else None)
    return table


def _markdown(rows: Sequence[tuple[str, Row]]) -> str:
    titles, cells = _lines(rows, COLUMNS)
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *cells]
    return "\n".join(
        [
            "# Test frames: PSNR in dB, of the head where no region is named, and SSIM",
            "",
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            PROTOCOL,
            "",
        ]
    )


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def _stored(folder: Path) -> dict[str, Any]:
    """What metrics.json holds already: times and the like, which others put there."""
    try:
        return json.loads((folder / METRICS).read_text())
    except (OSError, ValueError):
        return {}


def _write_strip(path: Path, pairs: Sequence[np.ndarray]) -> None:
    """PNG of pairs, truth above render, side by side."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(np.concatenate(pairs, 1)[..., ::-1]))
    assert done
    open_storage(path.parent).write(path.name, data.tobytes())


if __name__ == "__main__":
    sys.exit(guarded(main))
