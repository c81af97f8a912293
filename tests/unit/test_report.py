"""The tables of an evaluation say what was measured, and no more."""

import io

import pytest
from rich.console import Console

from fiag_dist.evaluation import report


def metrics(head: float, lmd: float | None = None) -> dict:
    warped, blind = {"head_psnr_db": head - 2}, {"lmd_px_at_512": None if lmd is None else 2.0}
    return {
        "name": "x",
        "head_psnr_db": head,
        "lmd_px_at_512": lmd,
        "baselines": {"nearest_warped": warped, "mouth_blind_warped": blind},
    }


def line(text: str, start: str, table: int = 0) -> list[str]:
    found = [row for row in text.splitlines() if row.startswith(f"| {start} ")]
    return [cell.strip() for cell in found[table].strip("|").split("|")]


def test_only_columns_with_numbers_and_a_mean_of_those_there_are() -> None:
    rows = [("a", report.row_of(metrics(30.0, 1.0), metrics(29.0))), ("b", report.row_of(metrics(32.0, 4.0)))]
    text = report.markdown(rows, ["remark"])
    assert line(text, "identity") == ["identity", "head", "from scratch", "nearest + warp", "gain over it"]
    assert line(text, "a") == ["a", "30.00", "29.00", "28.00", "+2.00"]
    assert line(text, "b") == ["b", "32.00", "", "30.00", "+2.00"]
    assert line(text, "mean") == ["mean", "31.00", "29.00 (1)", "29.00", "+2.00"]
    assert "Speech" not in text
    assert text.endswith("remark\n")


def test_a_ratio_of_means_is_no_mean_of_ratios() -> None:
    still, lively = metrics(30.0, 3.0), metrics(30.0, 3.0)
    still["baselines"]["mouth_blind_warped"]["lmd_px_at_512"] = 0.25
    lively["baselines"]["mouth_blind_warped"]["lmd_px_at_512"] = 7.75
    text = report.markdown([("a", report.row_of(still)), ("b", report.row_of(lively))], [])
    assert line(text, "a", 1)[-1] == "12.00"
    assert line(text, "mean", 1)[-1] == "0.75"


def test_a_mean_is_of_those_who_have_the_number_and_says_how_many() -> None:
    half = metrics(30.0, 1.0)
    half["baselines"]["mouth_blind_warped"]["lmd_px_at_512"] = None
    rows = [(name, report.row_of(row)) for name, row in {"a": half, "b": metrics(32.0, 3.0)}.items()]
    text = report.markdown(rows, [])
    assert line(text, "mean", 1) == ["mean", "2.00", "2.00 (1)", "1.50 (1)"]
    shown = io.StringIO()
    for table in report.tables(rows):
        Console(file=shown, width=80).print(table)
    assert "1.50\n" in shown.getvalue().replace(" ", "")


def test_one_identity_has_no_mean_and_no_matrix() -> None:
    row = report.row_of(metrics(30.0) | {"identity_cosine_to": {"a": 0.9, "b": 0.5}})
    text = report.markdown([("a", row)], [])
    assert "mean" not in text
    assert "Likeness:" not in text


def test_the_matrix_counts_rows_that_their_own_clip_wins() -> None:
    cosines = {"a": {"a": 0.9, "b": 0.5}, "b": {"a": 0.8, "b": 0.7}}
    rows = [(name, report.row_of(metrics(30.0) | {"identity_cosine_to": to})) for name, to in cosines.items()]
    text = report.markdown(rows, [])
    assert "nearest to its own clip in 1 of 2 rows" in text
    assert line(text, "b", 1) == ["b", "**0.800**", "0.700"]


def test_those_who_were_compared_with_other_people_are_in_no_matrix() -> None:
    """Two folders that were evaluated apart, in one."""
    cosines = {"a": {"a": 0.9, "b": 0.5}, "b": {"a": 0.8, "b": 0.7}, "c": {"c": 0.9}}
    rows = [(name, report.row_of(metrics(30.0) | {"identity_cosine_to": to})) for name, to in cosines.items()]
    assert "Likeness:" not in report.markdown(rows, [])


@pytest.mark.parametrize(("number", "value"), [(0, 33.333), (1, 2.345), (2, 0.891)])
def test_a_terminal_of_80_columns_shows_every_table_whole(number: int, value: float) -> None:
    columns = [column for column in report.GROUPS[number].columns if column.screen]
    row = {column.key: value for column in columns}
    (table,) = report.tables([("halfbody_i", row), ("speaker_c", row)])
    shown = io.StringIO()
    Console(file=shown, width=80).print(table)
    assert "…" not in shown.getvalue()
    for column in columns:
        for word in column.title.split():
            assert word in shown.getvalue()
