"""Every command that the documents give for an identity is one that its program takes."""

import re
from pathlib import Path

import pytest
import tyro

from fiag_dist.export import ExportCommand
from fiag_dist.identity_info import InfoCommand
from fiag_dist.render import RenderCommand
from fiag_dist.view import ViewCommand

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {"render": RenderCommand, "export": ExportCommand, "identity info": InfoCommand, "view": ViewCommand}


def commands(text: str) -> list[str]:
    """Lines of fenced blocks and code in running text that call one of PROGRAMS with something."""
    running, fenced = (text.split("```")[first::2] for first in (0, 1))
    lines = [line for block in fenced for line in block.splitlines()]
    spans = [code for part in running for code in re.findall(r"`([^`\n]+)`", part)]
    return [code for code in (*lines, *spans) if re.match(rf"fiag-dist ({'|'.join(PROGRAMS)}) [^.]", code)]


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOUND = [(path, command) for path in DOCUMENTS for command in commands(path.read_text())]


def test_the_documents_show_every_program() -> None:
    for name in PROGRAMS:
        for path in (ROOT / "README.md", ROOT / "docs" / "render.md"):
            assert any(command.startswith(f"fiag-dist {name} ") for at, command in FOUND if at == path), (path, name)


@pytest.mark.parametrize(("path", "command"), FOUND, ids=[command for _, command in FOUND])
def test_a_command_of_the_documents_is_understood(path: Path, command: str) -> None:
    name = next(name for name in PROGRAMS if command.startswith(f"fiag-dist {name} "))
    words = command.removeprefix(f"fiag-dist {name} ").split()
    try:
        tyro.cli(PROGRAMS[name], args=words)
    except SystemExit as error:
        raise AssertionError(f"{path.name}: {command} is refused") from error


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_explains_every_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    program = PROGRAMS[name]
    with pytest.raises(SystemExit) as ended:
        tyro.cli(program, args=["--help"])
    assert ended.value.code == 0
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert program.__doc__
    assert program.__doc__.split(":")[0] in said
    explained = re.split(r"(?<![-\w])--[a-z][a-z-]*", said.split("options", 1)[-1])[1:]
    assert all(text == ", " or len(text) > 25 for text in explained), explained
