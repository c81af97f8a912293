"""What is trained when: the lessons of each step, ready a step ahead."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from fiag_dist.acting.backdrop import surroundings
from fiag_dist.config import TrainConfig
from fiag_dist.dist.ownership import Ownership, draw
from fiag_dist.shards.manifest import Manifest
from fiag_dist.shards.reader import FrameReader, read_meta
from fiag_dist.storage import Storage
from fiag_dist.training.shut_lips import ShutLips
from fiag_dist.training.stream import Stream
from fiag_dist.types import Camera, Frame, IdentityMeta, Label, Shot


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one lane trains on in one step."""

    lane: int
    shot: Shot
    positive: Tensor
    """Embedding [id_dim] of another frame of the same person, if the feed reads them."""
    rival: str | None
    """Another identity of the lane to tell this one from, if it has one."""


@dataclass(frozen=True, eq=False)
class Resident:
    """A packed frame on the device, its pictures as bytes: what can stay there from epoch to epoch."""

    image: UInt8[Tensor, "3 size size"]
    alpha: UInt8[Tensor, "1 size size"]
    others: dict[str, Any]
    """All other fields of a Shot."""
    surroundings: UInt8[Tensor, "3 size size"] | None = None
    """The frame without its head, in training that puts heads in place."""

    @property
    def bytes(self) -> int:
        """Of the pictures, labels among them: nearly all there is."""
        pictures = self.image.numel() * (1 if self.surroundings is None else 2)
        return pictures + 2 * self.alpha.numel()

    def shot(self, in_place: bool = False) -> Shot:
        """The frame with its pictures as floats; in_place: with its surroundings, if they are known."""
        around = self.surroundings if in_place else None
        return Shot(
            image=_floats(self.image),
            alpha=self.alpha.float() / 255,
            surroundings=None if around is None else _floats(around),
            **self.others,
        )


def _floats(image: UInt8[Tensor, "3 size size"]) -> Tensor:
    return (image.float() / 255).contiguous()


