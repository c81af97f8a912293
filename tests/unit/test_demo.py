"""Demo identities: what the shards say about a frame is what the picture shows, and the mouth follows the voice."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from fiag_dist.errors import ConfigError, DataError
from fiag_dist.landmarks import LIPS_OUTER
from fiag_dist.shards.manifest import Manifest, read_manifest
from fiag_dist.shards.reader import iter_frames, read_meta
from fiag_dist.storage import open_storage
from fiag_dist.types import BOUND_M, Frame, IdentityMeta, Label

sys.path.insert(0, str(Path(__file__).parents[2] / "shards"))
import demo_head
import demo_paint
import make_demo

SIZE = 128
DEMO = make_demo.Demo(seconds=2.0, size=SIZE, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("demo"))
    make_demo.make_demo(out, 2, DEMO, jobs=1)
    return out


@pytest.fixture(scope="module")
def manifest(folder: str) -> Manifest:
    return read_manifest(folder)


@pytest.fixture(scope="module")
def frames(folder: str, manifest: Manifest) -> list[Frame]:
    return list(iter_frames(open_storage(folder), manifest.entry("demo_01")))


@pytest.fixture(scope="module")
def meta(folder: str, manifest: Manifest) -> IdentityMeta:
    return read_meta(open_storage(folder), manifest.entry("demo_01"))


def pixels(frame: Frame) -> np.ndarray:
    camera = frame.landmarks.astype(np.float64) @ frame.viewmat[:3, :3].T + frame.viewmat[:3, 3]
    return camera[:, :2] / camera[:, 2:] * frame.K[0, 0] + frame.K[:2, 2]


def hits(mask: np.ndarray, at: np.ndarray, reach: int) -> np.ndarray:
    """Whether each point lies on the mask or at most `reach` pixels from it."""
    near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8))
    x, y = np.floor(at).astype(int).T
    return near[y.clip(0, SIZE - 1), x.clip(0, SIZE - 1)] > 0


def test_landmarks_lie_on_what_they_name(frames: list[Frame]) -> None:
    for frame in frames[::4]:
        at = pixels(frame)
        lips = np.isin(frame.labels, [Label.LIPS, Label.MOUTH])
        assert hits(lips, at[list(LIPS_OUTER)], 1).mean() >= 0.9
        assert hits(frame.labels == Label.FACE, at[[1, 4, 9, 151, 6]], 0).all()
        assert hits(frame.labels >= Label.HAIR, at, 1).all()
        dark = frame.image.sum(-1) < frame.image[frame.labels == Label.FACE].sum(-1).mean() * 0.8
        if frame.blink < 0.3:
            assert hits(dark, at[[468, 473]], 1).all(), "the irises are dark"
        x0, y0, x1, y1 = frame.lips_rect
        inside = np.zeros_like(lips)
        inside[y0:y1, x0:x1] = True
        assert not (lips & ~inside).any()


def test_an_open_mouth_shows_its_inside_and_a_closed_one_does_not(frames: list[Frame]) -> None:
    inside = np.array([(f.labels == Label.MOUTH).sum() for f in frames])
    gap = np.array([f.mouth_open for f in frames])
    assert gap.max() > 0.12
    assert gap.min() < 0.02
    assert inside[gap < 0.01].max(initial=0) <= 4
    assert np.corrcoef(inside, gap)[0, 1] > 0.9
    widest = frames[int(gap.argmax())]
    assert hits(widest.labels == Label.MOUTH, pixels(widest)[[13, 14]].mean(0)[None], 0).all()


def test_mouth_follows_the_voice(frames: list[Frame], meta: IdentityMeta) -> None:
    samples = meta.wav.reshape(len(frames), -1)
    loudness = np.sqrt((samples**2).mean(1))
    gap = np.array([f.mouth_open for f in frames])
    by_lag = {lag: np.corrcoef(np.roll(loudness, lag)[4:-4], gap[4:-4])[0, 1] for lag in range(-3, 4)}
    assert by_lag[0] > 0.6
    assert max(by_lag, key=lambda lag: by_lag[lag]) == 0


def test_alpha_and_labels_tell_the_same_head(frames: list[Frame]) -> None:
    for frame in frames[::10]:
        head = frame.labels >= Label.HAIR
        assert ((frame.alpha >= 128) == head).mean() > 0.995
        assert set(np.unique(frame.labels)) >= {Label.BACKGROUND, Label.TORSO, Label.HAIR, Label.FACE, Label.LIPS}
        assert 0.60 < np.ptp(np.flatnonzero(head.any(1))) / SIZE < 0.85


def test_the_head_turns_and_the_torso_does_not(frames: list[Frame], meta: IdentityMeta) -> None:
    moved = np.stack([f.image for f in frames]).std(0).mean(-1)
    assert moved[-6:].max() < 3  # JPEG noise at most
    assert moved[frames[0].labels == Label.FACE].mean() > 6
    looks = meta.viewmats[:, :3, 2]
    turned = np.degrees(np.arccos(np.clip(looks @ [0, 0, -1], -1, 1)))
    assert 2 < turned.max() < 20


def test_the_plate_is_the_wall_behind(frames: list[Frame], meta: IdentityMeta) -> None:
    wall = frames[0].labels == Label.BACKGROUND
    wall = cv2.erode(wall.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert np.abs(frames[0].image[wall].astype(int) - meta.plate[wall]).mean() < 2


def test_rest_shape_is_the_median_of_training_landmarks(frames: list[Frame], meta: IdentityMeta) -> None:
    train = np.stack([f.landmarks for f in frames if f.split == "train"]).astype(np.float32)
    np.testing.assert_allclose(meta.rest_landmarks, np.median(train, 0), atol=1e-4)
    assert meta.split.count("test") == round(len(frames) / 11)
    assert meta.split[-1] == "test"


@pytest.mark.parametrize("number", range(4))
def test_heads_stay_inside_the_bound(number: int) -> None:
    person = demo_head.make_person(number, 3)
    for patch in demo_paint.build(person, number):
        if not patch.fixed:
            reach = np.abs(patch.rest) if patch.moves is None else np.abs(patch.rest + patch.moves[0])
            assert reach.max() < BOUND_M
    assert np.abs(demo_head.Landmarks(person)(np.ones(6))).max() < BOUND_M


def test_identities_differ(folder: str, manifest: Manifest) -> None:
    metas = [read_meta(open_storage(folder), entry) for entry in manifest.identities]
    assert metas[0].embedding @ metas[1].embedding < 0.5
    assert np.abs(metas[0].thumbnail.astype(int) - metas[1].thumbnail).mean() > 10
    assert np.abs(metas[0].rest_landmarks - metas[1].rest_landmarks).max() > 1e-3


def test_made_again_it_keeps_what_is_whole_and_mends_what_is_not(folder: str, manifest: Manifest) -> None:
    paths = [Path(folder, manifest.entry(name).shards[0].file) for name in ("demo_00", "demo_01")]
    paths[1].write_bytes(paths[1].read_bytes()[:1000])
    before = paths[0].stat().st_mtime_ns
    again = make_demo.make_demo(folder, 2, DEMO, jobs=1)
    assert again == manifest == read_manifest(folder)
    assert paths[0].stat().st_mtime_ns == before


def test_mistakes(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ConfigError, match="at least 1 identity"):
        make_demo.make_demo(str(tmp_path), 0, DEMO)
    text = open_storage(folder).read("manifest.json").replace(b"make_demo.py:", b"clips/")
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(DataError, match="holds demo_00, which is not from"):
        make_demo.make_demo(str(tmp_path), 1, DEMO)
    assert make_demo.main(["--out", str(tmp_path), "--seconds", "0.1"]) == 2
    assert "make_demo.py: " in capsys.readouterr().err
