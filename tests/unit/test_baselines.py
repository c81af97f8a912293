"""What heads are compared with: the frame that is chosen, and where its head is moved."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_identity as tiny
from scipy.spatial.transform import Rotation

from fiag_dist.evaluation import baselines
from fiag_dist.types import Frame, IdentityMeta


@pytest.fixture(scope="module")
def clip() -> tuple[IdentityMeta, list[Frame]]:
    return tiny.clip("ball")


def posed(meta: IdentityMeta, viewmats: list[np.ndarray], expressions: np.ndarray) -> IdentityMeta:
    """The clip with other poses and expressions, as many as there are."""
    num = len(viewmats)
    poses = {"viewmats": np.stack(viewmats), "swing": meta.swing[:num], "expressions": expressions.astype(np.float32)}
    return replace(meta, **poses, speech=np.zeros((num, 80, 4), np.float16), split=meta.split[:num])


def turned(degrees: float) -> np.ndarray:
    out = tiny.viewmat(12)
    out[:3, :3] = tiny.FRONT @ Rotation.from_rotvec([0, degrees, 0], degrees=True).as_matrix()
    return out


def test_the_nearest_pose_is_chosen_on_both_sides_of_the_front(clip) -> None:
    # A head that faces the camera is turned by about 180 degrees against it, where rotation vectors change their sign.
    degrees = np.linspace(-15, 15, 16)
    meta = posed(clip[0], [turned(d) for d in [*degrees, -4.9, 5.1]], np.zeros((18, 7)))
    found = baselines.nearest(meta, np.zeros(18, np.float32), np.arange(16), np.array([16, 17]))
    assert degrees[found].tolist() == [-5.0, 5.0]


def test_expression_decides_between_equal_poses(clip) -> None:
    expressions = np.zeros((6, 7), np.float32)
    expressions[:, 6] = 0, 0, 0.5, 1, 0, 0.9
    meta = posed(clip[0], [turned(d) for d in (-10, 0, 0, 0, 10, 0)], expressions)
    train, test = np.arange(5), np.array([5])
    assert baselines.nearest(meta, np.zeros(6, np.float32), train, test).tolist() == [3]
    opening = np.array([0, 0, 1, 0, 0, 1], np.float32)
    still = replace(meta, expressions=0 * expressions)
    assert baselines.nearest(still, opening, train, test).tolist() == [2]
    assert baselines.nearest(still, None, train, test).tolist() == [1]  # blind to the mouth: the first of equal poses


def test_only_training_frames_are_chosen(clip) -> None:
    meta, _ = clip
    train, test = np.arange(tiny.TRAIN), np.arange(tiny.TRAIN, tiny.TRAIN + tiny.TEST)
    found = baselines.nearest(meta, np.zeros(len(meta.split), np.float32), train, test)
    assert found.tolist() == [tiny.TRAIN - 1] * tiny.TEST  # the ball drifts one way


def test_warping_carries_image_and_mask_onto_the_other_head(clip) -> None:
    frames = clip[1]
    source, target = frames[4], frames[32]  # seven pixels apart
    moved = baselines.warped(source, target)
    on_head = target.alpha > 250
    inner = (
        on_head & np.roll(on_head, 3, 0) & np.roll(on_head, -3, 0) & np.roll(on_head, 3, 1) & np.roll(on_head, -3, 1)
    )
    assert np.abs(moved.alpha.astype(int) - target.alpha).max() <= 8
    assert np.abs(moved.image[inner].astype(int) - target.image[inner]).max() <= 4
    assert np.abs(source.image[inner].astype(int) - target.image[inner]).max() > 20


def test_pasting_blends_by_the_mask() -> None:
    image, backdrop = np.full((2, 2, 3), 200, np.uint8), np.full((2, 2, 3), 100, np.uint8)
    alpha = np.array([[0, 255], [51, 102]], np.uint8)
    assert baselines.Pasted(image, alpha).over(backdrop)[..., 0].tolist() == [[100, 200], [120, 140]]
