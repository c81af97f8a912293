"""One clip to shards, in a worker: what it depends on, and what came of it."""

import dataclasses
import json
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fiag_dist.config import PackConfig
from fiag_dist.errors import DataError, FiagError
from fiag_dist.ingest.sheet import contact_sheet
from fiag_dist.shards.folder import REPORT, SHEET, clear, write_mark
from fiag_dist.shards.manifest import IdentityEntry, SourceEntry
from fiag_dist.shards.writer import write_identity
from fiag_dist.storage import Storage, open_storage
from fiag_dist.types import Frame, IdentityMeta

SHEET_FRAMES = 8
TIMINGS = "timings"
"""What of a clip's report stays out of its shards, so that packing again gives the same bytes."""
WORTH_SAYING_S = 0.5
"""Less footage than this is left out without a word but in the report."""

Progress = Callable[[str, float], None]
Packer = Callable[[Path, PackConfig, str, Progress], tuple[IdentityMeta, Iterator[Frame]]]


@dataclass(frozen=True)
class Work:
    """One clip to pack: where it is, its identity's name, where the shards go, and what they depend on. Paths are absolute: any node may take it."""

    path: Path
    name: str
    out: str
    cfg: PackConfig
    source: SourceEntry
    speech: tuple[int, int]
    """Channels and window of the speech features that all clips share."""
    consent: str = ""
    """What the person agreed to, for the entry."""


@dataclass(frozen=True)
class Done:
    """What came of a clip: its entry, or the reason why there is none; both where what was packed before stays."""

    entry: IdentityEntry | None
    reason: str = ""
    seconds: float = 0.0
    bug: str = ""
    """Traceback of an error that no rule of ours explains."""
    note: str = ""
    """What was changed in the clip."""


def pack_one(work: Work, packer: Packer, progress: Progress) -> Done:
    """One clip to shards, report, contact sheet and, last, the mark. Raises WeightsError and ConfigError, which concern all clips."""
    began = time.perf_counter()
    storage = open_storage(work.out)
    try:
        with storage.claim(work.name):
            meta, frames = _made(work, packer, progress)
            entry = _written(storage, work, meta, frames)
    except DataError as error:
        return Done(None, str(error), time.perf_counter() - began)
    except FiagError:
        raise
    except Exception as error:
        reason = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        return Done(None, reason, time.perf_counter() - began, traceback.format_exc())
    notes = (_moved(meta.report.get("sound")), _left_out(meta.report.get("seconds_left_out", {})))
    return Done(entry, "", time.perf_counter() - began, note="; ".join(filter(None, notes)))


def _left_out(seconds: Mapping[str, float]) -> str:
    """What a user should know of footage that is not used, by reason."""
    said = ", ".join(f"{s:.1f} s {reason}" for reason, s in seconds.items() if s >= WORTH_SAYING_S)
    return f"left out: {said}" if said else ""


def _made(work: Work, packer: Packer, progress: Progress) -> tuple[IdentityMeta, Iterator[Frame]]:
    """The clip's identity and its samples. Until these are written, what was packed under the name before stays."""
    if not work.path.exists():
        raise DataError(
            f"{work.path}: no such file on {socket.gethostname()}; on a cluster, clips lie where every node finds them by this path"
        )
    meta, frames = packer(work.path, work.cfg, work.name, progress)
    if meta.speech.shape[1:] != work.speech:
        raise DataError(
            f"{work.path.name}: speech features [{meta.speech.shape[1]}, {meta.speech.shape[2]}], the other clips have {list(work.speech)}; "
            "make them by the same program"
        )
    return meta, frames


def _written(storage: Storage, work: Work, meta: IdentityMeta, frames: Iterator[Frame]) -> IdentityEntry:
    """All files of the identity; where that fails, none of them."""
    chosen: list[Frame] = []
    stored = dataclasses.replace(meta, report={k: v for k, v in meta.report.items() if k != TIMINGS})
    try:
        entry = write_identity(storage, stored, _keeping(frames, len(meta.split), chosen), work.cfg.frames_per_shard)
        entry = dataclasses.replace(entry, source=work.source, consent=work.consent)
        storage.write(f"{work.name}/{REPORT}", (json.dumps(meta.report, indent=1) + "\n").encode())
        storage.write(f"{work.name}/{SHEET}", _png(contact_sheet(meta, chosen)))
        write_mark(storage, entry)
    except Exception:
        with suppress(DataError):  # what is there of it takes room, and nothing names it
            clear(storage, work.name)
        raise
    return entry


def _moved(sound: dict[str, Any] | None) -> str:
    """What a report says of the sound, where that was moved to the lips."""
    if not sound or not sound["fixed"]:
        return ""
    late_ms = 1e3 * sound["late_s"]
    return f"sound put right, it was {abs(late_ms):.0f} ms {'late' if late_ms > 0 else 'early'}"


def _keeping(frames: Iterator[Frame], count: int, chosen: list[Frame]) -> Iterator[Frame]:
    """Passes frames on and keeps a few, evenly spread, for the contact sheet."""
    wanted = set(np.linspace(0, count - 1, SHEET_FRAMES).round().astype(int).tolist())
    for position, frame in enumerate(frames):
        if position in wanted:
            chosen.append(frame)
        yield frame


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
