"""`fiag-dist bench` as tests call it."""

import json

import pytest

from fiag_dist import cli


def measured(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    """What a benchmark prints, which must be one JSON object and nothing else."""
    assert cli.main(["bench", *words]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command ends that was a mistake."""
    assert cli.main(["bench", *words]) == 2
    out, error = capsys.readouterr()
    assert not out
    return error.splitlines()[-1]
