"""Tables of a terminal: what stands whole, what may be folded, and on which side."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fiag_dist.tables import tabulate, text_of

TITLES = ("clip", "state", "frames", "gain over it", "note")
LONG = "a_name_of_forty_letters_without_a_blank_"
SAID = "a face in 3 of 10 frames; cut the clip to where the person is seen: ffmpeg -ss 3 -i in.mp4 out.mp4 [bold]"
ROWS = [("anna", "refused", "1250", "-3.91", ""), (LONG, "packed", "7", "+12.25", SAID)]


def lines(table: Table, width: int = 80) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_numbers_and_states_stand_whole_and_text_is_folded() -> None:
    found = lines(tabulate(TITLES, ROWS, title="Clips", folded=("clip", "note")))
    assert found[0] == "Clips"
    assert max(map(len, found)) <= 80
    text = "\n".join(found)
    for cell in ("refused", "1250", "-3.91", "packed", "+12.25"):
        assert cell in text
    first = next(number for number, line in enumerate(found) if line.startswith(" a_name"))
    assert LONG.startswith(found[first].split()[0])
    assert "".join(line[1:].split("  ")[0].strip() for line in found[first:]).startswith(LONG)
    words = " ".join(
        " ".join(line[line.find("+12.25") + 6 if "+12.25" in line else 40 :].split()) for line in found[first:]
    )
    assert all(word in words for word in ("ffmpeg", "in.mp4", "[bold]")), "text is no markup"


def test_where_there_is_room_nothing_is_folded() -> None:
    found = lines(tabulate(TITLES, ROWS, folded=("clip", "note")), width=200)
    assert found[-2].split(maxsplit=4) == [LONG, "packed", "7", "+12.25", SAID]


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    found = lines(tabulate(("name", "state", "MiB"), [("a", "ok", "1.5"), ("bert", "broken", "120.25")]))
    a, bert = found[-3], found[-2]
    assert a.index("ok") == bert.index("broken")
    assert len(a) == len(bert)


def test_a_row_may_stand_out_and_a_cell_may_have_a_colour() -> None:
    table = tabulate(("name", "state"), [("a", Text("ok", "green")), ("mean", "ok")], bold=("mean",))
    assert [row.style for row in table.rows] == [None, "bold"]
    console = Console(width=80, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(table)
    assert "\x1b[32mok" in capture.get()


def test_no_rows_are_a_head_and_a_text_has_no_blanks_at_its_ends() -> None:
    said = text_of(tabulate(("name", "MiB"), []))
    assert said.split() == ["name", "MiB", *[s for s in said.split() if "─" in s]]
    assert all(line == line.rstrip() for line in said.splitlines())
