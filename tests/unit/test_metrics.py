"""Each metric on what its answer is known for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_identity as tiny

from fiag_dist.errors import ConfigError, DataError, WeightsError
from fiag_dist.ingest.expression import BLENDSHAPES
from fiag_dist.ingest.face import find_crop
from fiag_dist.landmarks import (
    LEFT_EYE_INNER,
    LEFT_EYE_OUTER,
    LEFT_IRIS,
    LIDS,
    LIPS_INNER,
    LIPS_OUTER,
    RIGHT_EYE_INNER,
    RIGHT_EYE_OUTER,
    RIGHT_IRIS,
)
from fiag_dist.media.video import read_frames
from fiag_dist.metrics import action_units, likeness, lipsync, motion
from fiag_dist.metrics.encoded import ThroughVideo
from fiag_dist.metrics.faces import FaceFinder, Seen
from fiag_dist.metrics.panel import ALL, Look, Panel
from fiag_dist.metrics.perceptual import Perceptual, at_least
from fiag_dist.metrics.regions import Truth

SHAPES = sorted(
    {name for units in (action_units.UPPER, action_units.LOWER) for names in units.values() for name in names}
)
FPS = 25


def face(
    opening: float = 0.1, lids: float = 0.1, eyes_px: float = 50.0, looking: float = 0.0, **blendshapes: float
) -> Seen:
    """A face whose mouth and eyes are open so far, in distances between the eyes, and which looks so far to its left, in widths of an eye."""
    points = np.zeros((478, 2))
    points[LEFT_EYE_OUTER] = eyes_px, 0
    for (upper, lower), gap in (((13, 14), opening), *((pair, lids) for pair in LIDS)):
        points[upper], points[lower] = (20, 40), (20, 40 + gap * eyes_px)
    points[RIGHT_EYE_OUTER] = 0
    points[[RIGHT_EYE_INNER, LEFT_EYE_INNER], 0] = 0.3 * eyes_px, 0.7 * eyes_px
    points[[RIGHT_IRIS[0], LEFT_IRIS[0]], 0] = (np.array([0.15, 0.85]) + 0.3 * looking) * eyes_px
    return Seen(points, dict.fromkeys(SHAPES, 0.0) | blendshapes)


# ---- regions and LPIPS


def test_each_region_sees_only_its_own_error() -> None:
    frame = tiny.clip("ball")[1][0]
    truth = Truth.of(frame)
    wrong = frame.image.copy()
    wrong[~truth.head] = np.clip(wrong[~truth.head].astype(int) - 51, 0, 255).astype(np.uint8)
    assert truth.psnr(wrong)["head_psnr_db"] == 100.0
    assert truth.psnr(wrong)["full_psnr_db"] < 20
    wrong = frame.image.copy()
    wrong[truth.head] ^= 16  # every value of the head is off by 16
    scores = truth.psnr(wrong)
    assert scores["head_psnr_db"] == pytest.approx(20 * np.log10(255 / 16), abs=1e-4)
    share = truth.head.mean()
    assert scores["full_psnr_db"] == pytest.approx(20 * np.log10(255 / 16) - 10 * np.log10(share), abs=1e-4)
    x0, y0, x1, y1 = frame.lips_rect
    wrong = frame.image.copy()
    wrong[y0:y1, x0:x1] ^= 16
    assert truth.psnr(wrong)["mouth_psnr_db"] == pytest.approx(20 * np.log10(255 / 16), abs=1e-4)
    assert truth.ssim(frame.image) == pytest.approx({"head_ssim": 1, "full_ssim": 1}, abs=1e-5)
    assert truth.ssim(wrong)["head_ssim"] < truth.ssim(wrong)["full_ssim"] < 0.999


def test_a_frame_without_a_head_is_scored_as_a_whole() -> None:
    frame = replace(tiny.clip("ball")[1][0], alpha=np.zeros((tiny.SIZE, tiny.SIZE), np.uint8))
    scores = Truth.of(frame).psnr(frame.image ^ 16)
    assert scores["head_psnr_db"] == scores["full_psnr_db"] < 30


def test_a_span_grows_inside_its_image() -> None:
    assert at_least(slice(10, 20), 35, 64) == slice(0, 35)
    assert at_least(slice(50, 60), 35, 64) == slice(29, 64)
    assert at_least(slice(20, 31), 35, 64) == slice(8, 43)
    assert at_least(slice(3, 60), 35, 64) == slice(3, 60)


@pytest.mark.weights
def test_lpips_sees_the_head_alone_and_the_whole() -> None:
    frame = tiny.clip("ball")[1][0]
    truth, perceptual = Truth.of(frame), Perceptual()
    assert perceptual.scores(frame.image, truth) == pytest.approx({"head_lpips": 0, "full_lpips": 0}, abs=1e-6)
    wrong = frame.image.copy()
    wrong[: truth.head_box[0].start] = np.random.default_rng(0).integers(0, 255, wrong.shape[1:], np.uint8)
    scores = perceptual.scores(wrong, truth)
    assert scores["head_lpips"] < 1e-6 < 0.05 < scores["full_lpips"]


# ---- a face that moves


def test_a_track_is_compared_by_correlation_and_by_slope() -> None:
    true = np.array([0.1, 0.3, 0.2, 0.0, 0.4, 0.2])
    assert motion.agreement(0.5 * true + 7, true, 0.01) == pytest.approx((1.0, 0.5))
    assert motion.agreement(-true, true, 0.01) == pytest.approx((-1.0, -1.0))
    assert motion.agreement(0 * true, true, 0.01) == (0.0, 0.0)  # a still mouth follows nothing
    assert motion.agreement(true, 0.04 * true, 0.01) == (None, None)  # the truth is still
    assert motion.agreement(true[:4], true[:4], 0.01) == (None, None)


def test_mouth_and_eyes_are_measured_by_the_distance_of_the_eyes() -> None:
    faces = [face(0.2, 0.05, eyes_px=80), face(0.4, 0.1, eyes_px=20)]
    assert motion.openings(faces) == pytest.approx([0.2, 0.4])
    assert motion.lid_gaps(faces) == pytest.approx([0.05, 0.1])


def test_scores_over_the_frames_in_which_both_faces_were_found() -> None:
    openings, lids = np.linspace(0, 0.3, 8), np.linspace(0.1, 0, 8) ** 2 * 10
    true = [face(o, e) for o, e in zip(openings, lids, strict=True)]
    mine = [face(o / 2, e) for o, e in zip(openings, lids, strict=True)]
    scores = motion.scores([None, *mine], [true[3], *true], 512)
    assert scores["mouth_opening_correlation"] == pytest.approx(1)
    assert scores["mouth_opening_slope"] == pytest.approx(0.5)
    assert scores["eye_closure_slope"] == pytest.approx(1)
    nobody = motion.scores([None] * 8, true, 512)
    assert set(nobody) == set(scores)
    assert all(value is None for value in nobody.values())


def test_gaze_is_compared_while_the_true_eyes_are_open() -> None:
    looks, shut = np.array([0.0, 0.1, -0.1, 0.05, 0.9, 0.0, -0.05]), np.arange(7) == 4
    true = [face(lids=0.01 if s else 0.1, looking=x) for x, s in zip(looks, shut, strict=True)]
    mine = [face(looking=0.0 if s else 0.5 * x) for x, s in zip(looks, shut, strict=True)]
    scores = motion.scores(mine, true, 256)
    assert scores["gaze_correlation"] == pytest.approx(1)
    assert scores["gaze_slope"] == pytest.approx(0.5)


def test_lmd_is_in_pixels_at_512_and_knows_no_shift() -> None:
    true = face()
    moved = true.landmarks + np.array([5.0, -3.0])
    lips = [*LIPS_OUTER, *LIPS_INNER]
    assert motion.lip_distance([(Seen(moved, {}), true)], 256) == pytest.approx(0)
    moved[lips[0], 1] += 4
    # The mean of 40 points moves by 0.1, so one is 3.9 off and the others 0.1; twice that at 512.
    assert motion.lip_distance([(Seen(moved, {}), true)], 256) == pytest.approx(2 * (3.9 + 39 * 0.1) / 40)


def test_action_units_are_scored_by_the_blendshapes_that_they_drive_faces_with() -> None:
    assert list(action_units.UPPER) == ["AU01", "AU02", "AU04", "AU05", "AU06", "AU07", "AU09", "AU45"]
    assert {unit: names for unit, names in action_units.UPPER.items() if unit != "AU09"} == BLENDSHAPES


def test_action_units_are_squared_errors_of_intensities() -> None:
    pairs = [(face(eyeBlinkLeft=0.4, eyeBlinkRight=0.2, jawOpen=0.2), face()), (face(), face())]
    scores = action_units.scores(pairs)
    assert scores["aue_upper_intensity2"] == pytest.approx((5 * 0.3) ** 2 / 8 / 2)
    assert scores["aue_lower_intensity2"] == pytest.approx((5 * 0.2) ** 2 / 9 / 2)
    assert set(action_units.scores([]).values()) == {None}


def test_likeness_is_a_cosine_to_the_same_frame_and_to_everybody() -> None:
    a, b = np.eye(2, 128, dtype=np.float32)
    both = (a + b) / np.sqrt(2, dtype=np.float32)
    scores = likeness.scores([a, both, None], [a, a, a], {"a": a, "b": b})
    assert scores["identity_cosine"] == pytest.approx((1 + 0.5**0.5) / 2)
    assert scores["identity_cosine_to"] == pytest.approx({"a": (1 + 0.5**0.5) / 2, "b": 0.5**0.5 / 2})
    assert likeness.scores([None], [a], {"a": a}) == {"identity_cosine": None}


# ---- our own lip-sync score


def voices(seed: int, frames: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Speech features [frames, 8, 2] one of which is how far the lips are open, and that, smooth."""
    rng = np.random.default_rng(seed)
    smooth = np.convolve(rng.normal(size=frames + 8), np.hanning(9), "valid")
    track = rng.normal(size=(frames, 8, 2))
    track[:, 3] = smooth[:, None]
    return track.astype(np.float16), smooth


