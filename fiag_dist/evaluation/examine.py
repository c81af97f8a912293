"""One identity under examination: rendered in the place of true frames, measured beside baselines, and given another person's voice."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32

from fiag_dist.acting.actor import TENSORS, IdentityInfo, load_info
from fiag_dist.acting.synthesize import Identity
from fiag_dist.errors import DataError, FiagError
from fiag_dist.evaluation.crossdriven import SpeechTest
from fiag_dist.evaluation.subject import (
    TEST_SHARE,
    TRAIN_SHARE,
    Subject,
    encoded,
    look_at_test_frames,
    look_at_training_frames,
    synced,
)
from fiag_dist.metrics.encoded import ThroughVideo
from fiag_dist.metrics.panel import OF_FACES, Look, Numbers, Panel
from fiag_dist.metrics.syncnet import FEWEST, FPS
from fiag_dist.shards.manifest import BESIDE
from fiag_dist.shards.manifest import FILE as MANIFEST
from fiag_dist.storage import open_storage

METRICS, STRIP = "metrics.json", "strip.png"
SPOKEN = "speech_"
"""With what the keys of another voice begin."""
NOTED = ("seconds", "steps")
"""What adaptation notes in metrics.json beside the scores."""
PROTOCOL = (
    "Each frame is rendered with its own camera, speech and upper-face expression, put over the true frame with its head taken out and filled in, "
    "rounded to 8 bits, and not encoded. Means over frames. head: pixels with alpha > 127; mouth: the lip rectangle; full: all pixels. "
    "SSIM: 11 x 11 Gaussian window, sigma 1.5, zero padding, mean over RGB; head_ssim over the bounding box of the head."
)
"""What the numbers mean; written beside them."""


class Evaluation:
    """How identities are to be scored, with the tools opened once for all. panel: the metrics. strict: what can't be measured is an error, no note."""

    def __init__(
        self, panel: Panel, *, audio: Path | None = None, encoded: bool = False, data: str = "", strict: bool = False
    ) -> None:
        self.panel, self.encoded, self.strict = panel, encoded, strict
        self._audio, self._data = audio, data
        self._speech: dict[str, SpeechTest] = {}

    def data_of(self, folder: Path, info: IdentityInfo) -> str:
        """Where the shards of an identity's clip are now: as said, where they were, or beside an identity that was moved with them.

        Raises DataError when they are at none of these places.
        """
        beside = (str(above / BESIDE) for above in folder.resolve().parents[:2])
        places = [self._data] if self._data else [info.data, *beside]
        for place in places:
            if open_storage(place).exists(MANIFEST):
                return place
        raise DataError(
            f"identity {folder}: the shards of its clip are not at {places[0]}; where are they now? --data SHARDS"
        )

    def speech_test(self, url: str) -> SpeechTest:
        """The test of other people's voices for identities of one set of shards; its judge is trained once."""
        if url not in self._speech:
            self._speech[url] = SpeechTest(url, self._audio)
        return self._speech[url]


