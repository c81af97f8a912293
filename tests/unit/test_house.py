"""The house keeps its order: imports point one way, heavy libraries have one door each, files stay small, and no command is promised in vain."""

import ast
import re
from pathlib import Path

import pytest

from fiag_dist import config
from fiag_dist.cli import COMMANDS
from fiag_dist.configfile import from_yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fiag_dist"
SOURCES = sorted(PACKAGE.rglob("*.py"))
NAMES = {path: path.relative_to(PACKAGE).as_posix() for path in SOURCES}

# A file imports only from rows above its own; a folder is one room, whose files may import one another as long as there is no circle.
ROWS = (
    ("errors", "memory"),
    ("ending", "types", "landmarks", "tables"),
    ("config",),
    ("storage", "cluster", "stages"),
    ("configfile",),
    ("weights", "media"),
    ("ingest",),
    ("shards",),
    ("kernels",),
    ("images",),
    ("model",),
    ("acting",),
    ("dist",),
    ("monitoring",),
    ("training",),
    ("metrics",),
    ("viewing",),
    ("evaluation",),
    ("adaptation", "pretraining"),
    ("pack",),
    ("pretrain", "adapt", "evaluate"),
    ("export", "view", "render", "identity_info", "runs"),
    ("bench",),
    ("doctor",),
    ("cli",),
)
ROW = {room: number for number, row in enumerate(ROWS) for room in row}
FOLDERS = {path.parent.name for path in SOURCES if path.parent != PACKAGE}

# Library -> the only files that may import it: a change of backend then touches one file.
DOORS = {
    "gsplat": {"images/raster.py"},
    "tinycudann": {"model/grid.py"},
    "deepspeed": {"dist/engine.py"},
    "c2pa": {"acting/credentials.py"},
    "viser": {"viewing/page.py"},
    "s3fs": {"storage/s3.py"},
    "fsspec": {"storage/s3.py"},
    "botocore": {"storage/s3.py"},
}


def imported(path: Path) -> list[str]:
    """Full dotted names of what a file imports, those inside functions too; `from a import b` gives `a.b`."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write fiag_dist.{node.module}"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def own_imports(path: Path) -> set[Path]:
    """Files of the package that a file imports."""
    found = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "fiag_dist":
            continue
        for length in range(len(parts), 1, -1):
            target = PACKAGE.joinpath(*parts[1:length])
            if target.with_suffix(".py").is_file():
                found.add(target.with_suffix(".py"))
                break
            if (target / "__init__.py").is_file():
                found.add(target / "__init__.py")
                break
    return found


@pytest.mark.parametrize("path", SOURCES, ids=NAMES.get)
def test_imports_point_up_the_house(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        assert not own_imports(path)
        return
    room = room_of(path)
    assert room in ROW, f"fiag_dist/{NAMES[path]} has no row in the house: give it one in ROWS and in CONTRIBUTING.md"
    for target in own_imports(path):
        other = room_of(target)
        same_folder = other == room and room in FOLDERS
        assert same_folder or ROW[other] < ROW[room], (
            f"{NAMES[path]} imports {NAMES[target]}, which lies below or beside it"
        )


def test_no_import_circles() -> None:
    done: set[Path] = set()

    def visit(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, "circle: " + " -> ".join(NAMES[step] for step in (*way, path))
        if path not in done:
            for target in own_imports(path):
                visit(target, (*way, path))
            done.add(path)

    for path in SOURCES:
        visit(path, ())


def test_the_packers_board_imports_nothing() -> None:
    """Its actor has a process of its own, which would load torch for it."""
    assert not imported(PACKAGE / "shards" / "board.py")


@pytest.mark.parametrize("path", SOURCES, ids=NAMES.get)
def test_heavy_libraries_have_one_door(path: Path) -> None:
    for name in imported(path):
        allowed = DOORS.get(name.split(".")[0])
        assert allowed is None or NAMES[path] in allowed, f"{NAMES[path]} imports {name}; only {', '.join(allowed)} may"


@pytest.mark.parametrize("path", SOURCES, ids=NAMES.get)
def test_files_are_small_and_named_for_their_job(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 350, f"{NAMES[path]} is longer than 350 lines: split it by job"
    assert path.stem not in ("utils", "helpers", "common", "misc"), f"{NAMES[path]}: a name that says nothing"
    assert ast.get_docstring(ast.parse(text)) or (path.name == "__init__.py" and not text.strip()), (
        f"{NAMES[path]} says not what it is"
    )


@pytest.mark.parametrize("path", [path for path in SOURCES if "__main__" in path.read_text()], ids=NAMES.get)
def test_modules_that_run_meet_mistakes_alike(path: Path) -> None:
    text = path.read_text()
    assert "guarded(" in text, f'{NAMES[path]}: end with  if __name__ == "__main__": sys.exit(guarded(main))'


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_configs_load_with_the_command_of_their_first_line(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    command = re.match(r"# .*(?:fiag_dist\.|fiag-dist |launch/)(pretrain|adapt)\b", first)
    assert command, f"{path.name}: the first line must be a comment with the command that runs it, got {first!r}"
    assert f"configs/{path.name}" in first, f"{path.name}: its command names another file: {first!r}"
    cls = {"pretrain": config.PretrainConfig, "adapt": config.AdaptConfig}[command[1]]
    assert isinstance(from_yaml(cls, path), cls)


def test_documents_name_only_what_exists() -> None:
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", path.read_text(), flags=re.DOTALL))
        for command in re.findall(r"fiag-dist ([a-z]+)", code):
            assert command in COMMANDS, f"{path.name} promises `fiag-dist {command}`, which is no command"
        for file in re.findall(r"(?:launch|configs|docs|shards|tests)/[\w/]+\.\w+", code):
            assert (ROOT / file).exists(), f"{path.name} names {file}, which is not there"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_module(name: str) -> None:
    path = PACKAGE.joinpath(*COMMANDS[name].module.split(".")).with_suffix(".py")
    assert path.is_file(), f"fiag-dist {name}: fiag_dist/{path.relative_to(PACKAGE)} is missing"
    functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert "main" in functions, f"fiag_dist/{path.relative_to(PACKAGE)} has no main(argv)"
