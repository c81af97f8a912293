"""Masks, expression channels, usable spans, background plate and embeddings in time."""

import numpy as np
import pytest

from fiag_dist.ingest import backdrop, expression, masks, span
from fiag_dist.ingest.face import Crop, Face
from fiag_dist.ingest.identity import nearest_in_time
from fiag_dist.landmarks import FACE_OVAL, LEFT_LOBE, LIPS_INNER, LIPS_OUTER, RIGHT_LOBE
from fiag_dist.types import EXPRESSION_NAMES, Label

SIZE = 128


def ring(centre: tuple[float, float], radii: tuple[float, float], count: int) -> np.ndarray:
    """Points around an ellipse, the first one at the top."""
    angle = np.arange(count) / count * 2 * np.pi
    return np.column_stack([centre[0] + radii[0] * np.sin(angle), centre[1] - radii[1] * np.cos(angle)])


def face_points(shift: tuple[float, float] = (0.0, 0.0), gap: float = 4.0) -> np.ndarray:
    """Landmarks of a frontal face of 50 px height in a crop of SIZE; `gap` is half the inner lips' opening."""
    points = np.full((478, 3), SIZE / 2, np.float32)
    points[list(FACE_OVAL), :2] = ring((64, 70), (18, 25), len(FACE_OVAL))
    points[[RIGHT_LOBE, LEFT_LOBE], 1] = 75
    points[list(LIPS_OUTER), :2] = ring((64, 84), (9, gap + 3), len(LIPS_OUTER))
    points[list(LIPS_INNER), :2] = ring((64, 84), (7, gap), len(LIPS_INNER))
    points[13, :2], points[14, :2] = (64, 84 - gap), (64, 84 + gap)
    points[33, :2], points[263, :2] = (52, 62), (76, 62)
    points[:, :2] += shift
    return points


def person() -> np.ndarray:
    """A head of hair around the face, and shoulders."""
    y, x = np.mgrid[:SIZE, :SIZE]
    head = ((x - 64) / 24) ** 2 + ((y - 64) / 36) ** 2 < 1
    return np.where(head | ((y > 100) & (np.abs(x - 64) < 55)), 255, 0).astype(np.uint8)


def test_each_part_has_its_label() -> None:
    built = masks.build(face_points(), person())
    at = {
        (64, 84): Label.MOUTH,
        (64, 78): Label.LIPS,
        (64, 65): Label.FACE,
        (64, 35): Label.HAIR,
        (20, 115): Label.TORSO,
        (5, 5): Label.BACKGROUND,
    }
    for (x, y), label in at.items():
        assert built.labels[y, x] == label, (x, y)
    assert built.alpha[115, 20] == 0, "shoulders are no head"
    assert built.alpha[98, 64 + 20] == 0, "nor is what hangs beside the jaw"
    assert built.alpha[35, 64] == built.alpha[65, 64] == 255
    assert np.any((built.alpha > 20) & (built.alpha < 235)), "edges are soft"


def test_the_face_belongs_to_the_head_where_the_matte_fails() -> None:
    assert masks.build(face_points(), np.zeros((SIZE, SIZE), np.uint8)).alpha[65, 64] == 255


def test_the_lip_rectangle_holds_the_lips_and_stays_inside() -> None:
    x0, y0, x1, y1 = masks.build(face_points(), person()).lips_rect
    assert x0 <= 55
    assert x1 >= 73
    assert y0 <= 77
    assert y1 >= 91
    x0, y0, x1, y1 = masks.build(face_points(shift=(300, 300)), person()).lips_rect
    assert 0 <= x0 < x1 <= SIZE
    assert 0 <= y0 < y1 <= SIZE


def test_mouth_opening_is_relative_to_the_eyes() -> None:
    assert expression.mouth_open(face_points(gap=0)) == 0
    assert expression.mouth_open(face_points(gap=4)) == pytest.approx(8 / 24)
    assert expression.mouth_open(face_points(gap=4) * 3) == pytest.approx(8 / 24)


