"""Ranks that all distributed tests share: starting them takes seconds, using them milliseconds."""

from collections.abc import Iterator

import pytest
from ranks import Ranks


@pytest.fixture(scope="session")
def two() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def one() -> Iterator[Ranks]:
    ranks = Ranks(1, launched=False)
    yield ranks
    ranks.close()
