"""Personal nets and their optimisers' state are spread over the ranks: what a rank holds of them halves as the ranks double."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from fiag_dist.config import MotionConfig
from fiag_dist.dist.ownership import assign
from fiag_dist.dist.pool import PersonalPool
from fiag_dist.model.motion import PersonalNet
from fiag_dist.training.step import PERSONAL_GROUPS

NAMES = [f"person_{number}" for number in range(8)]


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Bytes of all tensors that were made in the body and that anything still holds."""
    gc.collect()
    gc.freeze()  # what was there before is not looked at again

    def held() -> int:
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    try:
        yield held
    finally:
        gc.unfreeze()


def trained(names: tuple[str, ...]) -> PersonalPool:
    """A rank's pool after each net took a step: moments exist."""
    pool = PersonalPool({name: PersonalNet(MotionConfig(), 384, 2, "torch") for name in names})
    for name, net in pool.nets.items():
        sum(p.square().sum() for p in net.parameters()).backward()
        pool.step([name], dict.fromkeys(PERSONAL_GROUPS, 1e-3), 1.0)
    return pool


def test_a_ranks_share_halves_with_twice_the_ranks() -> None:
    largest = {}
    for world in (1, 2, 4):
        ownership = assign(NAMES, dict.fromkeys(NAMES, 250), 8, world)
        held = []
        for rank in range(world):
            with counted() as bytes_held:
                pool = trained(ownership.of_rank(rank))
                held.append(bytes_held())
                assert held[-1] == pytest.approx(pool.bytes, rel=0.01)
            del pool
        largest[world] = max(held)
    assert largest[1] > 8 * 3 * 4 * 30_000  # eight nets: parameters and two moments each
    assert largest[2] == pytest.approx(largest[1] / 2, rel=0.01)
    assert largest[4] == pytest.approx(largest[1] / 4, rel=0.01)