def blendshapes(**values: float) -> dict[str, float]:
    names = [
        f"{n}{s}"
        for n in ("browOuterUp", "browDown", "eyeWide", "cheekSquint", "eyeSquint", "eyeBlink")
        for s in ("Left", "Right")
    ]
    return dict.fromkeys([*names, "browInnerUp"], 0.0) | values


def test_channels_are_scaled_by_the_training_part() -> None:
    frames = [
        blendshapes(eyeBlinkLeft=0.5 * (i % 2), eyeBlinkRight=0.5 * (i % 2), browInnerUp=0.01) for i in range(100)
    ]
    frames += [blendshapes(eyeBlinkLeft=1.0, eyeBlinkRight=1.0)] * 10
    found = expression.channels(frames, num_train=100)
    blink, brow = EXPRESSION_NAMES.index("AU45"), EXPRESSION_NAMES.index("AU01")
    assert found.shape == (110, len(EXPRESSION_NAMES))
    assert found[1, blink] == pytest.approx(1)
    assert found[105, blink] == pytest.approx(1.2), "test frames may exceed the training range a little"
    assert found[0, brow] == pytest.approx(0.2), "a channel that hardly moves is not blown up"
    assert expression.blink(frames[1]) == pytest.approx(0.5)


def tracked(shift: tuple[float, float] = (0, 0)) -> Face:
    return Face(face_points(shift), {}, np.eye(4))


def test_the_longest_run_without_cut_or_gap_is_used() -> None:
    faces: list[Face | None] = [tracked()] * 10 + [None] * 3 + [tracked()] * 20 + [tracked((40, 0))] * 15
    found = span.longest(faces, [0.0] * len(faces))
    assert (found.first, found.stop) == (13, 33)
    assert found.left_out == {"no face": 3, "beyond a cut or a gap": 25}
    changed = [0.0] * len(faces)
    changed[20] = 80.0  # the same place, another picture
    assert (span.longest(faces, changed).first, span.longest(faces, changed).stop) == (33, 48)


def test_no_face_at_all_gives_an_empty_span() -> None:
    assert len(span.longest([None] * 5, [0.0] * 5)) == 0
    assert len(span.longest([], [])) == 0


def test_difference_sees_a_cut() -> None:
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    assert span.difference(image, None) == 0
    assert span.difference(image + 100, image) == 100


def test_the_plate_shows_what_is_behind_the_person() -> None:
    rng = np.random.default_rng(0)
    behind = np.tile((np.arange(SIZE) * 1.5).astype(np.uint8)[None, :, None], (SIZE, 1, 3))
    images, mattes = np.tile(behind, (20, 1, 1, 1)), np.zeros((20, SIZE, SIZE), np.uint8)
    for i in range(20):
        x = 10 + 4 * i
        images[i, 40:, x : x + 20], mattes[i, 40:, x : x + 20] = rng.integers(0, 255, 3), 255
    found = backdrop.plate(images, mattes).astype(int)
    assert np.abs(found - behind).mean() < 1
    mattes[:, 60:, 50:70], images[:, 60:, 50:70] = 255, 0  # never seen
    found = backdrop.plate(images, mattes).astype(int)
    assert np.abs(found - behind)[60:, 50:70].mean() < 30, "filled in from around, not left black"


def test_embeddings_come_from_the_nearest_frame() -> None:
    known = {0: np.array([1.0, 0], np.float32), 10: np.array([0, 1.0], np.float32)}
    assert nearest_in_time(known, 12)[:, 1].tolist() == [0] * 6 + [1] * 6


def test_a_crop_is_the_same_square_resampled() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:40, 30:50] = 200
    assert (Crop(30, 20, 20).cut(image, 64) == 200).all()
    assert Crop(20, 10, 40).cut(image, 20).mean() == pytest.approx(50, abs=1)
