"""Who trains which identity, and when: fixed by names, lanes and the seed alone, so any number of ranks trains the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fiag_dist.errors import DistributedError


@dataclass(frozen=True)
class Ownership:
    """Identities dealt to lanes, one frame of the global batch each, and lanes dealt to ranks."""

    lanes: tuple[tuple[str, ...], ...]
    world: int

    @property
    def names(self) -> tuple[str, ...]:
        """Everybody, lane by lane."""
        return tuple(name for lane in self.lanes for name in lane)

    def rank_of(self, name: str) -> int:
        """The rank that owns identity `name`: its personal net and that net's optimiser. KeyError if nobody does."""
        for lane, names in enumerate(self.lanes):
            if name in names:
                return self._rank(lane)
        raise KeyError(name)

    def lanes_of(self, rank: int) -> tuple[int, ...]:
        """The lanes that `rank` trains, ascending."""
        return tuple(lane for lane in range(len(self.lanes)) if self._rank(lane) == rank)

    def of_rank(self, rank: int) -> tuple[str, ...]:
        """The identities that `rank` owns, lane by lane."""
        return tuple(name for lane in self.lanes_of(rank) for name in self.lanes[lane])

    def _rank(self, lane: int) -> int:
        return lane * self.world // len(self.lanes)


def assign(names: Sequence[str], num_frames: Mapping[str, int], lanes: int, world: int) -> Ownership:
    """Deals identities to `lanes` lanes with nearly equal numbers of frames, and the lanes to `world` ranks.

    lanes: frames in the global batch, whatever the number of ranks. The lanes do not depend on `world` or on the order of `names`.
    Raises DistributedError when a rank would have no lane or a lane no identity: a personal net lives on one rank, and nobody shares its frames.
    """
    if not names:
        raise DistributedError("the shards hold no identities: nobody to train on; pack some clips: fiag-dist pack")
    if world > len(names):
        raise DistributedError(
            f"{world} ranks for {len(names)} identities: each identity belongs to one rank, and a rank needs one at least; "
            f"start {len(names)} ranks or fewer, or pack more clips"
        )
    if lanes < world:
        raise DistributedError(
            f"frames_per_step {lanes} for {world} ranks: each rank needs a frame a step; "
            f"set train.frames_per_step to {world} or more, or start {lanes} ranks"
        )
    if lanes > len(names):
        raise DistributedError(
            f"frames_per_step {lanes} for {len(names)} identities: the frames of a step come from different identities; "
            f"set train.frames_per_step to {len(names)} or less, or pack more clips"
        )
    dealt: list[list[str]] = [[] for _ in range(lanes)]
    load = [0] * lanes
    for name in sorted(names, key=lambda name: (-num_frames[name], name)):
        lane = min(range(lanes), key=lambda lane: (load[lane], len(dealt[lane]), lane))
        dealt[lane].append(name)
        load[lane] += num_frames[name]
    return Ownership(tuple(tuple(sorted(lane)) for lane in dealt), world)


def draw(seed: int, step: int, lane: int, names: Sequence[str]) -> str:
    """The identity that `lane` trains at `step`: each of its `names` once a round, in another order every round."""
    turn, place = divmod(step, len(names))
    return names[int(np.random.default_rng((seed, lane, turn)).permutation(len(names))[place])]
