"""What a listener learns from packed clips before anything is trained: how speech is spread, what a voice is, and what lips do to it."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float32, Int

from fiag_dist.ingest.loudness import audible, loud_db, loudness_db
from fiag_dist.model.audio import Listener, Speech
from fiag_dist.model.lipreader import motions
from fiag_dist.shards.manifest import Manifest
from fiag_dist.shards.reader import FrameReader
from fiag_dist.storage import Storage
from fiag_dist.types import AUDIO_FRAMES, IdentityMeta

MOST_FRAMES = 4096
"""Heard of all clips together."""
BATCH = 256
"""Frames for which memory is taken at a time: eight windows of each take sixteen times what they take in a clip."""
OWN_FRAMES = 4000
"""What somebody new's frames count as, all together, beside those that lips are known from: seconds against minutes of others."""


def fit(
    listener: Listener, storage: Storage, manifest: Manifest, metas: Sequence[IdentityMeta], rng: np.random.Generator
) -> None:
    """Teaches a new listener from the training frames of these clips."""
    speech = _Heard(metas, manifest.fps, rng)
    listener.fit(speech, map(_ended, metas))
    if listener.lips is not None:
        _watch(listener, speech, storage, manifest, 1.0)


def attune(
    listener: Listener,
    storage: Storage,
    manifest: Manifest,
    meta: IdentityMeta,
    kept: Int[np.ndarray, " k"],
    seed: int = 0,
) -> None:
    """Adds the training frames of an identity, but those at the positions `kept` back, to what a listener knows of lips.

    They count as OWN_FRAMES of others', or as what they are if they are more.
    """
    if listener.lips is None:
        return
    speech = _Heard([meta], manifest.fps, np.random.default_rng(seed), kept)
    _watch(listener, speech, storage, manifest, max(OWN_FRAMES / sum(map(len, speech.positions)), 1.0))


class _Heard:
    """What is heard in training frames of clips, but those `kept` back, at most MOST_FRAMES: in batches of one clip each, made when asked for."""

    def __init__(
        self,
        metas: Sequence[IdentityMeta],
        fps: int,
        rng: np.random.Generator,
        kept: Sequence[int] | Int[np.ndarray, " k"] = (),
    ):
        self.names = [meta.name for meta in metas]
        self._speech, self._voiced = [meta.speech for meta in metas], [voiced(meta, fps) for meta in metas]
        self._lengths = [sum(s == "train" for s in meta.split) for meta in metas]
        known = [np.setdiff1d(np.arange(num), kept) for num in self._lengths]
        sizes = [len(one) for one in known]
        chosen = np.full(sum(sizes), sum(sizes) <= MOST_FRAMES)
        if not chosen.all():
            chosen[rng.choice(len(chosen), MOST_FRAMES, replace=False)] = True
        self.positions = [one[mine] for one, mine in zip(known, np.split(chosen, np.cumsum(sizes)[:-1]), strict=True)]
        """Of the frames in each clip."""
        self.batches = [
            (clip, positions[k : k + BATCH])
            for clip, positions in enumerate(self.positions)
            for k in range(0, len(positions), BATCH)
        ]
        """The clip and the positions of each batch."""

    def __iter__(self) -> Iterator[Speech]:
        for clip, positions in self.batches:
            around = _around(positions, self._lengths[clip])
            windows = self._speech[clip][around].astype(np.float32)
            yield torch.from_numpy(windows), torch.from_numpy(self._voiced[clip][around])


def _around(positions: Int[np.ndarray, " frames"], num: int) -> Int[np.ndarray, "frames 8"]:
    """Of `num` windows, those that the frames at these positions hear; beyond the ends the first and the last."""
    return (positions[:, None] + np.arange(AUDIO_FRAMES) - AUDIO_FRAMES // 2).clip(0, num - 1)


def _ended(meta: IdentityMeta) -> Speech:
    """What is heard when a clip's sound has ended: no voice."""
    num = len(meta.silence)
    windows = meta.silence[_around(np.arange(num), num)].astype(np.float32)
    return torch.from_numpy(windows), torch.zeros(num, AUDIO_FRAMES)


def _watch(listener: Listener, speech: _Heard, storage: Storage, manifest: Manifest, weight: float) -> None:
    """Shows the listener what lips do in these frames."""
    device, seen = listener.center.device, []
    for name, positions in zip(speech.names, speech.positions, strict=True):
        reader = FrameReader(storage, manifest.entry(name))
        if len(positions):
            seen.append(motions([reader.landmarks(int(p)) for p in positions]))
    sizes = [len(positions) for _, positions in speech.batches]
    lips = torch.from_numpy(np.concatenate(seen)).to(device).split(sizes)
    for (windows, _), some in zip(speech, lips, strict=True):
        listener.watch(windows.to(device), some, weight)


def voiced(meta: IdentityMeta, fps: int) -> Float32[np.ndarray, " frames"]:
    """How far each frame's sound is from silence, 0..1, against the clip's loud frames."""
    loudness = loudness_db(np.asarray(meta.wav, np.float32), len(meta.split), fps)
    return audible(loudness, loud_db(loudness))
