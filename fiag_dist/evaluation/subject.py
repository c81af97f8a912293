"""An identity in the place of its own clip's head: rendered there, beside the baselines, and looked at frame by frame."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from fiag_dist.acting.actor import Actor, IdentityInfo, load_actor
from fiag_dist.acting.backdrop import behind
from fiag_dist.acting.synthesize import to_image
from fiag_dist.errors import DataError
from fiag_dist.evaluation import baselines
from fiag_dist.evaluation.baselines import Pasted
from fiag_dist.media.sound import SAMPLE_RATE
from fiag_dist.metrics.encoded import ThroughVideo
from fiag_dist.metrics.panel import Look, Numbers, Panel
from fiag_dist.metrics.regions import Truth
from fiag_dist.metrics.syncnet import MOST
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.shards.reader import FrameReader, read_meta
from fiag_dist.storage import open_storage
from fiag_dist.training.feed import shot_of
from fiag_dist.training.formats import check_formats
from fiag_dist.types import Frame, IdentityMeta

TRAIN_EVERY = 5
STRIP_FRAMES = 6
EMBED_FRAMES = 8
"""Test frames that the face recogniser sees, of render and truth."""
TEST_SHARE, TRAIN_SHARE = 0.4, 0.1
"""Of the time that an identity takes with all metrics; the voice takes the rest."""


@dataclass(frozen=True, eq=False)
class Subject:
    """An identity, and the clip that it was made of."""

    folder: Path
    info: IdentityInfo
    actor: Actor
    meta: IdentityMeta
    reader: FrameReader
    data: str
    """Where the shards of its clip are."""
    footage: str
    """SHA-256 of what they hold."""

    @classmethod
    def beside(cls, data: str, folder: Path, info: IdentityInfo) -> "Subject":
        """The identity in `folder` and its clip in the shards at `data`.

        Raises DataError when either can't be read, or the clip has no test frames, CheckpointError when the shards hold other speech features than it was
        trained on.
        """
        actor = load_actor(folder, info)
        storage = open_storage(data)
        manifest = read_manifest(storage, check=False)
        entry = manifest.entry(info.name)
        known = {"size": info.size, "fps": info.fps, "extractor": info.extractor, "audio_dim": info.audio_dim}
        check_formats(manifest, known, f"identity {folder}")
        meta, reader = read_meta(storage, entry), FrameReader(storage, entry)
        if not len(reader.test):
            raise DataError(
                f"identity {folder}: its clip {info.name} in {storage.url} has no test frames; pack a longer clip"
            )
        actor = actor.cuda() if torch.cuda.is_available() else actor
        return cls(folder, info, actor, meta, reader, storage.url, entry.sha256)

    def play(
        self, frame: Frame, backdrop: UInt8[np.ndarray, "size size 3"] | None = None
    ) -> UInt8[np.ndarray, "size size 3"]:
        """The actor in the place of a frame's head, over `backdrop`; without one over the frame with its head taken out."""
        backdrop = behind(frame.image, frame.alpha) if backdrop is None else backdrop
        device = next(self.actor.buffers()).device
        shot = shot_of(frame, self.meta, device)
        behind_3HW = torch.from_numpy(backdrop).to(device).permute(2, 0, 1).float() / 255
        return to_image(self.actor(shot.audio, shot.expression, shot.camera, shot.swing).over(behind_3HW))

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Render and truth of each test frame."""
        for position in self.reader.test:
            frame = self.reader.frame(int(position))
            yield self.play(frame), frame.image


def look_at_test_frames(
    subject: Subject, panel: Panel, video: ThroughVideo | None, progress: Callable[[str, float], None]
) -> tuple[dict[str, list[Look]], list[np.ndarray]]:
    """What was measured of the model, the truth and each baseline, frame by frame, and pictures of a few: truth above render."""
    meta, reader = subject.meta, subject.reader
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
        image = subject.play(frame, backdrop)
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


def look_at_training_frames(
    subject: Subject, panel: Panel, progress: Callable[[str, float], None]
) -> dict[str, list[Look]]:
    """The same of the model and the truth in every fifth training frame; LPIPS is left to test frames."""
    looks: dict[str, list[Look]] = {"model": [], "truth": []}
    reader = subject.reader
    positions = reader.train[::TRAIN_EVERY]
    for i, position in enumerate(positions):
        frame = reader.frame(int(position))
        image = subject.play(frame)
        looks["model"].append(panel.look(image, Truth.of(frame), face=True))
        looks["truth"].append(panel.look_at_truth(frame.image))
        progress("training frames", TEST_SHARE + TRAIN_SHARE * (i + 1) / len(positions))
    return looks


def encoded(subject: Subject, panel: Panel, video: ThroughVideo) -> Numbers:
    """The metrics of test frames when render and truth have both been through H.264."""
    looks: dict[str, list[Look]] = {"model": [], "truth": []}
    for position, (image, true_image) in zip(subject.reader.test, video.pairs(), strict=True):
        truth = replace(Truth.of(subject.reader.frame(int(position))), image=true_image)
        looks["model"].append(panel.look(image, truth, perceptual=True, face=True))
        looks["truth"].append(panel.look_at_truth(true_image))
    numbers = panel.numbers(looks["model"], looks["truth"], subject.info.size)
    sync = synced(subject, panel, looks, video.pairs())
    return {key: value for key, value in numbers.items() if not key.startswith("identity_")} | sync


def synced(
    subject: Subject,
    panel: Panel,
    looks: Mapping[str, Sequence[Look]],
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Numbers:
    """SyncNet's numbers of renders, and of the true frames with the prefix `truth_`; none without SyncNet, or where it can't judge."""
    if panel.syncnet is None:
        return {}
    renders, truths = zip(*islice(pairs, MOST), strict=True)
    fps = subject.info.fps
    wav = subject.meta.wav[round(subject.reader.test[0] / fps * SAMPLE_RATE) :]
    out: Numbers = {}
    for prefix, who, images in (("", "model", renders), ("truth_", "truth", truths)):
        sync = panel.syncnet.judge(images, [look.face for look in looks[who]], wav, fps)
        out |= sync.numbers(prefix) if sync else {}
    return out


def _spread(num: int, wanted: int) -> set[int]:
    """Up to `wanted` of 0 .. num-1, evenly."""
    return set(np.linspace(0, num - 1, wanted).round().astype(int).tolist())
