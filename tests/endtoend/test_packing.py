"""Packing through the command line: a folder of everything that can be wrong, a full disk, folders of the relatives."""

import json
import re
import sys
from itertools import islice
from pathlib import Path

import clipmaker
import cv2
import numpy as np
import pytest
from commands import command, fiag_dist
from scipy.spatial.transform import Rotation

from fiag_dist.shards.manifest import AudioFormat, read_manifest
from fiag_dist.shards.reader import iter_frames, read_meta
from fiag_dist.shards.writer import wav_bytes
from fiag_dist.storage import open_storage
from fiag_dist.types import ACTION_UNITS, Frame, IdentityMeta

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
    "lying": "the head lies on its side; turn the video, for example: ffmpeg -i lying.mp4 -vf transpose=2 upright.mp4",
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
    clipmaker.write(folder / "fast.mp4", [images[i * 25 // 60] for i in range(72)], wav, fps=60)
    clipmaker.write(folder / "nobody.mp4", list(islice(clipmaker.scene(), 10)), wav)
    clipmaker.write(folder / "large.mp4", [cv2.resize(image, (3840, 2160)) for image in images[:20]], wav)
    clipmaker.turn(clipmaker.write(folder / "phone.mp4", [np.rot90(image) for image in images], wav), 90)
    clipmaker.turn(clipmaker.write(folder / "turned_over.mp4", images[:10], wav), 180)
    clipmaker.turn(clipmaker.write(folder / "lying.mp4", images[:10], wav), 90)
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


@pytest.mark.weights
@pytest.mark.clips
def test_a_full_disk_is_one_line_and_leaves_no_half_shard(
    cut: tuple[list[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    """On a disk of its own that has room for one identity: the other is refused, and the first stays whole."""
    images, wav = cut
    folder, disk = tmp_path / "clips", tmp_path / "disk"
    folder.mkdir()
    disk.mkdir()
    clipmaker.write(folder / "a.mp4", images[:20], wav)
    clipmaker.write(folder / "b.mp4", images[5:25], wav)
    mount = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=2400k none "$0" && "$@" && find "$0" -type f', disk)
    if command(*mount, "true", check=False).returncode:
        pytest.skip("no tmpfs can be mounted in a user namespace here")
    pack = (sys.executable, "-m", "fiag_dist.cli", "pack", folder, "--out", disk, *QUICK)
    done = command(*mount, *pack)
    lines = [line for line in done.stdout.splitlines() if "refused: " in line]
    assert len(lines) == 1, done.stdout
    assert re.search(r"b: refused: .*the disk is full", lines[0])
    assert done.stderr == ""
    left = {line.removeprefix(f"{disk}/") for line in done.stdout.splitlines() if line.startswith(str(disk))}
    files = ("a-000000.tar", "meta.tar", "report.json", "contact_sheet.png", "entry.json")
    assert left == {"manifest.json", *(f"a/{file}" for file in files)}


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
    header = ", ".join(["frame", *(f"{name}_r" for name in ACTION_UNITS)])
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
