"""Head poses against known ones: a rigid random head, noisy landmarks, exact and wrong tracks."""

import dataclasses

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fiag_dist.ingest import adjustment, pose, rest, tracks
from fiag_dist.ingest.tracks import POSE_SIZE, Tracks
from fiag_dist.types import HEAD_ORIGIN_M

FOCAL = 4.7 * POSE_SIZE
K = np.array([[FOCAL, 0, POSE_SIZE / 2], [0, FOCAL, POSE_SIZE / 2], [0, 0, 1]])


@pytest.fixture(autouse=True)
def canonical(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A random half ellipsoid of 468 points in place of the model's face, so that no weights are needed."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(468, 3))
    points[:, 2] = np.abs(points[:, 2])
    points = points / np.linalg.norm(points, axis=1, keepdims=True) * [0.075, 0.1, 0.07]
    monkeypatch.setattr(pose, "canonical_vertices", lambda: points)
    monkeypatch.setattr(rest, "rest_start", lambda: np.concatenate([points, points[:10]]))
    return points


def moving_head(num_frames: int) -> np.ndarray:
    """Viewmats of a head that turns by up to 10 degrees and sways."""
    s = np.arange(num_frames) / 25
    turns = np.radians(np.column_stack([5 * np.sin(2 * s), 10 * np.sin(1.3 * s), 3 * np.sin(0.7 * s)]))
    viewmats = np.tile(np.eye(4), (num_frames, 1, 1))
    viewmats[:, :3, :3] = np.diag([1.0, -1, -1]) @ Rotation.from_rotvec(turns).as_matrix()
    viewmats[:, :3, 3] = np.column_stack([0.01 * np.sin(s), 0.008 * np.cos(1.7 * s), 2.0 + 0.03 * np.sin(0.9 * s)])
    return viewmats


def model_matrices(viewmats: np.ndarray, noise_deg: float, rng: np.random.Generator) -> np.ndarray:
    """What the landmark model would report: its own focal length, origin and axes, centimetres, and noise."""
    own = 0.5 * POSE_SIZE / np.tan(np.radians(31.5))
    flip = np.diag([1.0, -1, -1])
    R = (
        viewmats[:, :3, :3]
        @ Rotation.from_rotvec(np.radians(rng.normal(size=(len(viewmats), 3)) * noise_deg)).as_matrix()
    )
    t = viewmats[:, :3, 3] - R @ [0, HEAD_ORIGIN_M, 0]
    t[:, 2] *= own / FOCAL
    matrices = np.tile(np.eye(4), (len(viewmats), 1, 1))
    matrices[:, :3, :3], matrices[:, :3, 3] = flip @ R, t @ flip * 100
    return matrices


def observe(
    canonical: np.ndarray, viewmats: np.ndarray, rng: np.random.Generator, noise_px: float
) -> tuple[np.ndarray, list[Tracks]]:
    person = canonical * [1.04, 0.97, 1.03]
    landmarks = rest.project(np.tile(np.concatenate([person, person[:10]]), (len(viewmats), 1, 1)), viewmats, K)
    landmarks = landmarks + rng.normal(size=landmarks.shape) * noise_px
    hair = rng.normal(size=(60, 3))
    hair[:, 2] = np.abs(hair[:, 2])  # what a camera in front sees
    hair = hair / np.linalg.norm(hair, axis=1, keepdims=True) * 0.1 + [0, 0.02, -0.03]
    found = []
    for keyframe in range(20, len(viewmats), 40):
        first, last = max(0, keyframe - 50), min(len(viewmats), keyframe + 50)
        seen = rest.project(np.tile(hair, (last - first, 1, 1)), viewmats[first:last], K)
        seen[:, :5] += rng.normal(size=(last - first, 5, 2)) * 8  # tracks that slipped
        found.append(Tracks(keyframe, first, seen[keyframe - first], seen, np.ones(seen.shape[:2]), np.ones(60, bool)))
    return landmarks.astype(np.float32), found


def errors_deg(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Angle of each frame's rotation error after one rotation common to all (the head's own frame is a convention)."""
    difference = Rotation.from_matrix(found[:, :3, :3].transpose(0, 2, 1) @ true[:, :3, :3])
    return np.degrees((difference * difference.mean().inv()).magnitude())


def unsteadiness_deg(found: np.ndarray, true: np.ndarray) -> float:
    """How much the rotation error changes from frame to frame."""
    return float(np.abs(np.diff(errors_deg(found, true))).mean())


@pytest.mark.parametrize("window", [250, 60])
def test_poses_are_found(canonical: np.ndarray, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(pose, "WINDOW", window)
    monkeypatch.setattr(pose, "OVERLAP", 20)
    rng = np.random.default_rng(1)
    true = moving_head(120)
    landmarks, followed = observe(canonical, true, rng, noise_px=0.5)
    matrices = model_matrices(true, 0.5, rng)
    found = pose.solve(landmarks, matrices, followed, FOCAL)
    R, t = pose.start_poses(matrices, FOCAL)
    start = np.tile(np.eye(4), (120, 1, 1))
    start[:, :3, :3], start[:, :3, 3] = R, t
    # What is left is smooth: the prior holds the shape near the average face, which this person is not.
    assert np.median(errors_deg(found.viewmats, true)) < 0.6 * np.median(errors_deg(start, true))
    assert unsteadiness_deg(found.viewmats, true) < 0.1 < 0.3 * unsteadiness_deg(start, true)
    assert found.landmark_rms_px < 1.0
    assert found.track_median_px < 0.1


def beside(face: Tracks, hair: Tracks) -> Tracks:
    """Tracks of one keyframe, some on the face and some not."""
    parts = {
        name: np.concatenate([getattr(face, name), getattr(hair, name)], axis)
        for name, axis in (("points", 0), ("observed", 1), ("weights", 1))
    }
    return dataclasses.replace(face, **parts, on_face=np.concatenate([face.on_face, ~hair.on_face]))


@pytest.mark.parametrize("window", [250, 60])
def test_hair_that_swings_does_not_carry_the_face(
    canonical: np.ndarray, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(pose, "WINDOW", window)
    monkeypatch.setattr(pose, "OVERLAP", 20)
    rng = np.random.default_rng(8)
    true, s = moving_head(120), np.arange(120) / 25
    swung = np.tile(np.eye(4), (120, 1, 1))
    swung[:, :3, :3] = Rotation.from_rotvec(np.radians(np.outer(np.sin(9 * s), [2.0, 0, 2.0]))).as_matrix()
    landmarks, followed = observe(canonical, true, rng, noise_px=0.3)
    hair = observe(canonical, true @ swung, rng, noise_px=0.3)[1]
    matrices = model_matrices(true, 0.5, rng)
    found = pose.solve(landmarks, matrices, [beside(*both) for both in zip(followed, hair, strict=True)], FOCAL)
    whole = found.viewmats @ np.concatenate([found.swing, np.tile([[[0, 0, 0, 1.0]]], (120, 1, 1))], 1)
    assert errors_deg(found.viewmats, true).mean() < 0.5 * errors_deg(whole, true).mean()
    turns = Rotation.from_matrix(found.swing[:, :, :3]).as_rotvec(degrees=True)
    assert np.corrcoef(turns[:, 2], np.sin(9 * s))[0, 1] > 0.95
    rigid = pose.solve(landmarks, matrices, followed, FOCAL).swing
    moved = np.degrees(Rotation.from_matrix(rigid[:, :, :3]).magnitude())
    assert moved.max() < 0.2 < np.linalg.norm(turns, axis=1).max(), "hair that moves with the face does not swing"


def two_ways(canonical: np.ndarray, monkeypatch: pytest.MonkeyPatch, tracked: bool) -> tuple[np.ndarray, np.ndarray]:
    """Viewmats of the same 140 frames, solved at once and in windows of 60."""
    rng = np.random.default_rng(5)
    true = moving_head(140)
    landmarks, followed = observe(canonical, true, rng, noise_px=0.5)
    matrices = model_matrices(true, 0.5, rng)
    monkeypatch.setattr(pose, "OVERLAP", 20)
    solved = []
    for window in (140, 60):
        monkeypatch.setattr(pose, "WINDOW", window)
        solved.append(pose.solve(landmarks, matrices, followed if tracked else [], FOCAL).viewmats)
    return solved[0], solved[1]


def test_windows_meet_without_a_seam(canonical: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, in_windows = two_ways(canonical, monkeypatch, tracked=True)
    assert errors_deg(in_windows, at_once).max() < 0.6
    pixels = [FOCAL * found[:, :2, 3] / found[:, 2:3, 3] for found in (at_once, in_windows)]
    drift = pixels[1] - pixels[0]
    for seam in (40, 80):
        before, after = drift[seam - 20 : seam].mean(0), drift[seam + 20 : seam + 40].mean(0)
        assert np.abs(after - before).max() < 0.25, "pixels by which the head jumps where windows meet"


def test_windows_without_tracks_share_the_shape(canonical: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, in_windows = two_ways(canonical, monkeypatch, tracked=False)
    assert errors_deg(in_windows, at_once).max() < 0.2
    assert np.ptp(in_windows[:, 2, 3] / at_once[:, 2, 3]) < 5e-3


def test_tracks_help(canonical: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    true = moving_head(60)
    landmarks, followed = observe(canonical, true, rng, noise_px=1.0)
    matrices = model_matrices(true, 0.5, rng)
    alone, both = (pose.solve(landmarks, matrices, used, FOCAL).viewmats for used in ([], followed))
    assert unsteadiness_deg(both, true) < 0.5 * unsteadiness_deg(alone, true)


def test_neighbouring_poses_are_calm_and_jump_where_the_film_does(
    canonical: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(8)
    true = moving_head(80)
    true[40:, 0, 3] += 0.02  # seconds were cut out
    landmarks, _ = observe(canonical, true, rng, noise_px=1.0)
    matrices = model_matrices(true, 0.5, rng)

    def solved(splices: list[int]) -> np.ndarray:
        return pose.solve(landmarks, matrices, [], FOCAL, splices).viewmats

    def noise_deg(viewmats: np.ndarray) -> float:
        return max(pose.jitter(viewmats, FOCAL, [40])["rotation_deg"])

    def jump_m(viewmats: np.ndarray) -> float:
        return float(viewmats[40, 0, 3] - viewmats[39, 0, 3] - true[40, 0, 3] + true[39, 0, 3])

    calm, smeared = solved([40]), solved([])
    assert abs(jump_m(calm)) < 0.5 * abs(jump_m(smeared))
    monkeypatch.setattr(adjustment, "_CALM_WEIGHT", 0.0)
    assert noise_deg(calm) < 0.7 * noise_deg(solved([40]))


def test_detected_poses_are_where_the_model_saw_the_head(canonical: np.ndarray) -> None:
    rng = np.random.default_rng(9)
    true = moving_head(40)
    landmarks, _ = observe(canonical, true, rng, noise_px=0.0)
    exact = pose.detected(landmarks, model_matrices(true, 0.0, rng), FOCAL)
    rough = pose.detected(landmarks, model_matrices(true, 1.0, rng), FOCAL)
    assert errors_deg(exact.viewmats, true).max() < 1e-6
    assert exact.landmark_rms_px < rough.landmark_rms_px
    assert exact.num_tracks == 0


def test_tracks_come_as_soon_as_their_frames_have(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = []

    def followed(flow, keyframe, held, landmarks, frames):
        spans.append((min(held), max(held)))
        observed, weights = np.zeros((len(frames), 1, 2)), np.ones((len(frames), 1))
        return Tracks(keyframe, frames.start, np.zeros((1, 2)), observed, weights, np.ones(1, bool))

    monkeypatch.setattr(tracks, "_cut_out", lambda grey, landmarks, matte, number: number)
    monkeypatch.setattr(tracks, "_followed", followed)
    for name, value in (("KEYFRAME_STEP", 10), ("REACH", 20), ("ANCHOR_STEP", 8)):
        monkeypatch.setattr(tracks, name, value)
    given = []

    def grey():
        for i in range(100):
            given.append(i)
            yield np.zeros((4, 4), np.uint8)

    landmarks, mattes = np.zeros((100, 478, 2), np.float32), np.zeros((100, 4, 4), np.uint8)
    keyframes, anchored = [], []
    for part in tracks.follow(grey(), landmarks, mattes):
        low, high = spans[-1]
        assert len(given) == part.frames.stop
        assert high - low < 40, "no more is held than one keyframe needs"
        if part.keyframe in part.frames:
            assert low <= part.first
            keyframes.append(part.keyframe)
        else:
            assert (part.keyframe, part.weights.max()) == (5, 8)
            anchored.append(part.first)
    assert keyframes == list(range(5, 100, 10))
    assert anchored == list(range(40, 100, 8))


def test_the_first_keyframe_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    face = cv2.GaussianBlur(rng.integers(0, 255, (256, 256), dtype=np.uint8), (0, 0), 2)
    monkeypatch.setattr(tracks, "REACH", 4)
    monkeypatch.setattr(tracks, "KEYFRAME_STEP", 6)
    landmarks = np.tile(128 + rng.normal(size=(478, 2)).astype(np.float32) * 40, (31, 1, 1))
    landmarks[:, [10, 152]] = [128, 60], [128, 200]
    shifts = np.linspace(0, 6, 31)
    moved = [cv2.warpAffine(face, np.array([[1.0, 0, s], [0, 1, 0]]), (256, 256)) for s in shifts]
    landmarks[..., 0] += shifts[:, None].astype(np.float32)
    monkeypatch.setattr(tracks, "head_mask", lambda landmarks, size: np.ones((size, size), np.float32))
    found = list(tracks.follow(moved, landmarks, np.full((31, 256, 256), 255, np.uint8)))
    again = [part for part in found if part.keyframe not in part.frames]
    assert [part.first for part in again] == [10, 20, 30]
    for part in again:
        wanted = part.points + np.array([shifts[part.first] - shifts[3], 0])
        assert np.median(np.abs(part.observed[0] - wanted)) < 0.1


def test_what_is_seen_again_stops_drift(canonical: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Landmarks that slide off carry the pose along, less so where points of the first keyframe are seen again."""
    monkeypatch.setattr(pose, "WINDOW", 40)
    monkeypatch.setattr(pose, "OVERLAP", 10)
    rng = np.random.default_rng(7)
    true = moving_head(160)
    landmarks, followed = observe(canonical, true, rng, noise_px=0.5)
    matrices, first = model_matrices(true, 0.5, rng), followed[0]
    landmarks[80:, :, 0] += 2 * np.minimum(np.arange(80) / 40, 1)[:, None]
    seen = {t: part.observed[[t - part.first]] for part in followed for t in part.frames}
    weights = np.full((1, len(first.points)), float(tracks.ANCHOR_STEP))
    again = [Tracks(first.keyframe, t, first.points, seen[t], weights, first.on_face) for t in range(70, 160, 10)]

    def drift_px(given: list[Tracks]) -> float:
        given = sorted(given, key=lambda part: part.frames.stop)
        found = pose.solve(landmarks, matrices, given, FOCAL).viewmats
        apart = FOCAL * (found[:, 0, 3] / found[:, 2, 3] - true[:, 0, 3] / true[:, 2, 3])
        return float(abs(apart[120:].mean() - apart[:40].mean()))

    assert drift_px([*followed, *again]) < 0.9 * drift_px(followed)


def test_windows_take_tracks_as_they_need_them(canonical: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose, "WINDOW", 40)
    monkeypatch.setattr(pose, "OVERLAP", 10)
    rng = np.random.default_rng(4)
    true = moving_head(160)
    landmarks, every = observe(canonical, true, rng, noise_px=0.5)
    matrices = model_matrices(true, 0.5, rng)
    at_once = pose.solve(landmarks, matrices, every, FOCAL)
    one_by_one = pose.solve(landmarks, matrices, iter(every), FOCAL)
    np.testing.assert_array_equal(at_once.viewmats, one_by_one.viewmats)
    assert one_by_one.num_tracks == sum(len(part.points) for part in every)


def test_start_poses_undo_the_models_conventions() -> None:
    true = moving_head(10)
    R, t = pose.start_poses(model_matrices(true, 0.0, np.random.default_rng(0)), FOCAL)
    np.testing.assert_allclose(R, true[:, :3, :3], atol=1e-9)
    # The origin's shift is along the head's y axis at the model's own depth, so x and y agree, depth to the tilt of that axis.
    np.testing.assert_allclose(t[:, :2], true[:, :3, 3][:, :2], atol=1e-9)
    np.testing.assert_allclose(t[:, 2], true[:, 2, 3], rtol=0.02)


def test_jitter_sees_noise_and_not_uniform_motion() -> None:
    still = np.tile(np.eye(4), (50, 1, 1))
    still[:, 0, 3], still[:, 2, 3] = np.linspace(0, 0.1, 50), 2.0
    assert pose.jitter(still, FOCAL)["shift_px"] == [0.0, 0.0]
    still[:, 0, 3] += np.random.default_rng(0).normal(size=50) * 0.001
    assert pose.jitter(still, FOCAL)["shift_px"][0] == pytest.approx(0.001 * FOCAL / 2, rel=0.3)


def test_jitter_leaves_out_the_jump_of_a_splice() -> None:
    spliced = np.tile(np.eye(4), (50, 1, 1))
    spliced[:, 2, 3] = 2.0
    spliced[20:, 0, 3] = 0.05
    assert pose.jitter(spliced, FOCAL)["shift_px"][0] > 1
    assert pose.jitter(spliced, FOCAL, splices=[20])["shift_px"] == [0.0, 0.0]
    spliced[21, 0, 3] += 0.01
    assert pose.jitter(spliced, FOCAL, splices=[20])["shift_px"][0] > 0.1


def test_landmarks_project_back_onto_their_pixels(canonical: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    true = moving_head(30)
    landmarks, _ = observe(canonical, true, rng, noise_px=1.0)
    shape = rest.rest_shape(landmarks[:25], true[:25], K)
    points = rest.unproject(landmarks, true, K, shape)
    stored = points.astype(np.float16).astype(np.float32)  # as shards keep them
    assert np.abs(rest.project(stored, true, K) - landmarks[..., :2]).max() < 0.1
    assert np.abs(shape[:468] - canonical * [1.04, 0.97, 1.0])[:, :2].max() < 0.004