def resident_of(
    frame: Frame, meta: IdentityMeta, device: torch.device | str = "cpu", with_surroundings: bool = False
) -> Resident:
    """A packed frame brought to `device`."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)

    size = frame.image.shape[0]
    others = {
        "identity": frame.identity,
        "index": frame.index,
        "labels": torch.from_numpy(frame.labels).to(device),
        "audio": tensor(frame.audio),
        "embedding": tensor(frame.embedding),
        "expression": tensor(frame.expression),
        "swing": tensor(frame.swing),
        "landmarks": tensor(frame.landmarks),
        "rest_landmarks": tensor(meta.rest_landmarks),
        "camera": Camera(tensor(frame.viewmat), tensor(frame.K), size, size),
        "lips_rect": frame.lips_rect,
        "blink": frame.blink,
        "mouth_seen": bool((frame.labels == Label.MOUTH).any()),
    }

    def picture(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device).permute(2, 0, 1)

    around = picture(surroundings(frame.image, frame.alpha)) if with_surroundings else None
    return Resident(picture(frame.image), torch.from_numpy(frame.alpha).to(device)[None], others, around)


def shot_of(frame: Frame, meta: IdentityMeta, device: torch.device | str = "cpu") -> Shot:
    """A packed frame as tensors on `device`."""
    return resident_of(frame, meta, device).shot()


RESIDENT_MIB = 2048
"""Frames that stay on a GPU, as bytes; a CPU decodes the next step's while it computes this one's."""


class Feed:
    """The lessons of one rank's lanes, step by step. Reads and decodes the next step while this one is computed."""

    def __init__(
        self,
        config: TrainConfig,
        storage: Storage,
        manifest: Manifest,
        ownership: Ownership,
        rank: int,
        device: torch.device | str = "cpu",
        held_out: int = 0,
        resident_mib: float | None = None,
    ):
        """held_out: training frames of each identity, spread over its clip, that are kept back to judge training by; a tenth of them at most.

        resident_mib: frames that stay on the device; None: RESIDENT_MIB on a GPU, else nothing.
        """
        self.ownership, self.fps = ownership, manifest.fps
        self._config, self._device = config, device
        self.lanes = ownership.lanes_of(rank)
        self.names = ownership.of_rank(rank)
        self.metas = {name: read_meta(storage, manifest.entry(name)) for name in self.names}
        self._embeddings = {name: torch.from_numpy(meta.embedding).to(device) for name, meta in self.metas.items()}
        self.readers = {name: FrameReader(storage, manifest.entry(name)) for name in self.names}
        parted = {name: _parted(self.readers[name].train, held_out) for name in self.names}
        openings = {name: (reader.mouth_open, -reader.blink) for name, reader in self.readers.items()}
        self._streams = {
            name: Stream(
                learnt, config.seed, name, config.curriculum_every, [opening[learnt] for opening in openings[name]]
            )
            for name, (learnt, _) in parted.items()
        }
        self._shut = {name: ShutLips(self.readers[name], learnt, device) for name, (learnt, _) in parted.items()}
        self.held_out = {name: kept for name, (_, kept) in parted.items()}
        """Positions of the training frames that are kept back."""
        self.counts = dict.fromkeys(self.names, 0)
        """Frames drawn so far: all the state there is, saved with each identity."""
        if resident_mib is None:
            resident_mib = RESIDENT_MIB if torch.device(device).type == "cuda" else 0.0
        self._room = int(resident_mib * 2**20)
        self._residents: OrderedDict[tuple[str, int], Resident] = OrderedDict()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: tuple[int, Future[list[Lesson]]] | None = None

    def next(self, step: int) -> list[Lesson]:
        """The lessons of `step`, and starts on those of the step after it."""
        # Those of a step that is left out are waited for, too: they are made from what this step's are made from.
        for_step, lessons = (self._ahead[0], self._ahead[1].result()) if self._ahead else (-1, [])
        if for_step != step:
            lessons = self._lessons(step, dict(self.counts))
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
        return self._embeddings[name]

    def watched(self, limit: int) -> list[str]:
        """Those of this rank's identities that are among `limit` spread evenly over all by name, whatever the number of ranks, and have test frames."""
        everybody = sorted(self.ownership.names)
        chosen = np.linspace(0, len(everybody) - 1, min(limit, len(everybody))).round().astype(int)
        return [
            name for name in (everybody[k] for k in chosen) if name in self.readers and len(self.readers[name].test)
        ]

    def first_test_shots(self, name: str, limit: int) -> list[Shot]:
        """Up to `limit` test frames of an identity, the first ones in a row."""
        return self._shots(name, self.readers[name].test[:limit])

    def test_shots(self, name: str, limit: int) -> list[Shot]:
        """Up to `limit` test frames of an identity, evenly spread."""
        positions = self.readers[name].test
        return self._shots(
            name, positions[np.linspace(0, len(positions) - 1, min(limit, len(positions))).round().astype(int)]
        )

    def held_out_shots(self, name: str) -> list[Shot]:
        """The training frames of an identity that are kept back."""
        return self._shots(name, self.held_out[name])

    def yet_to_stay_mib(self) -> float:
        """What frames that were not drawn so far will take of the device where frames stay."""
        each = max((resident.bytes for resident in self._residents.values()), default=0)
        others = sum(len(reader.train) for reader in self.readers.values()) - len(self._residents)
        return max(0, min(others * each, self._room)) / 2**20

    def close(self) -> None:
        self._worker.shutdown(cancel_futures=True)

    def _shots(self, name: str, positions: np.ndarray) -> list[Shot]:
        return [shot_of(self.readers[name].frame(int(p)), self.metas[name], self._device) for p in positions]

    def _lessons(self, step: int, counts: dict[str, int]) -> list[Lesson]:
        return [self._lesson(step, lane, self.ownership.lanes[lane], counts) for lane in self.lanes]

    def _lesson(self, step: int, lane: int, names: Sequence[str], counts: dict[str, int]) -> Lesson:
        name = draw(self._config.seed, step, lane, names)
        others = [n for n in names if n != name]
        rival = (
            others[np.random.default_rng((self._config.seed, step, lane, 1)).integers(len(others))] if others else None
        )
        stream, count, shut = self._streams[name], counts[name], self._shut[name]
        rng = np.random.default_rng((self._config.seed, step, lane, 2))
        hushed = len(shut.frames) > 0 and rng.random() < self._config.hush
        position = int(rng.choice(shut.frames)) if hushed else stream.position(count)
        in_place = rng.random() < self._config.in_place
        shot = replace(self._resident(name, position).shot(in_place), shut_lips=shut.lips, hushed=hushed)
        positive = shot.embedding
        if count and self._config.loss.triplet > 0:
            # The frame before it in the stream is another one of the same person.
            before = self.readers[name].embedding(stream.position(count - 1))
            positive = torch.from_numpy(before).to(self._device)
        return Lesson(lane, shot, positive, rival)

    def _resident(self, name: str, position: int) -> Resident:
        """A frame on the device, from there if it stayed; the least recently used go first."""
        found = self._residents.pop((name, position), None)
        if found is None:
            frame = self.readers[name].frame(position)
            found = resident_of(frame, self.metas[name], self._device, self._config.in_place > 0)
            self._room -= found.bytes
        self._residents[name, position] = found
        while self._room < 0 and self._residents:
            self._room += self._residents.popitem(last=False)[1].bytes
        return found


def num_held_out(num_frames: int, asked: int) -> int:
    """How many of an identity's training frames are kept back: as many as asked for, a tenth of them at most."""
    return min(asked, num_frames // 10)


def _parted(positions: np.ndarray, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions to learn from, and those spread evenly among them that are kept back."""
    num = num_held_out(len(positions), held_out)
    kept = np.zeros(len(positions), bool)
    kept[((np.arange(num) + 0.5) * len(positions) / max(num, 1)).astype(int)] = True
    return positions[~kept], positions[kept]
