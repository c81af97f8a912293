"""Which frame is trained when: each identity's own endless stream, ready a step ahead."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fiag_dist.dist.ownership import Ownership, draw
from fiag_dist.shards.manifest import Manifest
from fiag_dist.shards.reader import FrameReader, read_meta
from fiag_dist.storage import Storage
from fiag_dist.types import Camera, Frame, IdentityMeta, Label, Shot


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one lane trains on in one step."""

    lane: int
    shot: Shot
    positive: Tensor
    """Embedding [id_dim] of another frame of the same person."""
    rival: str | None
    """Another identity of the lane to tell this one from, if it has one."""


def shot_of(frame: Frame, meta: IdentityMeta, device: torch.device | str = "cpu") -> Shot:
    """A packed frame as tensors on `device`."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)

    size = frame.image.shape[0]
    return Shot(
        identity=frame.identity,
        index=frame.index,
        image=(torch.from_numpy(frame.image).to(device).permute(2, 0, 1).float() / 255).contiguous(),
        alpha=torch.from_numpy(frame.alpha).to(device)[None].float() / 255,
        labels=torch.from_numpy(frame.labels).to(device),
        audio=tensor(frame.audio),
        embedding=tensor(frame.embedding),
        expression=tensor(frame.expression),
        landmarks=tensor(frame.landmarks),
        rest_landmarks=tensor(meta.rest_landmarks),
        camera=Camera(tensor(frame.viewmat), tensor(frame.K), size, size),
        lips_rect=frame.lips_rect,
        mouth_open=frame.mouth_open,
        blink=frame.blink,
        mouth_seen=bool((frame.labels == Label.MOUTH).any()),
    )


class IdentityStream:
    """Training positions of one identity: every frame once an epoch, in an order that only (seed, name, epoch) decides."""

    def __init__(self, positions: np.ndarray, seed: int, name: str):
        self._positions, self._seed, self._name = positions, seed, list(name.encode())
        self._epoch, self._order = -1, positions

    def position(self, count: int) -> int:
        """The frame of draw number `count`."""
        epoch, place = divmod(count, len(self._positions))
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                np.random.default_rng((self._seed, epoch, *self._name)).permutation(self._positions),
            )
        return int(self._order[place])


class Feed:
    """The lessons of one rank's lanes, step by step. Reads and decodes the next step while this one is computed."""

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        ownership: Ownership,
        rank: int,
        seed: int,
        device: torch.device | str = "cpu",
        cache_mib: float = 64.0,
    ):
        self._ownership, self._seed, self._device = ownership, seed, device
        self.lanes = ownership.lanes_of(rank)
        self.names = ownership.of_rank(rank)
        self.metas = {name: read_meta(storage, manifest.entry(name)) for name in self.names}
        self.readers = {name: FrameReader(storage, manifest.entry(name), cache_mib) for name in self.names}
        self._streams = {name: IdentityStream(self.readers[name].train, seed, name) for name in self.names}
        self.counts = dict.fromkeys(self.names, 0)
        """Frames drawn so far: all the state there is, saved with each identity."""
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: tuple[int, Future[list[Lesson]]] | None = None

    def next(self, step: int) -> list[Lesson]:
        """The lessons of `step`, and starts on those of the step after it."""
        lessons = (
            self._ahead[1].result()
            if self._ahead and self._ahead[0] == step
            else self._lessons(step, dict(self.counts))
        )
        for lesson in lessons:
            self.counts[lesson.shot.identity] += 1
        self._ahead = (step + 1, self._worker.submit(self._lessons, step + 1, dict(self.counts)))
        return lessons

    def restore(self, counts: Mapping[str, int]) -> None:
        """Goes on where each identity was left."""
        self._ahead = None
        self.counts |= counts

    def embedding(self, name: str) -> Tensor:
        """Mean embedding of an identity of this rank, [id_dim]."""
        return torch.from_numpy(self.metas[name].embedding).to(self._device)

    def test_shots(self, name: str, limit: int) -> list[Shot]:
        """Up to `limit` test frames of an identity, evenly spread."""
        positions = self.readers[name].test
        chosen = positions[np.linspace(0, len(positions) - 1, min(limit, len(positions))).round().astype(int)]
        return [shot_of(self.readers[name].frame(int(p)), self.metas[name], self._device) for p in chosen]

    def close(self) -> None:
        self._worker.shutdown(cancel_futures=True)

    def _lessons(self, step: int, counts: dict[str, int]) -> list[Lesson]:
        return [self._lesson(step, lane, self._ownership.lanes[lane], counts) for lane in self.lanes]

    def _lesson(self, step: int, lane: int, names: Sequence[str], counts: dict[str, int]) -> Lesson:
        name = draw(self._seed, step, lane, names)
        others = [n for n in names if n != name]
        rival = others[np.random.default_rng((self._seed, step, lane, 1)).integers(len(others))] if others else None
        stream, reader, count = self._streams[name], self.readers[name], counts[name]
        shot = shot_of(reader.frame(stream.position(count)), self.metas[name], self._device)
        # The frame before it in the stream is another one of the same person, and lies in the cache.
        before = reader.frame(stream.position(count - 1)) if count else None
        positive = (
            shot.embedding if before is None else torch.from_numpy(before.embedding.astype(np.float32)).to(self._device)
        )
        return Lesson(lane, shot, positive, rival)
