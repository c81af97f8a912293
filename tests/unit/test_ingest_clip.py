"""Whole clips: what comes out of a real one, and which are refused with a line."""

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from fiag_dist.config import PackConfig
from fiag_dist.errors import DataError
from fiag_dist.ingest import clip, rest, sync
from fiag_dist.ingest.clip import pack_clip
from fiag_dist.ingest.sheet import contact_sheet
from fiag_dist.media import video
from fiag_dist.media.sound import SAMPLE_RATE, read_audio
from fiag_dist.types import BOUND_M, Label


def write_clip(path: Path, image: np.ndarray, seconds: float, volume: float = 0.3) -> Path:
    tone = np.sin(np.arange(round(seconds * 16_000)) * 0.2).astype(np.float32) * volume
    with video.VideoWriter(path, image.shape[1], image.shape[0], 25, tone) as writer:
        for _ in range(round(seconds * 25)):
            writer.write(image)
    return path


@pytest.mark.weights
@pytest.mark.clips
def test_a_real_clip_becomes_samples(clips: Path) -> None:
    stages = []
    meta, frames = pack_clip(
        clips / "speaker_b.mp4", PackConfig(max_seconds=2.2), "b", lambda stage, share: stages.append(share)
    )
    samples = list(frames)
    assert len(samples) == len(meta.split) == len(meta.viewmats) == 55
    assert meta.split.count("test") == 5
    assert meta.split[-5:] == ["test"] * 5
    assert stages == sorted(stages)
    assert stages[-1] == 1.0
    assert len(meta.wav) == 55 * 640
    assert meta.speech.shape == (55, 384, 2)
    assert np.abs(meta.rest_landmarks).max() < BOUND_M
    assert meta.report["head_inside_bound"] > 0.99
    assert meta.report["pose"]["track_median_px_at_256"] < 0.6
    for frame in samples[::9]:
        assert set(np.unique(frame.labels)) >= {Label.BACKGROUND, Label.TORSO, Label.HAIR, Label.FACE, Label.LIPS}
        assert np.linalg.norm(frame.embedding) == pytest.approx(1, abs=1e-4)
        points = rest.project(
            frame.landmarks[None].astype(np.float32), frame.viewmat[None].astype(np.float64), frame.K.astype(np.float64)
        )[0]
        x0, y0, x1, y1 = frame.lips_rect
        lips = points[[61, 291, 0, 17]]
        assert np.all((lips > [x0, y0]) & (lips < [x1, y1]))
        assert frame.alpha[tuple(points[4].astype(int)[::-1])] == 255, "the nose is part of the head"
        np.testing.assert_array_equal(frame.audio[4], meta.speech[frame.index])
    assert contact_sheet(meta, samples[:3]).shape == (5 * 256, 3 * 256, 3)


def record(path: Path, images: list[np.ndarray], wav: np.ndarray) -> Path:
    with video.VideoWriter(path, 320, 320, 25, wav) as writer:
        for image in images:
            writer.write(cv2.resize(image, (320, 320), interpolation=cv2.INTER_AREA))
    return path


@pytest.mark.weights
@pytest.mark.clips
def test_a_splice_stays_in_and_a_cut_to_someone_else_ends_the_clip(clips: Path, tmp_path: Path) -> None:
    someone = list(islice(video.read_frames(clips / "speaker_d.mp4", 25), 20))
    spliced = list(
        islice(video.read_frames(clips / "anchor_a.mp4", 25), 160, 200)
    )  # seconds are missing before frame 176
    wav = read_audio(clips / "speaker_b.mp4")[: 60 * 640]
    path = record(tmp_path / "cuts.mp4", someone + spliced, wav)
    meta, frames = pack_clip(path, PackConfig(size=128, min_seconds=1, extractor="mel"), "cuts")
    assert (meta.report["start_s"], meta.report["seconds_used"]) == (0.8, 1.6)
    assert meta.report["splices_s"] == [1.44]
    assert meta.report["seconds_left_out"] == {"beyond a cut or a gap": 0.8}
    assert len(list(frames)) == 40


@pytest.mark.weights
@pytest.mark.clips
@pytest.mark.parametrize("fps", [25, 30])
def test_sound_that_is_late_is_found_and_moved(clips: Path, tmp_path: Path, fps: int) -> None:
    images = list(video.read_frames(clips / "speaker_h.mp4", 25))
    wav = read_audio(clips / "speaker_h.mp4")
    late = record(tmp_path / "late.mp4", images, np.pad(wav, (3200, 0))[: len(wav)])
    meta, frames = pack_clip(late, PackConfig(size=128, extractor="mel", fps=fps, poses="detected"), "late")
    frames.close()  # type: ignore[attr-defined]
    found = meta.report["sound"]
    assert found["fixed"]
    assert found["sure"]
    assert found["late_s"] == pytest.approx(0.2, abs=0.03)
    moved = round((found["late_s"] - 0.2) * 16_000)
    there = min(len(meta.wav), len(wav) - 3200) - 4000
    assert np.corrcoef(meta.wav[2000:there], wav[2000 + moved : there + moved])[0, 1] > 0.9, (
        "but for AAC the same samples"
    )


