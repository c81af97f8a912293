"""Other people for those who are alone: frozen copies of personal nets, for lanes that have one identity and so nobody to contrast it with."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fiag_dist.dist import process
from fiag_dist.dist.ownership import Ownership
from fiag_dist.dist.pool import PersonalPool
from fiag_dist.model.motion import PersonalNet
from fiag_dist.stages import due

PREFIX = "neighbour:"
"""Start of the names of a copy's tensors in a checkpoint."""


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A person of the next lane as of the last renewal."""

    net: PersonalNet
    """Frozen."""
    embedding: Tensor
    """Mean embedding, [id_dim]."""


class Neighbours:
    """Somebody to contrast with for each lane of this rank that has a single identity: a neighbour.

    Neighbours are the people of the next lane, in turns; each renewal copies the next one's net and embedding, which then stay as they are until the one
    after. A copy is used also where the net itself is on this rank: that changes in every step, and one rank must train what many do. Which rank sends to
    which follows from the ownership, so that nobody has to ask.
    """

    def __init__(
        self, ownership: Ownership, rank: int, pool: PersonalPool, embedding: Callable[[str], Tensor], every: int
    ) -> None:
        """embedding: mean embedding of an identity of this rank. every: steps between two renewals; 0: the first copies stay."""
        self._ownership, self._rank, self._pool, self._embedding, self._every = ownership, rank, pool, embedding, every
        lanes = ownership.lanes
        self._alone = [lane for lane, names in enumerate(lanes) if len(names) == 1 and len(lanes) > 1]
        self._mine = {lane: lanes[lane][0] for lane in self._alone if lane in ownership.lanes_of(rank)}
        self._kept = {lane: self._blank(name) for lane, name in self._mine.items()}
        self._device = embedding(next(iter(pool.nets))).device
        self._current = False

    def of(self, lane: int) -> Neighbour | None:
        """Whom the single identity of `lane` is told from; None when there is nobody else in the run, or the lane has others."""
        return self._kept.get(lane)

    @torch.no_grad()
    def renew(self, step: int) -> None:
        """Copies anew when it is time. All ranks call it before every step. Raises DistributedError when a rank is lost."""
        if self._current and not due(step, self._every):
            return
        self._current = True
        outgoing, incoming = [], []
        for lane in self._alone:
            name = self._chosen(lane, step // self._every if self._every else 0)
            source, target = (self._ownership.rank_of(n) for n in (name, self._ownership.lanes[lane][0]))
            if source == self._rank:
                packed = _vector(self._pool[name], self._embedding(name))
                if target == self._rank:
                    self._unpack(lane, packed)
                else:
                    outgoing.append((target, packed))
            elif target == self._rank:
                incoming.append((lane, source, self._packed(lane)))
        process.exchange(outgoing, [(source, packed) for _, source, packed in incoming])
        for lane, _, packed in incoming:
            self._unpack(lane, packed)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What a checkpoint keeps of the neighbour of identity `name`; nothing for one who is not alone."""
        for lane, own in self._mine.items():
            if own == name:
                neighbour = self._kept[lane]
                parameters = {key: p.detach().cpu() for key, p in neighbour.net.named_parameters()}
                kept = parameters | {"embedding": neighbour.embedding.cpu()}
                return {f"{PREFIX}{key}": tensor for key, tensor in kept.items()}
        return {}

    @torch.no_grad()
    def load(self, stored: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Goes on with the copies of a checkpoint, by identity; when any rank finds one missing, all renew at the next step. All ranks call it."""
        whole = True
        for lane, name in self._mine.items():
            neighbour, tensors = self._kept[lane], stored[name]
            wanted = dict(neighbour.net.named_parameters()) | {"embedding": neighbour.embedding}
            if any(f"{PREFIX}{key}" not in tensors for key in wanted):
                whole = False
                continue
            for key, tensor in wanted.items():
                tensor.copy_(tensors[f"{PREFIX}{key}"])
        self._current = process.all_true(whole, self._device)

    def _chosen(self, lane: int, turn: int) -> str:
        names = self._ownership.lanes[(lane + 1) % len(self._ownership.lanes)]
        return names[turn % len(names)]

    def _blank(self, name: str) -> Neighbour:
        """Room for a copy; all personal nets have one shape."""
        net = copy.deepcopy(self._pool[name]).requires_grad_(False)
        return Neighbour(net, torch.zeros_like(self._embedding(name)))

    def _packed(self, lane: int) -> Tensor:
        neighbour = self._kept[lane]
        return _vector(neighbour.net, neighbour.embedding)

    def _unpack(self, lane: int, packed: Tensor) -> None:
        neighbour = self._kept[lane]
        room = [*neighbour.net.parameters(), neighbour.embedding]
        for tensor, values in zip(room, packed.split([tensor.numel() for tensor in room]), strict=True):
            tensor.copy_(values.view_as(tensor))


def _vector(net: PersonalNet, embedding: Tensor) -> Tensor:
    """A person as one tensor; the net may have nothing to learn."""
    return torch.cat([*(parameter.detach().flatten() for parameter in net.parameters()), embedding])
