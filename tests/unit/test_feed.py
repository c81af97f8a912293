"""The feed: every frame once an epoch, the same wherever it is kept, and kept where it was asked to."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from made_shards import FRAMES, SIZE, write_two

from fiag_dist.acting.backdrop import surroundings
from fiag_dist.config import TrainConfig
from fiag_dist.dist.ownership import assign
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.storage import open_storage
from fiag_dist.training.feed import Feed, Lesson
from fiag_dist.training.shut_lips import HARDLY_SHUT
from fiag_dist.training.stream import Stream

TRAINED = FRAMES - 3


@pytest.fixture
def shards(tmp_path: Path) -> str:
    write_two(open_storage(tmp_path))
    return str(tmp_path)


def feed_of(url: str, resident_mib: float, hush: float = 0.0, in_place: float = 0.0) -> Feed:
    storage = open_storage(url)
    manifest = read_manifest(storage)
    ownership = assign(manifest.names, dict.fromkeys(manifest.names, TRAINED), 1, 1)
    config = TrainConfig(seed=3, hush=hush, in_place=in_place)
    return Feed(config, storage, manifest, ownership, 0, resident_mib=resident_mib)


def lessons(feed: Feed, steps: int) -> list[Lesson]:
    with closing(feed):
        return [feed.next(step)[0] for step in range(steps)]


def test_each_frame_comes_once_an_epoch(shards: str) -> None:
    seen: dict[str, list[int]] = {}
    for lesson in lessons(feed_of(shards, 0.0), 8 * TRAINED):
        seen.setdefault(lesson.shot.identity, []).append(lesson.shot.index)
    for indices in seen.values():
        assert len(indices) > TRAINED
        assert len(set(indices[:TRAINED])) == TRAINED


def test_frames_that_stay_are_the_same_and_are_read_once(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passing, staying = feed_of(shards, 0.0), feed_of(shards, 100.0)
    reads = {id(feed): 0 for feed in (passing, staying)}
    for feed in (passing, staying):
        for reader in feed.readers.values():
            original = reader.frame

            def counted(position: int, original=original, feed=feed):
                reads[id(feed)] += 1
                return original(position)

            monkeypatch.setattr(reader, "frame", counted)
    steps = 6 * TRAINED
    for a, b in zip(lessons(passing, steps), lessons(staying, steps), strict=True):
        assert (a.shot.identity, a.shot.index, a.rival) == (b.shot.identity, b.shot.index, b.rival)
        assert torch.equal(a.shot.image, b.shot.image)
        assert torch.equal(a.shot.alpha, b.shot.alpha)
        assert torch.equal(a.positive, b.positive)
    assert reads[id(staying)] <= len(staying.names) * TRAINED
    assert reads[id(passing)] in (steps, steps + 1)  # the next one may be read already


def test_no_more_stays_than_there_is_room_for(shards: str) -> None:
    room_mib = 3.5 * (5 * SIZE * SIZE) / 2**20
    feed = feed_of(shards, room_mib)
    lessons(feed, 2 * TRAINED)
    assert len(feed._residents) == 3


def test_a_curriculum_adds_a_bounded_share_that_sweeps_from_closed_to_open() -> None:
    positions = np.arange(40)
    opening, never = np.linspace(0, 1, 40)[::-1], np.zeros(40)  # this clip has no blink
    plain = Stream(positions, 3, "anna")
    swept = Stream(positions, 3, "anna", 4, [opening, never])
    drawn = [swept.position(count) for count in range(4 * 160)]
    chosen, others = drawn[3::4], [place for count, place in enumerate(drawn) if count % 4 != 3]
    assert others == [plain.position(count) for count in range(len(others))]
    openings = opening[chosen]
    assert openings[:4].max() < 0.2 < 0.8 < openings[36:44].min()
    assert openings[76:80].max() < 0.2
    assert len(set(chosen[80:160])) > 20  # over the eyes: any order, and no end of searching
    assert [Stream(positions, 3, "anna", 4, [opening, never]).position(c) for c in (3, 77, 639)] == [
        drawn[c] for c in (3, 77, 639)
    ]


def test_silence_is_heard_over_shut_mouths_as_often_as_asked_and_takes_no_frame_its_speech(shards: str) -> None:
    asked, steps = 0.25, 20 * TRAINED

    def drawn(hush: float) -> list[Lesson]:
        return lessons(feed_of(shards, 0.0, hush), steps)

    plain, some = drawn(0.0), drawn(asked)
    hushed = [lesson.shot for lesson in some if lesson.shot.hushed]
    assert hushed
    with closing(feed_of(shards, 0.0)) as feed:
        opening = {n: dict(zip(r.index.tolist(), r.mouth_open, strict=True)) for n, r in feed.readers.items()}
    assert all(opening[shot.identity][shot.index] <= HARDLY_SHUT for shot in hushed)
    with_shut_frames = {shot.identity for shot in hushed}
    turns = sum(lesson.shot.identity in with_shut_frames for lesson in some)
    assert abs(len(hushed) / turns - asked) < 4 * (asked * (1 - asked) / turns) ** 0.5
    assert not any(lesson.shot.hushed for lesson in plain)
    for before, after in zip(plain, some, strict=True):
        if not after.shot.hushed:
            assert (before.shot.identity, before.shot.index) == (after.shot.identity, after.shot.index)
    shut = {(shot.identity, shot.index) for shot in hushed}
    assert shut <= {(lesson.shot.identity, lesson.shot.index) for lesson in some if not lesson.shot.hushed}


@pytest.mark.parametrize("room", [0.15, 100.0])
def test_what_has_yet_to_stay_on_the_device_is_known_before_it_does(shards: str, room: float) -> None:
    """An adaptation is given its share of a GPU after a few steps."""
    feed = feed_of(shards, room)
    lessons(feed, 3)
    there, trained = len(feed._residents), sum(len(reader.train) for reader in feed.readers.values())
    assert 3 <= there < trained
    each = next(iter(feed._residents.values())).bytes
    frames = (trained - there) * each / 2**20
    left = room - there * each / 2**20
    assert feed.yet_to_stay_mib() == pytest.approx(min(frames, left), rel=1e-3)
    assert frames > left or room > 1


@pytest.mark.parametrize("resident_mib", [0.0, 100.0])
def test_heads_stay_in_place_as_often_as_asked_and_the_frames_are_the_same(shards: str, resident_mib: float) -> None:
    asked, steps = 0.3, 20 * TRAINED
    feed = feed_of(shards, resident_mib, in_place=asked)
    some, plain = lessons(feed, steps), lessons(feed_of(shards, resident_mib), steps)
    for before, after in zip(plain, some, strict=True):
        assert (before.shot.identity, before.shot.index) == (after.shot.identity, after.shot.index)
        assert torch.equal(before.shot.image, after.shot.image)
    assert all(lesson.shot.surroundings is None for lesson in plain)
    placed = [lesson.shot for lesson in some if lesson.shot.surroundings is not None]
    assert abs(len(placed) / steps - asked) < 4 * (asked * (1 - asked) / steps) ** 0.5
    for shot in placed[:5]:
        reader = feed.readers[shot.identity]
        frame = reader.frame(int(np.flatnonzero(reader.index == shot.index)[0]))
        expected = torch.from_numpy(surroundings(frame.image, frame.alpha)).permute(2, 0, 1).float() / 255
        assert torch.equal(shot.surroundings, expected)  # type: ignore[arg-type]
