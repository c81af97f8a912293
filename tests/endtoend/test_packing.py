"""Packing through the command line: a folder of everything that can be wrong, full disks, and kills at any moment."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import clipmaker
import cv2
import numpy as np
import pytest
from commands import ROOT, fiag_dist
from scipy.spatial.transform import Rotation

from fiag_dist.shards.manifest import AudioFormat, read_manifest
from fiag_dist.shards.reader import iter_frames, read_meta
from fiag_dist.shards.writer import wav_bytes
from fiag_dist.storage import open_storage
from fiag_dist.types import EXPRESSION_NAMES, Frame, IdentityMeta

QUICK = ("--extractor", "mel", "--size", "128", "--min-seconds", "0.7", "--jobs", "1")
SECONDS = 1.2

REFUSED = {
    "empty": "can't be read as video or audio",
    "text": "can't be read as video or audio",
    "no_sound": "no audio track",
    "no_picture": "no video track",
    "silent": "its audio track is silent",
    "short": "0.4 s usable, 0.7 s needed",
    "tiny": "8x8 pixels, 64 needed",
    "slow": "5 frames a second, 12 needed",
    "nobody": "a face in 0 of",
    "turned_over": "a face in 0 of",
    "loop": "Too many levels of symbolic links",
    "unreadable": "Input/output error",
    "truncated": "can't be read as video or audio",
    "twin": "2 clips have this name",
}
PACKED = {"fast": 30, "large": 20, "phone": 30, "Zoe_Muller": 30, "deep": 30}
"""Frames of each that is usable."""


@pytest.fixture(scope="module")
def cut(clips: Path) -> tuple[list[np.ndarray], np.ndarray]:
    return clipmaker.frames_of(clips / "speaker_b.mp4", SECONDS)


@pytest.fixture(scope="module")
def everything(cut: tuple[list[np.ndarray], np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good clips and bad ones."""
    images, wav = cut
    folder = tmp_path_factory.mktemp("everything")
    good = clipmaker.write(folder / "Zoë Müller.mp4", images, wav)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video")
    (folder / "notes.txt").write_text("not even named like one")
    clipmaker.write(folder / "no_sound.mp4", images[:10], None)
    clipmaker.write_sound(folder / "no_picture.mp4", wav)
    clipmaker.write(folder / "silent.mp4", images[:10], np.zeros_like(wav))
    clipmaker.write(folder / "short.mp4", images[:10], wav)
    clipmaker.write(folder / "tiny.mp4", [cv2.resize(image, (8, 8)) for image in images[:10]], wav)
    clipmaker.write(folder / "slow.mp4", images[::5], wav, fps=5)
    clipmaker.write(folder / "fast.mp4", [image for image in images for _ in range(2)], wav, fps=50)
    clipmaker.write(folder / "nobody.mp4", list(islice(clipmaker.scene(), 10)), wav)
    clipmaker.write(folder / "large.mp4", [cv2.resize(image, (3840, 2160)) for image in images[:20]], wav)
    clipmaker.turn(clipmaker.write(folder / "phone.mp4", [np.rot90(image) for image in images], wav), 90)
    clipmaker.turn(clipmaker.write(folder / "turned_over.mp4", images[:10], wav), 180)
    (folder / "truncated.mp4").write_bytes(good.read_bytes()[:9000])
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "unreadable.mp4").symlink_to("/proc/self/mem")
    inside = folder / "one" / "two"
    inside.mkdir(parents=True)
    clipmaker.write(inside / "deep.mp4", images, wav)
    (inside / "back").symlink_to(folder)
    for place in (folder, inside):
        (place / "twin.mp4").write_bytes(good.read_bytes())
    return folder


