"""How hypothesis draws: the same examples in every run, so that a failure is a change's and not the day's."""

from hypothesis import settings


def repeatable(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None)