def test_a_judge_learns_openings_and_finds_the_lag() -> None:
    people = [voices(seed) for seed in range(6)]
    judge = lipsync.Judge([track for track, _ in people], [0.02 * opening + 0.1 for _, opening in people])
    track, opening = voices(77)
    expected = judge.openings(track)
    assert np.corrcoef(expected, opening)[0, 1] > 0.9
    late = lipsync.match(np.roll(opening, 3), expected, FPS)
    assert late.lag_s == pytest.approx(3 / FPS)
    assert late.score > 0.9
    assert lipsync.match(np.roll(opening, -5), expected, FPS).lag_s == pytest.approx(-5 / FPS)
    chance = lipsync.rolled(opening, expected, FPS)
    assert len(chance) == lipsync.ROLLS
    assert chance.max() < 0.6 < late.score
    other = lipsync.match(voices(78)[1], expected, FPS)
    assert other.score < 0.6
    assert lipsync.match(np.full(300, 0.1), expected, FPS).score == 0  # a still mouth


def test_a_judge_needs_something_to_learn_from() -> None:
    track, opening = voices(0, 40)
    with pytest.raises(DataError, match="40 true frames to learn from, 100 needed"):
        lipsync.Judge([track], [opening])


# ---- through H.264, and the panel


def test_frames_come_back_from_a_video_in_order_and_not_quite_the_same() -> None:
    frames = tiny.clip("ball")[1][:6]
    with ThroughVideo(tiny.SIZE, FPS) as video:
        for frame in frames:
            video.write(255 - frame.image, frame.image)
        pairs = list(video.pairs())
    assert len(pairs) == 6
    for frame, (render, truth) in zip(frames, pairs, strict=True):
        errors = [
            float(np.abs(a.astype(int) - b).mean()) for a, b in ((truth, frame.image), (render, 255 - frame.image))
        ]
        assert all(0 < error < 8 for error in errors)


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(ConfigError, match="'sharpness': unknown; choose from psnr, ssim, lpips"):
        Panel(["psnr", "sharpness"])


