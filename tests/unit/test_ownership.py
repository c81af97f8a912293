"""Who trains what: complete, balanced, the same whatever the number of ranks and the order of names."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiag_dist.dist.ownership import assign, draw
from fiag_dist.errors import DistributedError

FRAMES = st.dictionaries(st.text("abcdef", min_size=1, max_size=6), st.integers(1, 5000), min_size=1, max_size=30)


@given(FRAMES, st.data())
def test_every_identity_has_one_lane_and_one_rank(frames: dict[str, int], data: st.DataObject) -> None:
    lanes = data.draw(st.integers(1, len(frames)))
    world = data.draw(st.integers(1, lanes))
    ownership = assign([*frames], frames, lanes, world)
    assert sorted(name for lane in ownership.lanes for name in lane) == sorted(frames)
    assert all(ownership.lanes)
    assert [lane for rank in range(world) for lane in ownership.lanes_of(rank)] == list(range(lanes))
    sizes = [len(ownership.lanes_of(rank)) for rank in range(world)]
    assert max(sizes) - min(sizes) <= 1
    for rank in range(world):
        assert ownership.of_rank(rank)
        assert all(ownership.rank_of(name) == rank for name in ownership.of_rank(rank))


@given(FRAMES, st.data())
def test_lanes_know_neither_ranks_nor_the_order_of_names(frames: dict[str, int], data: st.DataObject) -> None:
    lanes = data.draw(st.integers(1, len(frames)))
    shuffled = data.draw(st.permutations([*frames]))
    assert assign([*frames], frames, lanes, 1).lanes == assign(shuffled, frames, lanes, lanes).lanes


@given(FRAMES, st.data())
def test_lanes_are_balanced_by_frames(frames: dict[str, int], data: st.DataObject) -> None:
    lanes = data.draw(st.integers(1, len(frames)))
    loads = [sum(frames[name] for name in lane) for lane in assign([*frames], frames, lanes, 1).lanes]
    # dealing the largest first to the lightest: no lane leads by more than the largest identity
    assert max(loads) - min(loads) <= max(frames.values())


def test_the_largest_go_to_the_lightest() -> None:
    frames = {"a": 100, "b": 60, "c": 50, "d": 10}
    assert assign("dcba", frames, 2, 2).lanes == (("a", "d"), ("b", "c"))


def test_equals_go_by_name() -> None:
    frames = dict.fromkeys("abcdef", 10)
    ownership = assign("fedcba", frames, 4, 2)
    assert ownership.lanes == (("a", "e"), ("b", "f"), ("c",), ("d",))
    assert ownership.of_rank(0) == ("a", "e", "b", "f")
    with pytest.raises(KeyError):
        ownership.rank_of("z")


def test_too_few_lanes_and_too_few_identities_are_refused_with_the_numbers() -> None:
    frames = {"a": 1, "b": 1}
    with pytest.raises(DistributedError, match=r"3 ranks for 2 identities: .*start 2 ranks or fewer, or pack more"):
        assign([*frames], frames, 3, 3)
    with pytest.raises(
        DistributedError, match=r"frames_per_step 1 for 2 ranks.*frames_per_step to 2 or more, or start 1"
    ):
        assign([*frames], frames, 1, 2)
    with pytest.raises(DistributedError, match=r"frames_per_step 3 for 2 identities.*to 2 or less, or pack more"):
        assign([*frames], frames, 3, 1)
    with pytest.raises(DistributedError, match=r"hold no identities.*pack some clips"):
        assign([], {}, 1, 1)


@given(st.integers(0, 2**31), st.integers(0, 100), st.integers(1, 9), st.integers(0, 5))
def test_each_round_draws_every_identity_once(seed: int, lane: int, count: int, turn: int) -> None:
    names = [f"n{number}" for number in range(count)]
    drawn = [draw(seed, step, lane, names) for step in range(turn * count, (turn + 1) * count)]
    assert Counter(drawn) == Counter(names)
    assert drawn == [draw(seed, step, lane, names) for step in range(turn * count, (turn + 1) * count)]


def test_rounds_lanes_and_seeds_draw_differently() -> None:
    names = [f"n{number}" for number in range(8)]

    def order(seed: int, lane: int, turn: int) -> tuple[str, ...]:
        return tuple(draw(seed, step, lane, names) for step in range(8 * turn, 8 * turn + 8))

    assert len({order(0, 0, 0), order(0, 0, 1), order(0, 1, 0), order(1, 0, 0)}) == 4
