"""What a head is put over: the frame without it."""

import numpy as np
import pytest

from fiag_dist.acting import backdrop
from fiag_dist.acting.backdrop import behind, surroundings

SIZE = 40


def frame() -> tuple[np.ndarray, np.ndarray]:
    """A picture of noise, and a soft disc in it for a head."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(x - 18, y - 22)
    return rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8), (np.clip(10 - distance, 0, 1) * 255).astype(np.uint8)


def test_surroundings_are_the_frame_around_the_head_and_its_nearest_pixels_inside() -> None:
    image, alpha = frame()
    found, filled = surroundings(image, alpha), behind(image, alpha)
    hole = (filled != image).any(2)
    assert hole[alpha > 2].mean() > 0.99, "noise: hardly a pixel is filled with its own colour"
    assert np.array_equal(found[~hole], image[~hole])
    known = np.argwhere(~hole)
    for y, x in np.argwhere(alpha > 2):
        squared = np.square(known - (y, x)).sum(1)
        near = known[squared <= (squared.min() ** 0.5 + 1) ** 2]  # the 3 x 3 chamfer distance is not exact
        assert any(np.array_equal(found[y, x], image[v, u]) for v, u in near)


def test_nothing_but_a_head_stands_before_black() -> None:
    image, _ = frame()
    assert not surroundings(image, np.full((SIZE, SIZE), 255, np.uint8)).any()


def test_what_was_filled_in_once_is_not_filled_in_again(monkeypatch: pytest.MonkeyPatch) -> None:
    (image, alpha), calls = frame(), []
    images = [image, image[::-1].copy(), image[:, ::-1].copy()]
    wanted = [behind(image, alpha) for image in images]
    monkeypatch.setattr(backdrop, "behind", lambda image, alpha: calls.append(1) or behind(image, alpha))
    filled = backdrop.Filled(room=2 * 3 * int(backdrop._hole(alpha).sum()))
    for _ in range(3):
        for key, (image, right) in enumerate(zip(images, wanted, strict=True)):
            before = image.copy()
            np.testing.assert_array_equal(filled.behind(key, image, alpha), right)
            np.testing.assert_array_equal(image, before)
    assert len(calls) == 2 + 3, "there is room for two; the third is filled in each time, and drives nobody out"