def test_a_panel_measures_what_was_chosen() -> None:
    frame = tiny.clip("ball")[1][0]
    with Panel(["psnr"]) as panel:
        looks = [panel.look(frame.image ^ n, Truth.of(frame), perceptual=True, face=True) for n in (16, 32)]
        numbers = panel.numbers(looks, [Look(), Look()], tiny.SIZE)
    assert set(numbers) == {"head_psnr_db", "full_psnr_db", "mouth_psnr_db"}
    assert numbers["full_psnr_db"] == pytest.approx(20 * np.log10(255) - 10 * np.log10(16 * 32), abs=1e-4)


def test_what_cannot_be_measured_is_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FIAG_WEIGHTS", str(tmp_path))
    with Panel(ALL) as panel:
        assert panel.names == ["psnr", "ssim"]
        assert not panel.sees_faces
    assert [line.partition(" (")[0] for line in panel.left_out] == [
        "left out: lpips",
        "left out: lmd, mouth, eyes, aue, identity, speech, sync",
    ]
    assert "fiag-dist weights fetch" in panel.left_out[0]
    with pytest.raises(WeightsError, match="lpips-alex"):
        Panel(["lpips"], strict=True)


def test_without_the_landmark_library_the_command_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mediapipe", None)  # importing it fails
    with Panel(["psnr", "lmd"]) as panel:
        assert panel.names == ["psnr"]
    assert panel.left_out == ["left out: lmd (need what packing clips needs; run: bash launch/install.sh ingest)"]
    with pytest.raises(ConfigError, match=r"metrics lmd need .* bash launch/install.sh ingest"):
        Panel(["lmd"], strict=True)


@pytest.mark.weights
@pytest.mark.clips
def test_a_real_face_is_found_and_known_again(clips: Path) -> None:
    video = clips / "anchor_a.mp4"
    first, *_, last = read_frames(video, 5, 2.0)
    crop = find_crop([first, last], video.name)
    images = [crop.cut(image, 256) for image in (first, last)]
    with Panel(["lmd", "mouth", "identity"], strict=True) as panel:
        looks = [panel.look_at_truth(image, embed=True) for image in images]
        numbers = panel.numbers(looks, looks[::-1], 256)
        same = panel.numbers(looks, looks, 256)
    assert all(look.face is not None for look in looks)
    assert 0.9 < numbers["identity_cosine"] < same["identity_cosine"] == pytest.approx(1)
    assert 0 == same["lmd_px_at_512"] < numbers["lmd_px_at_512"] < 10
    assert same["mouth_opening_correlation"] is None  # of two frames


@pytest.mark.weights
def test_no_face_where_there_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    with FaceFinder() as finder:
        assert finder.find(tiny.picture(0)[0]) is None
    assert capfd.readouterr().err == ""
