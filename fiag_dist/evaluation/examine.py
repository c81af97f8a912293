"""One identity under examination: rendered in the place of true frames, measured beside baselines, and given another person's voice."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float32, UInt8

from fiag_dist.acting.actor import TENSORS, Actor, IdentityInfo, load_actor, load_info
from fiag_dist.acting.backdrop import behind
from fiag_dist.acting.synthesize import Identity, to_image
from fiag_dist.errors import DataError, FiagError
from fiag_dist.evaluation import baselines
from fiag_dist.evaluation.baselines import Pasted
from fiag_dist.evaluation.crossdriven import SpeechTest
from fiag_dist.media.sound import SAMPLE_RATE
from fiag_dist.metrics.encoded import ThroughVideo
from fiag_dist.metrics.panel import OF_FACES, Look, Numbers, Panel
from fiag_dist.metrics.regions import Truth
from fiag_dist.metrics.syncnet import FEWEST, FPS, MOST
from fiag_dist.shards.manifest import BESIDE, read_manifest
from fiag_dist.shards.manifest import FILE as MANIFEST
from fiag_dist.shards.reader import FrameReader, read_meta
from fiag_dist.storage import open_storage
from fiag_dist.training.feed import shot_of
from fiag_dist.training.formats import check_formats
from fiag_dist.types import Frame, IdentityMeta

METRICS, STRIP = "metrics.json", "strip.png"
SPOKEN = "speech_"
"""With what the keys of another voice begin."""
TRAIN_EVERY = 5
STRIP_FRAMES = 6
EMBED_FRAMES = 8
"""Test frames that the face recogniser sees, of render and truth."""
TEST_SHARE, TRAIN_SHARE = 0.4, 0.1
"""Of the time that an identity takes with all metrics; the voice takes the rest."""
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


def composed(actor: Actor, frame: Frame, meta: IdentityMeta, backdrop: np.ndarray) -> UInt8[np.ndarray, "size size 3"]:
    """The actor in the place of a frame's head."""
    device = next(actor.buffers()).device
    shot = shot_of(frame, meta, device)
    behind_3HW = torch.from_numpy(backdrop).to(device).permute(2, 0, 1).float() / 255
    return to_image(actor(shot.audio, shot.expression, shot.camera, shot.swing).over(behind_3HW))


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
    folder, panel, strict = Path(folder), evaluation.panel, evaluation.strict
    info = load_info(folder)
    actor = load_actor(folder, info)
    actor = actor.cuda() if torch.cuda.is_available() else actor
    storage = open_storage(evaluation.data_of(folder, info))
    manifest = read_manifest(storage, check=False)
    entry = manifest.entry(info.name)
    known = {"size": info.size, "fps": info.fps, "extractor": info.extractor, "audio_dim": info.audio_dim}
    check_formats(manifest, known, f"identity {folder}")
    meta, reader = read_meta(storage, entry), FrameReader(storage, entry)
    if not len(reader.test):
        raise DataError(
            f"identity {folder}: its clip {info.name} in {storage.url} has no test frames; pack a longer clip"
        )
    with ExitStack() as stack:
        video = stack.enter_context(ThroughVideo(info.size, info.fps)) if evaluation.encoded else None
        looks, pairs = _test_frames(actor, meta, reader, panel, video, progress)
        metrics: Numbers = {"name": info.name, **panel.numbers(looks["model"], looks["truth"], info.size, people)}
        if video:
            metrics["encoded"] = _encoded(video, meta, reader, panel, info)
    metrics |= _sync(panel, looks, _pairs(actor, meta, reader), meta, reader, info.fps)
    metrics["baselines"] = {
        name: panel.numbers(looks[name], looks["truth"], info.size)
        for name in ("nearest", "nearest_warped", "mouth_blind_warped")
    }
    train = _train_frames(actor, meta, reader, panel, progress)
    metrics["train"] = panel.numbers(train["model"], train["truth"], info.size)
    if "head_psnr_db" in metrics["train"]:
        metrics["train_head_psnr_db"] = metrics["train"]["head_psnr_db"]
    notes = []

    def leave_out(what: str) -> None:
        if strict:
            raise DataError(f"identity {folder}: {what}")
        notes.append(what)

    if info.footage not in ("", entry.sha256):
        notes.append(
            f"the shards in {storage.url} hold other footage, or packed otherwise, than it was trained on: some of these test frames may have been"
        )
    if panel.syncnet and "sync_c" not in metrics:
        notes.append(
            f"Sync-C and Sync-E of test frames left out: they need {FEWEST} frames, {FPS} a second, and a face"
        )
    if panel.sees_faces:
        seen = {name: sum(look.face is not None for look in looks[name]) for name in ("truth", "model")}
        metrics |= {"faces_found_true_frames": seen["truth"], "faces_found_rendered_frames": seen["model"]}
        num = len(reader.test)
        unseen = f"no face found in {num - seen['truth']} of {num} true test frames and {num - seen['model']} of {num} rendered ones"
        if not min(seen.values()) and set(panel.names) & (set(OF_FACES) - {"sync"}):
            leave_out(unseen)
        elif min(seen.values()) < num:
            notes.append(unseen)
        if "speech" in panel.names and min(seen.values()):
            try:
                metrics |= _speech(folder, evaluation, storage.url, progress)
            except FiagError as error:
                leave_out(f"speech metrics left out: {error}")
    metrics |= {
        "test_frames": len(reader.test),
        "train_frames_scored": len(train["model"]),
        "notes": notes,
        "protocol": PROTOCOL,
        "footage_sha256": entry.sha256,
        "tensors_sha256": hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest(),
    }
    _write_strip(folder / STRIP, pairs)
    stored = json.dumps(_merged(stored_metrics(folder), metrics), indent=1)
    open_storage(folder).write(METRICS, stored.encode())
    return metrics