@pytest.fixture(scope="module")
def packed(everything: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    out = tmp_path_factory.mktemp("shards")
    done = fiag_dist("pack", everything, "--out", out, *QUICK)
    return out, done.stdout, done.stderr


@pytest.mark.weights
@pytest.mark.clips
def test_each_bad_clip_gets_one_line_and_the_good_ones_are_packed(packed: tuple[Path, str, str]) -> None:
    out, stdout, stderr = packed
    manifest = json.loads((out / "manifest.json").read_text())
    assert {entry["name"]: entry["num_frames"] for entry in manifest["identities"]} == PACKED
    for name, says in REFUSED.items():
        lines = [line for line in stdout.splitlines() if f"{name}: refused: " in line]
        assert len(lines) == 1, f"{name}: {lines}"
        assert says in lines[0]
    assert stderr == ""
    fiag_dist("shards", "verify", out)


def contents(out: Path) -> dict[str, bytes]:
    """Every finished file, but for the reports' timings."""
    files = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    for name in files:
        if name.endswith("report.json"):
            report = json.loads(files[name])
            del report["timings"]
            files[name] = json.dumps(report).encode()
    return {name: data for name, data in files.items() if not Path(name).name.startswith(".part-")}


def pack_killed(clips: Path, out: Path, when: Callable[[float], bool]) -> bool:
    """Packs, and kills it without warning when `when` says so of the seconds since the start. Returns whether it was still at work."""
    words = [sys.executable, "-m", "fiag_dist.cli", "pack", str(clips), "--out", str(out), *QUICK]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    began = time.monotonic()
    while running.poll() is None:
        if when(time.monotonic() - began):
            running.send_signal(signal.SIGKILL)  # its workers end with it: that is part of what is tested
            running.wait()
            return True
        time.sleep(0.005)
    assert running.returncode == 0
    return False


def never(_: float) -> bool:
    return False


@pytest.fixture(scope="module")
def pair(cut: tuple[list[np.ndarray], np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, wav = cut
    folder = tmp_path_factory.mktemp("pair")
    clipmaker.write(folder / "a.mp4", images[:20], wav)
    clipmaker.write(folder / "b.mp4", images[5:25], wav)
    return folder


@pytest.mark.weights
@pytest.mark.clips
def test_killed_twice_the_shards_are_the_same(pair: Path, tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    assert not pack_killed(pair, calm, never)
    assert pack_killed(pair, rough, lambda _: any(rough.glob("a/*.tar"))), "in the middle of the first clip's files"
    assert pack_killed(pair, rough, lambda _: (rough / "a" / "entry.json").exists()), "in the second clip"
    first = (rough / "a" / "entry.json").stat().st_mtime_ns
    assert not pack_killed(pair, rough, never)
    assert (rough / "a" / "entry.json").stat().st_mtime_ns == first, "what is finished is kept"
    assert contents(rough) == contents(calm)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.clips
@pytest.mark.timeout(1800)
def test_killed_twenty_times_the_shards_are_the_same(pair: Path, tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    began = time.monotonic()
    assert not pack_killed(pair, calm, never)
    moments = np.random.default_rng(0).uniform(0.1, 1.0, 20) * (time.monotonic() - began)
    killed = 0
    for moment in moments:
        killed += pack_killed(pair, rough, lambda seconds, moment=moment: seconds > moment)
        if (rough / "manifest.json").exists():  # all is packed: from the start again
            assert contents(rough) == contents(calm)
            shutil.rmtree(rough)
    assert killed > 5
    assert not pack_killed(pair, rough, never)
    assert contents(rough) == contents(calm)


@pytest.mark.weights
@pytest.mark.clips
def test_a_full_disk_is_one_line_and_leaves_no_half_shard(pair: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fiag_dist.cli", "pack", str(pair), *QUICK, "--out", str(tmp_path / "out")]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = clipmaker.limited(words, 300_000, env=env, timeout=240)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "none of 2 clips can be used" in lines[0]
    assert "File too large" in lines[0]
    assert not list((tmp_path / "out").rglob("*.tar"))


def unpacked(shards: Path, name: str) -> tuple[list[Frame], IdentityMeta]:
    storage, entry = open_storage(str(shards)), read_manifest(str(shards)).entry(name)
    return list(iter_frames(storage, entry)), read_meta(storage, entry)


def relatives_folder(shards: Path, name: str, out: Path) -> np.ndarray:
    """Writes an identity of a shard folder in the relatives' layout, in a world of other origin, axes and unit. Returns its viewmats."""
    samples, meta = unpacked(shards, name)
    turn, shift, scale = (
        Rotation.from_euler("xyz", [10, 200, -5], degrees=True).as_matrix(),
        np.array([0.1, 0.2, -0.3]),
        8.0,
    )
    for folder in ("gt_imgs", "parsing"):
        (out / folder).mkdir(parents=True)
    colours = np.array([[255, 255, 255], [255, 0, 0], [0, 0, 0], [0, 0, 255], [0, 0, 255], [100, 100, 100]], np.uint8)
    frames: dict[str, list] = {"train": [], "test": []}
    for frame in samples:
        cv2.imwrite(str(out / "gt_imgs" / f"{frame.index}.png"), frame.image[..., ::-1])
        cv2.imwrite(str(out / "parsing" / f"{frame.index}.png"), colours[frame.labels][..., ::-1])
        to_camera = np.eye(4)
        to_camera[:3, :3] = frame.viewmat[:3, :3] @ turn.T
        to_camera[:3, 3] = scale * frame.viewmat[:3, 3] - to_camera[:3, :3] @ shift
        matrix = np.linalg.inv(to_camera) @ np.diag([1, -1, -1, 1])
        frames[frame.split].append({"img_id": frame.index, "aud_id": frame.index, "transform_matrix": matrix.tolist()})
    for split, file in (("train", "train"), ("test", "val")):
        tree = {
            "focal_len": float(meta.K[0, 0]),
            "cx": float(meta.K[0, 2]),
            "cy": float(meta.K[1, 2]),
            "frames": frames[split],
        }
        (out / f"transforms_{file}.json").write_text(json.dumps(tree))
    cv2.imwrite(str(out / "bc.jpg"), meta.plate[..., ::-1])
    (out / "aud.wav").write_bytes(wav_bytes(meta.wav))
    np.save(out / "aud_ds.npy", np.random.default_rng(0).normal(size=(len(samples), 16, 29)).astype(np.float32))
    header = ", ".join(["frame", *(f"{name}_r" for name in EXPRESSION_NAMES)])
    rows = [", ".join(f"{v:.3f}" for v in [frame.index, *(frame.expression * 2)]) for frame in samples]
    (out / "au.csv").write_text("\n".join([header, *rows]))
    return np.stack([frame.viewmat for frame in samples])


@pytest.mark.weights
@pytest.mark.clips
def test_a_folder_of_the_relatives_becomes_the_same_shards(packed: tuple[Path, str, str], tmp_path: Path) -> None:
    known = relatives_folder(packed[0], "deep", tmp_path / "folders" / "anna")
    (tmp_path / "folders" / "broken").mkdir()
    (tmp_path / "folders" / "broken" / "transforms_train.json").write_text("{}")
    words = (
        "--layout",
        "instag",
        "--size",
        "128",
        "--min-seconds",
        "0.7",
        "--jobs",
        "1",
        "--extractor",
        "file:{folder}/aud_ds.npy",
    )
    done = fiag_dist("pack", tmp_path / "folders", "--out", tmp_path / "out", *words)
    assert "broken: refused: " in done.stdout
    assert read_manifest(str(tmp_path / "out")).audio == AudioFormat(extractor="file:aud_ds.npy", dim=29, window=16)
    before, after = unpacked(packed[0], "deep")[0], unpacked(tmp_path / "out", "anna")[0]
    assert [frame.split for frame in after] == [frame.split for frame in before]
    found = np.stack([frame.viewmat for frame in after])
    # The head frame is a convention, here that of the average face: a little turn and shift common to all frames is no error.
    common = Rotation.from_matrix(found[:, :3, :3].transpose(0, 2, 1) @ known[:, :3, :3])
    assert np.degrees(common.mean().magnitude()) < 3
    assert np.degrees((common * common.mean().inv()).magnitude()).max() < 0.01
    np.testing.assert_allclose(found[:, 2, 3], known[:, 2, 3], rtol=0.05)
    for a, b in list(zip(before, after, strict=True))[::7]:
        assert (a.labels == b.labels).mean() > 0.97
        assert np.abs(a.alpha.astype(int) - b.alpha).mean() < 8
        assert np.abs(a.image.astype(int) - b.image).mean() < 3
        assert np.abs(a.landmarks.astype(float) - b.landmarks).max() < 0.03
