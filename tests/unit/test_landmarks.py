"""Landmark numbers have one home, and its lists fit one another."""

import ast
from collections.abc import Iterator
from pathlib import Path

import fiag_dist
from fiag_dist import landmarks
from fiag_dist.types import NUM_LANDMARKS

HOUSE = Path(fiag_dist.__file__).parent
OTHERS = [path for path in sorted(HOUSE.rglob("*.py")) if path != HOUSE / "landmarks.py"]


def names(tree: ast.Module) -> set[str]:
    """What a file gives a value at its top."""
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def lists(tree: ast.Module) -> Iterator[list[int]]:
    """Five numbers and more that stand in a row and could be landmarks."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple | ast.List | ast.Set) and len(node.elts) >= 5:
            values = [item.value for item in node.elts if isinstance(item, ast.Constant)]
            numbers = [value for value in values if type(value) is int]
            if len(numbers) == len(node.elts) and min(numbers) >= 0 and 100 <= max(numbers) < NUM_LANDMARKS:
                yield numbers


def test_no_other_file_numbers_landmarks() -> None:
    home, wrong = names(ast.parse((HOUSE / "landmarks.py").read_text())), []
    for path in OTHERS:
        tree = ast.parse(path.read_text())
        wrong += [f"{path.name}: {name} means another thing in landmarks.py" for name in sorted(names(tree) & home)]
        wrong += [f"{path.name}: {numbers} belong into landmarks.py" for numbers in lists(tree)]
    assert not wrong


def test_lists_fit_one_another() -> None:
    for few, many in (
        (landmarks.ALIGNED, landmarks.RIGID),
        (landmarks.OVAL_SIDES, landmarks.RIGID),
        (landmarks.OVAL_SIDES, landmarks.FACE_OVAL),
    ):
        assert set(few) < set(many)
        assert len(set(few)) == len(few)
    assert tuple(range(landmarks.NUM_VERTICES, NUM_LANDMARKS)) == landmarks.IRISES
    assert not set(landmarks.RIGID) & set(landmarks.LIPS_AND_LIDS) - {33, 133, 263, 362}, "corners of the eyes alone"