def evaluate_identity(
    folder: str | Path,
    evaluation: Evaluation | None = None,
    people: Mapping[str, Float32[np.ndarray, " id_dim"]] | None = None,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> dict[str, Any]:
    """Scores an identity on all test frames of its clip, beside the baselines, and on every fifth training frame. Writes metrics.json and strip.png.

    evaluation: which metrics; PSNR and SSIM without one. people: whose embeddings the render's are compared with. progress: called with what is
    being done and its share. Returns what this call adds to metrics.json: the metrics by key (docs/metrics.md), the same by name under `baselines`,
    `train` and `encoded`, `train_head_psnr_db`, notes and the protocol. Raises DataError when the folder or its clip's shards can't be read, CheckpointError
    when these hold other speech features than it was trained on.
    """
    if evaluation is None:
        with Panel() as panel:
            return evaluate_identity(folder, Evaluation(panel), people, progress)
    folder, panel = Path(folder), evaluation.panel
    info = load_info(folder)
    subject = Subject.beside(evaluation.data_of(folder, info), folder, info)
    with ExitStack() as stack:
        video = stack.enter_context(ThroughVideo(info.size, info.fps)) if evaluation.encoded else None
        looks, pairs = look_at_test_frames(subject, panel, video, progress)
        metrics: Numbers = {"name": info.name, **panel.numbers(looks["model"], looks["truth"], info.size, people)}
        if video:
            metrics["encoded"] = encoded(subject, panel, video)
    metrics |= synced(subject, panel, looks, subject.pairs())
    metrics["baselines"] = {
        name: panel.numbers(looks[name], looks["truth"], info.size)
        for name in ("nearest", "nearest_warped", "mouth_blind_warped")
    }
    train = look_at_training_frames(subject, panel, progress)
    metrics["train"] = panel.numbers(train["model"], train["truth"], info.size)
    if "head_psnr_db" in metrics["train"]:
        metrics["train_head_psnr_db"] = metrics["train"]["head_psnr_db"]
    found, notes = _of_faces(subject, evaluation, looks, progress)
    metrics |= found
    metrics |= {
        "test_frames": len(subject.reader.test),
        "train_frames_scored": len(train["model"]),
        "notes": _remarks(subject, evaluation, metrics) + notes,
        "protocol": PROTOCOL,
        "footage_sha256": subject.footage,
        "tensors_sha256": hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest(),
    }
    _write_strip(folder / STRIP, pairs)
    stored = json.dumps(_merged(stored_metrics(folder), metrics), indent=1)
    open_storage(folder).write(METRICS, stored.encode())
    return metrics


def _remarks(subject: Subject, evaluation: Evaluation, metrics: Numbers) -> list[str]:
    """What should be known of these numbers."""
    notes = []
    if subject.info.footage not in ("", subject.footage):
        notes.append(
            f"the shards in {subject.data} hold other footage, or packed otherwise, than it was trained on: some of these test frames may have been"
        )
    if evaluation.panel.syncnet and "sync_c" not in metrics:
        notes.append(
            f"Sync-C and Sync-E of test frames left out: they need {FEWEST} frames, {FPS} a second, and a face"
        )
    return notes


def _of_faces(
    subject: Subject,
    evaluation: Evaluation,
    looks: Mapping[str, Sequence[Look]],
    progress: Callable[[str, float], None],
) -> tuple[Numbers, list[str]]:
    """In how many frames a face was found, the metrics of another voice where they were asked for, and a note of each that can't be had.

    Raises DataError instead of a note where that is `strict`.
    """
    panel, notes = evaluation.panel, []
    if not panel.sees_faces:
        return {}, notes

    def leave_out(what: str) -> None:
        if evaluation.strict:
            raise DataError(f"identity {subject.folder}: {what}")
        notes.append(what)

    seen = {name: sum(look.face is not None for look in looks[name]) for name in ("truth", "model")}
    found: Numbers = {"faces_found_true_frames": seen["truth"], "faces_found_rendered_frames": seen["model"]}
    num = len(subject.reader.test)
    unseen = f"no face found in {num - seen['truth']} of {num} true test frames and {num - seen['model']} of {num} rendered ones"
    if not min(seen.values()) and set(panel.names) & (set(OF_FACES) - {"sync"}):
        leave_out(unseen)
    elif min(seen.values()) < num:
        notes.append(unseen)
    if "speech" in panel.names and min(seen.values()):
        try:
            found |= _speech(subject, evaluation, progress)
        except FiagError as error:
            leave_out(f"speech metrics left out: {error}")
    return found, notes


def _speech(subject: Subject, evaluation: Evaluation, progress: Callable[[str, float], None]) -> Numbers:
    before = TEST_SHARE + TRAIN_SHARE
    return evaluation.speech_test(subject.data).numbers(
        Identity.load(subject.folder),
        evaluation.panel.find,
        lambda share: progress("another voice", before + (1 - before) * share),
        evaluation.panel.syncnet,
    )


def _merged(stored: Mapping[str, Any], metrics: Numbers) -> Numbers:
    """Stored scores stay beside new ones while identity, footage and voice are the same; of another one only what adaptation noted stays."""
    footage = metrics["footage_sha256"]
    if stored.get("tensors_sha256") != metrics["tensors_sha256"] or stored.get("footage_sha256", footage) != footage:
        return {key: stored[key] for key in NOTED if key in stored} | metrics
    if any(key.startswith(SPOKEN) for key in metrics):
        stored = {key: value for key, value in stored.items() if not key.startswith(SPOKEN)}
    return _over(stored, metrics)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees in one, the second on top."""
    nested = {k: _over(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **nested}


def stored_metrics(folder: Path) -> dict[str, Any]:
    """What metrics.json of an identity folder holds; nothing where there is none that can be read."""
    try:
        return json.loads((folder / METRICS).read_text())
    except (OSError, ValueError):
        return {}


def _write_strip(path: Path, pairs: Sequence[np.ndarray]) -> None:
    """PNG of pairs, truth above render, side by side."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(np.concatenate(pairs, 1)[..., ::-1]))
    assert done
    open_storage(path.parent).write(path.name, data.tobytes())
