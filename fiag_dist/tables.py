"""Tables for a terminal: numbers, states and names of things stand whole; only what may be folded takes several lines when there is little room."""

from collections.abc import Collection, Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

Cell = str | Text


def tabulate(
    titles: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    title: str = "",
    folded: Collection[str] = (),
    bold: Collection[str] = (),
) -> Table:
    """A table whose numbers stand to the right, and words to the left. Strings are shown as they are.

    folded: titles of the columns whose text may be broken. bold: rows that stand out, by their first cell.
    """
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), min_width=len(title))
    for number, heading in enumerate(titles):
        is_folded, texts = heading in folded, [row[number].plain for row in cells]
        is_text = is_folded or any(text[:1].isalpha() for text in texts)
        whole = heading.split() if is_folded else [*heading.split(), *(line for t in texts for line in t.splitlines())]
        width = max(map(len, whole))
        out.add_column(
            heading,
            justify="left" if is_text else "right",
            overflow="fold",
            width=None if is_folded else width,
            min_width=width,
        )
    for row in cells:
        out.add_row(*row, style="bold" if row[0].plain in bold else None)
    return out


def text_of(table: Table) -> str:
    """The table as lines, as wide as the terminal, or 80 characters where there is none."""
    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