def _test_frames(
    actor: Actor,
    meta: IdentityMeta,
    reader: FrameReader,
    panel: Panel,
    video: ThroughVideo | None,
    progress: Callable[[str, float], None],
) -> tuple[dict[str, list[Look]], list[np.ndarray]]:
    """What was measured of the model, the truth and each baseline, frame by frame, and pictures of a few: truth above render."""
    num = len(reader.test)
    shown = _spread(num, STRIP_FRAMES)
    embedded = _spread(num, EMBED_FRAMES)
    looks: dict[str, list[Look]] = {
        n: [] for n in ("model", "truth", "nearest", "nearest_warped", "mouth_blind_warped")
    }
    pairs = []
    sighted = baselines.nearest(meta, reader.mouth_open, reader.train, reader.test)
    blind = baselines.nearest(meta, None, reader.train, reader.test)
    for i, position in enumerate(reader.test):
        frame = reader.frame(int(position))
        truth, backdrop = Truth.of(frame), behind(frame.image, frame.alpha)
        image = composed(actor, frame, meta, backdrop)
        near, far = reader.frame(int(sighted[i])), reader.frame(int(blind[i]))
        looks["truth"].append(panel.look_at_truth(frame.image, embed=i in embedded))
        looks["model"].append(panel.look(image, truth, perceptual=True, face=True, embed=i in embedded))
        looks["nearest"].append(panel.look(Pasted(near.image, near.alpha).over(backdrop), truth))
        warped = baselines.warped(near, frame).over(backdrop)
        looks["nearest_warped"].append(panel.look(warped, truth, perceptual=True, face=True))
        blinded = baselines.warped(far, frame).over(backdrop)
        looks["mouth_blind_warped"].append(panel.look(blinded, truth, face=True))
        if video:
            video.write(image, frame.image)
        if i in shown:
            pairs.append(np.concatenate([frame.image, image]))
        progress("test frames", TEST_SHARE * (i + 1) / num)
    return looks, pairs


def _train_frames(
    actor: Actor, meta: IdentityMeta, reader: FrameReader, panel: Panel, progress: Callable[[str, float], None]
) -> dict[str, list[Look]]:
    """The same of the model and the truth in every fifth training frame; LPIPS is left to test frames."""
    looks: dict[str, list[Look]] = {"model": [], "truth": []}
    positions = reader.train[::TRAIN_EVERY]
    for i, position in enumerate(positions):
        frame = reader.frame(int(position))
        image = composed(actor, frame, meta, behind(frame.image, frame.alpha))
        looks["model"].append(panel.look(image, Truth.of(frame), face=True))
        looks["truth"].append(panel.look_at_truth(frame.image))
        progress("training frames", TEST_SHARE + TRAIN_SHARE * (i + 1) / len(positions))
    return looks


def _encoded(video: ThroughVideo, meta: IdentityMeta, reader: FrameReader, panel: Panel, info: IdentityInfo) -> Numbers:
    """The metrics of test frames when render and truth have both been through H.264."""
    looks: dict[str, list[Look]] = {"model": [], "truth": []}
    for position, (image, true_image) in zip(reader.test, video.pairs(), strict=True):
        truth = replace(Truth.of(reader.frame(int(position))), image=true_image)
        looks["model"].append(panel.look(image, truth, perceptual=True, face=True))
        looks["truth"].append(panel.look_at_truth(true_image))
    numbers = panel.numbers(looks["model"], looks["truth"], info.size)
    sync = _sync(panel, looks, video.pairs(), meta, reader, info.fps)
    return {key: value for key, value in numbers.items() if not key.startswith("identity_")} | sync


def _pairs(actor: Actor, meta: IdentityMeta, reader: FrameReader) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Render and truth of each test frame."""
    for position in reader.test:
        frame = reader.frame(int(position))
        yield composed(actor, frame, meta, behind(frame.image, frame.alpha)), frame.image


def _sync(
    panel: Panel,
    looks: Mapping[str, Sequence[Look]],
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    meta: IdentityMeta,
    reader: FrameReader,
    fps: int,
) -> Numbers:
    """SyncNet's numbers of renders, and of the true frames with the prefix `truth_`; none without SyncNet, or where it can't judge."""
    if panel.syncnet is None:
        return {}
    renders, truths = zip(*islice(pairs, MOST), strict=True)
    wav = meta.wav[round(reader.test[0] / fps * SAMPLE_RATE) :]
    out: Numbers = {}
    for prefix, who, images in (("", "model", renders), ("truth_", "truth", truths)):
        sync = panel.syncnet.judge(images, [look.face for look in looks[who]], wav, fps)
        out |= sync.numbers(prefix) if sync else {}
    return out


def _speech(folder: Path, evaluation: Evaluation, url: str, progress: Callable[[str, float], None]) -> Numbers:
    before = TEST_SHARE + TRAIN_SHARE
    return evaluation.speech_test(url).numbers(
        Identity.load(folder),
        evaluation.panel.find,
        lambda share: progress("another voice", before + (1 - before) * share),
        evaluation.panel.syncnet,
    )


def _spread(num: int, wanted: int) -> set[int]:
    """Up to `wanted` of 0 .. num-1, evenly."""
    return set(np.linspace(0, num - 1, wanted).round().astype(int).tolist())


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
