"""Masks, expression channels, usable spans, background plate and embeddings in time."""

import os
import tempfile

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fiag_dist import landmarks
from fiag_dist.errors import DataError
from fiag_dist.ingest import backdrop, expression, masks, span, sync
from fiag_dist.ingest.face import Crop, Face
from fiag_dist.ingest.identity import nearest_in_time
from fiag_dist.ingest.spool import Spool
from fiag_dist.landmarks import FACE_OVAL, LEFT_LOBE, LIPS_INNER, LIPS_OUTER, RIGHT_LOBE
from fiag_dist.types import EXPRESSION_NAMES, GAZE, Label

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
    units = np.stack([expression.raw(frame) for frame in frames])
    blinks = [expression.blink(frame) for frame in frames]
    found = expression.channels(units, np.tile(face_points(), (110, 1, 1)), blinks, num_train=100)
    blink, brow = EXPRESSION_NAMES.index("AU45"), EXPRESSION_NAMES.index("AU01")
    assert found.shape == (110, len(EXPRESSION_NAMES))
    assert found[1, blink] == pytest.approx(1)
    assert found[105, blink] == pytest.approx(1.2), "test frames may exceed the training range a little"
    assert found[0, brow] == pytest.approx(0.2), "a channel that hardly moves is not blown up"
    assert expression.blink(frames[1]) == pytest.approx(0.5)


def test_gaze_is_seen_by_the_irises_whatever_the_size_and_tilt_of_the_head() -> None:
    def looking(left: float, up: float, turned_deg: float = 0.0, size: float = 1.0) -> np.ndarray:
        points = np.zeros((478, 2))
        points[[33, 133, 362, 263], 0] = [-45, -15, 15, 45]  # eyes are 30 wide
        for iris, middle in ((468, -30), (473, 30)):
            points[iris] = middle + 30 * left, -30 * up
        c, s = np.cos(np.radians(turned_deg)), np.sin(np.radians(turned_deg))
        return size * points @ np.array([[c, s], [-s, c]]) + 100

    frames = np.stack([looking(0.1, 0.02), looking(0.1, 0.02, turned_deg=30), looking(-0.05, 0, 10, 3.0)])
    np.testing.assert_allclose(landmarks.gaze(frames), [[0.1, 0.02], [0.1, 0.02], [-0.05, 0]], atol=1e-9)
    looks = [0.04, 0.04, 0.09, 0.04, 0.5]
    clip = np.stack([looking(left, 0.03) for left in looks]).astype(np.float32)
    shut = [0.0, 0.0, 0.0, 0.0, 0.9]
    found = expression.channels(np.zeros((5, 7), np.float32), clip, shut, num_train=5)
    columns = [EXPRESSION_NAMES.index(name) for name in GAZE]
    np.testing.assert_allclose(found[:, columns], [[0, 0], [0, 0], [1, 0], [0, 0], [2, 0]], atol=1e-4)


def faced(x: float = 0.0, height: float = 50.0, changed: float = 1.0, behind: float = 0.2) -> span.Look:
    return span.Look("", x, 0.0, height, changed, behind)


GONE = span.Look("no face")


def test_the_longest_run_without_cut_or_gap_is_used() -> None:
    looks = [faced()] * 10 + [GONE] * 3 + [faced()] * 20 + [faced(x=40)] * 15
    found = span.longest(looks)
    assert (found.first, found.stop) == (13, 33)
    assert found.left_out == {"no face": 3, "beyond a cut or a gap": 25}
    looks[20] = faced(changed=80.0)  # the same place, another picture
    assert (span.longest(looks).first, span.longest(looks).stop) == (33, 48)


def test_every_reason_is_counted() -> None:
    away, two = span.Look("turned away"), span.Look("a second face")
    found = span.longest([faced()] * 30 + [away] * 4 + [two] * 2 + [faced()] * 5 + [GONE])
    assert (found.first, found.stop) == (0, 30)
    assert found.left_out == {"turned away": 4, "a second face": 2, "no face": 1, "beyond a cut or a gap": 5}


