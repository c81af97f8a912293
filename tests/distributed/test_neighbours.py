"""Frozen neighbours: the right person's net of the right step, on one rank as on two, and after a checkpoint."""

import torch
from ranks import Ranks

from fiag_dist.config import GridConfig, MotionConfig
from fiag_dist.dist.neighbours import PREFIX, Neighbours
from fiag_dist.dist.ownership import Ownership, assign
from fiag_dist.dist.pool import PersonalPool
from fiag_dist.dist.process import Process
from fiag_dist.model.motion import PersonalNet

EVERY = 3
NAMES = ("ann", "bob", "cat", "dan", "eve")
"""Four lanes: ann with eve, and the others alone."""


def ownership(world: int) -> Ownership:
    frames = dict(zip(NAMES, (10, 50, 50, 50, 9), strict=True))
    return assign(NAMES, frames, 4, world)


def number(name: str) -> int:
    return NAMES.index(name) + 1


def embedding(name: str) -> torch.Tensor:
    return torch.full((6,), float(number(name)))


def make(me: Process, every: int = EVERY) -> tuple[PersonalPool, Neighbours]:
    """Nets whose every parameter says whose they are and of which step."""
    owned = ownership(me.world)
    config = MotionConfig(personal_grid=GridConfig(levels=2), personal_hidden=4)
    nets = {name: PersonalNet(config, 4, 2, "torch") for name in owned.of_rank(me.rank)}
    pool = PersonalPool(nets)
    paint(pool, 0)
    return pool, Neighbours(owned, me.rank, pool, embedding, every)


@torch.no_grad()
def paint(pool: PersonalPool, step: int) -> None:
    for name, net in pool.nets.items():
        for parameter in net.parameters():
            parameter.fill_(100 * number(name) + step)


def values(neighbours: Neighbours) -> dict[int, tuple[float, float]]:
    """What each lane's neighbour is made of: the one value of all parameters, and of the embedding."""
    found = {}
    for lane in range(4):
        neighbour = neighbours.of(lane)
        if neighbour is not None:
            flat = torch.cat([p.flatten() for p in neighbour.net.parameters()])
            assert flat.min() == flat.max()
            assert not any(p.requires_grad for p in neighbour.net.parameters())
            found[lane] = (float(flat[0]), float(neighbour.embedding[0]))
    return found


def history(me: Process, every: int = EVERY) -> list[dict[int, tuple[float, float]]]:
    pool, neighbours = make(me, every)
    seen = []
    for step in range(2 * EVERY + 1):
        paint(pool, step)
        neighbours.renew(step)
        seen.append(values(neighbours))
    return seen


def test_two_ranks_see_the_neighbours_that_one_sees(one: Ranks, two: Ranks) -> None:
    lanes = ownership(1).lanes
    assert lanes == (("bob",), ("cat",), ("dan",), ("ann", "eve"))
    (alone,) = one.run(history)
    first, second = two.run(history)
    assert [a | b for a, b in zip(first, second, strict=True)] == alone
    assert [sorted(first[0]), sorted(second[0])] == [[0, 1], [2]]
    for step, seen in enumerate(alone):
        renewed = step - step % EVERY
        last = "ann" if (step // EVERY) % 2 == 0 else "eve"  # those of a lane take turns
        wanted = dict(enumerate(("cat", "dan", last)))
        assert seen == {lane: (100 * number(n) + renewed, number(n)) for lane, n in wanted.items()}


def test_first_copies_stay_when_none_are_to_be_renewed(one: Ranks) -> None:
    (seen,) = one.run(history, 0)
    assert seen == [seen[0]] * len(seen)


def resumed(me: Process, stored: dict[str, dict[str, torch.Tensor]], step: int) -> dict[int, tuple[float, float]]:
    pool, neighbours = make(me)
    neighbours.load({name: stored[name] for name in pool.nets})
    paint(pool, step)
    neighbours.renew(step)
    return values(neighbours)


def saved(me: Process, step: int) -> dict[str, dict[str, torch.Tensor]]:
    pool, neighbours = make(me)
    for now in range(step):
        paint(pool, now)
        neighbours.renew(now)
    return {name: neighbours.tensors(name) for name in pool.nets}


def test_a_checkpoint_of_two_ranks_goes_on_with_its_copies_on_one(one: Ranks, two: Ranks) -> None:
    first, second = two.run(saved, EVERY + 2)
    stored = first | second
    assert [name for name in NAMES if stored[name]] == ["bob", "cat", "dan"]
    assert all(key.startswith(PREFIX) for key in stored["bob"])
    (seen,) = one.run(resumed, stored, EVERY + 2)
    assert seen == one.run(history)[0][EVERY + 2]


def test_copies_that_a_checkpoint_lacks_are_made_anew_by_all(two: Ranks) -> None:
    first, second = two.run(saved, EVERY + 2)
    stored = first | second | {"bob": {}}
    first, second = two.run(resumed, stored, EVERY + 2)
    assert {value for value, _ in (first | second).values()} == {305.0, 405.0, 505.0}


def test_one_person_has_nobody(one: Ranks) -> None:
    pool = PersonalPool({"ann": PersonalNet(MotionConfig(personal_grid=GridConfig(levels=2)), 4, 2, "torch")})
    neighbours = Neighbours(assign(["ann"], {"ann": 9}, 1, 1), 0, pool, embedding, EVERY)
    neighbours.renew(0)
    assert neighbours.of(0) is None
    assert neighbours.tensors("ann") == {}
