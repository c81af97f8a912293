"""Shut lips: from the least open frames, met half-way."""

from pathlib import Path

import numpy as np
import pytest
from made_shards import FRAMES, write_two

from fiag_dist.landmarks import LIPS
from fiag_dist.shards.reader import FrameReader
from fiag_dist.storage import open_storage
from fiag_dist.training.shut_lips import HARDLY_SHUT, SHUT, ShutLips, met


@pytest.fixture
def reader(tmp_path: Path) -> FrameReader:
    store = open_storage(tmp_path)
    return FrameReader(store, write_two(store).entry("anna"))


def test_shut_lips_meet_and_take_their_edges_along() -> None:
    lips = np.random.default_rng(0).normal(size=(len(LIPS), 3)).astype(np.float32)
    found = met(lips)
    upper, upper_edge, lower, lower_edge = (slice(9 * k, 9 * k + 9) for k in range(4))
    np.testing.assert_allclose(found[upper], found[lower], atol=1e-6)
    np.testing.assert_allclose(found[upper], (lips[upper] + lips[lower]) / 2, atol=1e-6)
    np.testing.assert_allclose(found[upper_edge] - lips[upper_edge], found[upper] - lips[upper], atol=1e-6)
    np.testing.assert_allclose(found[lower_edge] - lips[lower_edge], found[lower] - lips[lower], atol=1e-6)
    np.testing.assert_array_equal(found[36:], lips[36:])


def test_they_are_those_of_the_least_open_frames(reader: FrameReader) -> None:
    everything = np.arange(FRAMES)
    reader.mouth_open[:] = 0.2
    reader.mouth_open[[3, 8, 9]] = 0.004, 0.008, 0.01
    found = ShutLips(reader, everything)
    assert found.below == pytest.approx(SHUT)
    tracked = np.mean([reader.landmarks(p)[list(LIPS)] for p in (3, 8, 9)], 0)
    np.testing.assert_allclose(found.lips.numpy(), met(tracked.astype(np.float32)), atol=1e-5)


def test_a_mouth_that_never_shuts_is_shut_from_its_least_open_frame_and_is_never_taken_for_shut(
    reader: FrameReader,
) -> None:
    reader.mouth_open[:] = 0.2
    reader.mouth_open[5] = 0.1
    found = ShutLips(reader, np.arange(FRAMES))
    assert found.below == pytest.approx(HARDLY_SHUT)
    np.testing.assert_allclose(found.lips.numpy(), met(reader.landmarks(5)[list(LIPS)]), atol=1e-6)