@pytest.mark.weights
@pytest.mark.clips
@pytest.mark.parametrize("early", [3200, -3200])
def test_frames_that_lose_their_sound_when_it_is_moved_are_left_out(clips: Path, tmp_path: Path, early: int) -> None:
    images = list(video.read_frames(clips / "speaker_h.mp4", 25))
    wav = read_audio(clips / "speaker_h.mp4")
    moved = wav[early:] if early > 0 else np.pad(wav, (-early, 0))[: len(images) * 640]
    path = record(tmp_path / "moved.mp4", images, moved)
    meta, frames = pack_clip(path, PackConfig(size=128, extractor="mel", poses="detected"), "moved")
    frames.close()  # type: ignore[attr-defined]
    assert meta.report["sound"]["fixed"]
    assert meta.report["seconds_left_out"]["without their sound"] == pytest.approx(0.2, abs=0.05)
    assert (meta.report["start_s"] > 0.1) == (early > 0), "early sound lacks its start, late sound its end"
    assert len(meta.wav) == len(meta.split) * 640
    assert np.abs(meta.wav[:640]).max() > 0


@pytest.mark.weights
@pytest.mark.clips
@pytest.mark.parametrize("extractor", ["mel", "file:{folder}/{stem}.npy"])
def test_sound_stays_where_it_is_when_asked_or_heard_by_others(clips: Path, tmp_path: Path, extractor: str) -> None:
    (tmp_path / "speaker_c.mp4").symlink_to(clips / "speaker_c.mp4")
    np.save(tmp_path / "speaker_c.npy", np.ones((100, 16, 29), np.float32))
    asked = extractor == "mel"
    settings = PackConfig(size=128, extractor=extractor, max_seconds=4, fix_sync=not asked, poses="detected")
    meta, frames = pack_clip(tmp_path / "speaker_c.mp4", settings, "c")
    frames.close()  # type: ignore[attr-defined]
    found = meta.report["sound"]
    assert found["sure"]
    assert not found["fixed"]
    assert found["late_s"] == pytest.approx(0.09, abs=0.03), "from the web, and late as it came"


@pytest.mark.clips
def test_a_clip_without_sound_is_refused(clips: Path) -> None:
    with pytest.raises(DataError, match=r"silent_l\.mp4: no audio track"):
        pack_clip(clips / "silent_l.mp4", PackConfig(), "l")


@pytest.mark.weights
@pytest.mark.clips
def test_two_people_and_short_clips_are_refused(clips: Path, tmp_path: Path) -> None:
    image = next(video.read_frames(clips / "speaker_b.mp4", 25))
    both = write_clip(tmp_path / "both.mp4", np.concatenate([image, image[:, ::-1]], axis=1), 0.6)
    with pytest.raises(DataError, match=r"both\.mp4: two faces of similar size"):
        pack_clip(both, PackConfig(), "both")
    short = write_clip(tmp_path / "short.mp4", image, 0.6)
    with pytest.raises(DataError, match=r"short\.mp4: 0\.6 s usable, 2 s needed"):
        pack_clip(short, PackConfig(), "short")


@pytest.mark.weights
def test_a_clip_without_a_face_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "noise.mp4", noise, 0.5)
    with pytest.raises(DataError, match=r"noise\.mp4: a face in 0 of 2 sampled frames") as caught:
        pack_clip(path, PackConfig(), "noise")
    assert "\n" not in str(caught.value)


def test_sound_is_read_as_far_as_the_frames_that_are_used_can_need(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "long.mp4", np.zeros((64, 64, 3), np.uint8), 5.0)
    assert len(clip._sound(path, 1.5)) == 2.5 * SAMPLE_RATE
    assert len(clip._sound(path, 0.0)) == pytest.approx(5.0 * SAMPLE_RATE, abs=2048)
    assert sync.MOST_S < clip.SOUND_MARGIN_S, "sound that is late is moved by so much"


def test_unreadable_silent_and_missing_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    quiet = write_clip(tmp_path / "quiet.mp4", np.zeros((64, 64, 3), np.uint8), 0.5, volume=0.0)
    for path, message in ((text, "can't be read"), (quiet, "is silent"), (tmp_path / "absent.mp4", "no such file")):
        with pytest.raises(DataError, match=message):
            pack_clip(path, PackConfig(), "x")