def test_a_splice_is_reported_and_a_cut_ends_the_run() -> None:
    looks = [faced(changed=1 + 0.5 * (i % 3)) for i in range(60)]
    looks[40] = faced(changed=15, behind=2)  # the head jumps, what is behind it stays
    found = span.longest(looks)
    assert (len(found), found.splices) == (60, (40,))
    looks[40] = faced(changed=15, behind=9)  # what is behind it changes, too
    found = span.longest(looks)
    assert (found.first, found.stop, found.splices) == (0, 40, ())


def test_fast_motion_is_neither_cut_nor_splice() -> None:
    changed = [1, 1, 4, 9, 15, 17, 14, 8, 3, 1, 1]
    found = span.longest([faced(changed=c, behind=c / 3) for c in changed])
    assert (len(found), found.splices) == (len(changed), ())


def test_no_face_at_all_gives_an_empty_span() -> None:
    assert len(span.longest([GONE] * 5)) == 0
    assert len(span.longest([])) == 0


def face_at(turned_deg: float = 0.0, second: bool = False) -> Face:
    """A face 50 cm in front of the camera that looks `turned_deg` past it."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("y", turned_deg, degrees=True).as_matrix()
    matrix[2, 3] = -50
    return Face(face_points(), {}, matrix, second)


def test_a_look_says_why_a_frame_is_no_good() -> None:
    image, matte = np.zeros((SIZE, SIZE, 3), np.uint8), person()

    def reason(face: Face | None) -> str:
        return span.look(face, image, matte, None).reason

    assert reason(None) == "no face"
    assert reason(face_at()) == reason(face_at(-50)) == ""
    assert reason(face_at(70)) == reason(face_at(-70)) == "turned away"
    assert reason(face_at(second=True)) == "a second face"


def test_a_look_tells_the_person_from_what_is_behind() -> None:
    image, matte = np.zeros((SIZE, SIZE, 3), np.uint8), person()
    assert span.look(face_at(), image, matte, None).changed == 0
    moved = np.where(matte[..., None] > 0, 100, 0).astype(np.uint8).repeat(3, axis=2)
    found = span.look(face_at(), moved, matte, (image, matte))
    assert found.behind == 0
    assert found.changed == pytest.approx(100 * (matte > 0).mean(), rel=0.1)
    assert span.look(face_at(), image + 100, matte, (image, matte)).behind == 100


def test_a_full_disk_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_RDWR)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: os.fdopen(full, "r+b"))
    picture, spool = np.zeros((16, 16), np.uint8), Spool(16)
    spool.append(picture)  # still in the buffer
    with pytest.raises(DataError, match=r"can't hold what packing puts aside \(No space left on device\)"):
        spool.append(picture)
    spool.close()


def test_a_spool_gives_back_what_it_was_given() -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (5, 16, 16), dtype=np.uint8)
    with Spool(16) as spool:
        for picture in pictures:
            spool.append(picture)
        for i in (3, 0, 4):
            np.testing.assert_array_equal(spool[i], pictures[i])
        assert len(spool) == 5


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


def test_of_a_run_what_lies_elsewhere_is_left_out_with_its_reason() -> None:
    use = span.Span(10, 60, {"no face": 10}, splices=(12, 30))
    assert span.within(use, 0, 100, "without their sound") == use
    less = span.within(use, 13, 55, "without their sound")
    assert (less.first, less.stop, less.splices) == (13, 55, (30,))
    assert less.left_out == {"no face": 10, "without their sound": 8}
    nothing = span.within(use, 70, 90, "without their sound")
    assert len(nothing) == 0
    assert nothing.left_out["without their sound"] == 50


def test_frames_keep_their_sound_where_it_is_moved() -> None:
    wav = np.ones(4 * 16_000, np.float32)
    assert sync.covered(sync.corrected(wav, 0.1, 16_000), 0.1, 16_000, 25) == (0, 97)
    assert sync.covered(sync.corrected(wav, -0.1, 16_000), -0.1, 16_000, 25) == (3, 102)
    assert sync.corrected(wav, -0.1, 16_000)[3 * 640] == 1
    assert sync.corrected(wav, -0.1, 16_000)[2 * 640] == 0
