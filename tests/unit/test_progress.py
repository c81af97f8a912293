"""How long the rest of a run takes."""

import pytest

from fiag_dist.monitoring import progress
from fiag_dist.monitoring.progress import Pace, clock_text


class Hand:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Hand:
    hand = Hand()
    monkeypatch.setattr(progress, "time", hand)
    return hand


def test_the_rest_goes_as_fast_as_what_was_done_here(clock: Hand) -> None:
    pace = Pace(steps=100)
    clock.now += 300  # to start and to compile costs no speed
    assert pace.left(40) == ""
    clock.now += 30
    assert pace.left(60) == "0:01:00"
    assert pace.left(100) == "0:00:00"


def test_steps_without_images_are_a_lower_bound_and_then_forgotten(clock: Hand) -> None:
    pace = Pace(steps=100, unrendered=50)
    assert pace.left(0) == ""
    clock.now += 5
    assert pace.left(10) == "over 0:00:45"
    clock.now += 20
    assert pace.left(50) == ""
    clock.now += 20
    assert pace.left(60) == "0:01:20"


def test_a_run_that_goes_on_behind_them_has_none(clock: Hand) -> None:
    pace = Pace(steps=100, unrendered=50)
    assert pace.left(60) == ""
    clock.now += 10
    assert pace.left(70) == "0:00:30"


def test_a_run_of_unknown_length_says_nothing(clock: Hand) -> None:
    pace = Pace(steps=0)
    assert pace.left(0) == ""
    clock.now += 10
    assert pace.left(5) == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.9, "0:00:00"), (61, "0:01:01"), (36_000, "10:00:00")])
def test_clocks_have_hours(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text
