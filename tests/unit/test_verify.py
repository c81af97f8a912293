"""`fiag-dist shards verify` names every kind of damage, in the file where it is, and ends with 2."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_shards import make, write_two
from webdataset.tariterators import group_by_keys, tar_file_expander
from webdataset.writer import TarWriter

from fiag_dist import cli
from fiag_dist.errors import DataError
from fiag_dist.shards.manifest import Manifest, read_manifest, write_manifest
from fiag_dist.shards.reader import FrameReader, iter_frames
from fiag_dist.shards.writer import write_identity
from fiag_dist.storage import LocalStorage

SHARD, META = "anna/anna-000001.tar", "anna/meta.tar"


@pytest.fixture
def store(tmp_path: Path) -> LocalStorage:
    store = LocalStorage(str(tmp_path / "data"))
    write_two(store)
    return store


def verify(store: LocalStorage, capsys: pytest.CaptureFixture) -> list[str]:
    """Lines of faults that the command prints; empty when it finds none."""
    status = cli.main(["shards", "verify", store.url])
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if ": ok, " not in line and "are whole" not in line]
    assert status == (2 if lines else 0)
    assert (f"{len(lines)} fault{'s' * (len(lines) > 1)}, named above; pack again" in printed.err) == bool(lines)
    return lines


def repack(store: LocalStorage, file: str, change: Callable[[list[dict]], object]) -> None:
    """Changes a shard's samples, as a packer with a fault would have written them: the manifest knows size and SHA-256."""
    stream = io.BytesIO(store.read(file))
    samples = [*group_by_keys(tar_file_expander([{"url": file, "stream": stream}]))]
    change(samples)
    out = io.BytesIO()
    with TarWriter(out, mtime=0, encoder=False) as tar:
        for sample in samples:
            tar.write({name: data for name, data in sample.items() if name in ("__key__",) or name[0] != "_"})
    data = out.getvalue()
    store.write(file, data)
    manifest = read_manifest(store, check=False)
    entry = manifest.entry("anna")
    parts = [
        dataclasses.replace(part, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        if part.file == file
        else part
        for part in (*entry.shards, entry.meta)
    ]
    replace_entry(store, manifest, shards=parts[:-1], meta=parts[-1])


def replace_entry(store: LocalStorage, manifest: Manifest, **values) -> None:
    entries = [dataclasses.replace(e, **values) if e.name == "anna" else e for e in manifest.identities]
    write_manifest(store, dataclasses.replace(manifest, identities=entries))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(data: bytes, **values) -> bytes:
    """The arrays of an npz file with some replaced, or left out when None."""
    stream = io.BytesIO()
    arrays = {**np.load(io.BytesIO(data))} | values
    np.savez(stream, allow_pickle=False, **{k: v for k, v in arrays.items() if v is not None})
    return stream.getvalue()


def record(sample: dict, **values) -> None:
    sample["json"] = json.dumps(
        {k: v for k, v in (json.loads(sample["json"]) | values).items() if v != "gone"}
    ).encode()


def test_whole_shards_are_whole(store: LocalStorage, capsys: pytest.CaptureFixture) -> None:
    assert verify(store, capsys) == []


@pytest.mark.parametrize("file", [SHARD, META])
def test_missing_truncated_longer_and_changed_files(
    store: LocalStorage, capsys: pytest.CaptureFixture, file: str
) -> None:
    path = Path(store.url, file)
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    assert verify(store, capsys) == [f"{file}: truncated: {len(data) - 1000} bytes found, {len(data)} in the manifest"]
    path.write_bytes(data + b"x")
    assert verify(store, capsys) == [f"{file}: too long: {len(data) + 1} bytes found, {len(data)} in the manifest"]
    path.write_bytes(data[:3000] + bytes([data[3000] ^ 1]) + data[3001:])
    assert verify(store, capsys) == [f"{file}: changed: its size is right, its SHA-256 is not the manifest's"]
    path.unlink()
    assert verify(store, capsys) == [f"{file}: missing"]
    Path(store.url, "bert/bert-000002.tar").unlink()
    assert verify(store, capsys) == [f"{file}: missing", "bert/bert-000002.tar: missing"], "all faults, not the first"


def test_extra_shards_are_named_and_what_lies_deeper_is_not_ours(
    store: LocalStorage, capsys: pytest.CaptureFixture
) -> None:
    write_identity(LocalStorage(f"{store.url}/other"), *make("carl"), 10)
    store.write("anna/report.json", b"{}")
    assert verify(store, capsys) == []
    for file in ("anna/anna-000003.tar", "left/left-000000.tar"):
        store.write(file, b"x")
    assert verify(store, capsys) == [
        "anna/anna-000003.tar: extra: the manifest does not name it",
        "left/left-000000.tar: extra: the manifest does not name it",
    ]


def test_another_version_ends_with_what_it_is(store: LocalStorage, capsys: pytest.CaptureFixture) -> None:
    tree = json.loads(store.read("manifest.json"))
    for text, message in (
        (json.dumps(tree | {"version": 3}), "manifest.json: version 3, this program reads version 2"),
        ("{", "manifest.json: not valid JSON"),
        (json.dumps(tree | {"fps": "fast"}), "manifest.json: fps: 'fast' has the wrong type"),
    ):
        store.write("manifest.json", text.encode())
        assert cli.main(["shards", "verify", store.url]) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert len(printed.err.splitlines()) == 1


BIG = np.zeros((9, 4, 2), np.float16)
SAMPLE_FAULTS = {
    "no alpha.png": lambda s: s.pop("alpha.png"),
    "unknown member depth.png": lambda s: s.update({"depth.png": b"1"}),
    "no camera": lambda s: record(s, camera="gone"),
    "audio is float32 [8, 4, 2], expected Float16": lambda s: s.update({"audio.npy": npy(BIG[:8].astype(np.float32))}),
    "audio is float16 [8, 4, 1], the manifest says [8, 4, 2]": lambda s: s.update({"audio.npy": npy(BIG[:8, :, :1])}),
    "audio is float16 [9, 4, 2], expected Float16": lambda s: s.update({"audio.npy": npy(BIG)}),
    "audio holds values that are not finite": lambda s: s.update({"audio.npy": npy(BIG[:8] + np.float16(np.nan))}),
    "embedding is float32 [15], the manifest says [16]": lambda s: s.update({"id.npy": npy(np.ones(15, np.float32))}),
    "landmarks is float16 [468, 3], expected": lambda s: s.update(
        {"landmarks.npy": npy(np.ones((468, 3), np.float16))}
    ),
    "expression is float32 [6], the manifest says [9]": lambda s: record(s, expression=[0.0] * 6),
    "viewmat is float32 [3, 4], expected": lambda s: record(s, camera=[[0.0] * 4] * 3),
    "split is 'val'": lambda s: record(s, split="val"),
    "time_s is '1', expected float": lambda s: record(s, time_s="1"),
    "lips_rect [1, 2, 30, 49] is empty or outside 48 x 48 pixels": lambda s: record(s, lips_rect=[1, 2, 30, 49]),
    "labels go up to": lambda s: s.update({"mask.png": s["alpha.png"]}),
    "alpha is uint8 [16, 16], expected": lambda s: s.update(
        {"alpha.png": cv2.imencode(".png", np.zeros((16, 16)))[1].tobytes()}
    ),
    "an image can't be decoded": lambda s: s.update({"jpg": b"no image"}),
    "its name is not anna/000099": lambda s: record(s, frame=99),
}


@pytest.mark.parametrize("fault", SAMPLE_FAULTS)
def test_malformed_samples_are_named(store: LocalStorage, capsys: pytest.CaptureFixture, fault: str) -> None:
    repack(store, SHARD, lambda samples: SAMPLE_FAULTS[fault](samples[4]))
    lines = verify(store, capsys)
    key = "anna/000015"
    assert any(line.startswith(f"{SHARD}: {key}: wrong schema: ") and fault in line for line in lines), lines
    rest = [line for line in lines if not line.startswith(f"{SHARD}: {key}")]
    assert all("comes after" in line or line.startswith((META, SHARD)) for line in rest)


@pytest.mark.parametrize(
    "fault", [f for f in SAMPLE_FAULTS if "manifest" not in f and "unknown" not in f and "its name" not in f]
)
def test_malformed_samples_are_not_trained_on(store: LocalStorage, fault: str) -> None:
    repack(store, SHARD, lambda samples: SAMPLE_FAULTS[fault](samples[4]))
    entry = read_manifest(store).entry("anna")
    message = rf"{store.url}: anna/000015: damaged sample \(.*\); run: fiag-dist shards verify"
    with pytest.raises(DataError, match=message):
        FrameReader(store, entry).frame(14)
    with pytest.raises(DataError, match=message):
        list(iter_frames(store, entry))


def test_wrong_numbers_of_frames(store: LocalStorage, capsys: pytest.CaptureFixture) -> None:
    whole = read_manifest(store)
    repack(store, SHARD, lambda samples: samples.pop())
    lines = verify(store, capsys)
    assert f"{SHARD}: wrong number of frames: 9 found, 10 in the manifest" in lines
    assert f"{META}: wrong schema: its index or split is not that of the shards' samples" in lines
    entry = read_manifest(store).entry("anna")
    with pytest.raises(DataError, match=r"anna-000001.tar: 9 samples found, 10 in the manifest"):
        FrameReader(store, entry).frame(12)
    write_two(store)
    replace_entry(store, whole, num_frames=22)
    lines = verify(store, capsys)
    assert "manifest.json: wrong number of frames: 22 in anna, 23 in its shards, 20 + 3 in its splits" in lines
    assert f"{META}: wrong number of frames: 23 found, 22 in the manifest" in lines


def test_frames_out_of_order_and_many_faults(store: LocalStorage, capsys: pytest.CaptureFixture) -> None:
    repack(store, SHARD, lambda samples: samples.reverse())
    lines = verify(store, capsys)
    assert f"{SHARD}: anna/000019: wrong schema: frame 19 comes after frame 20" in lines
    assert f"{SHARD}: and 6 more faults of its samples" in lines


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("rest_landmarks is missing", lambda s: s.update({"arrays.npz": npz(s["arrays.npz"], rest_landmarks=None)})),
        ("no tracks.npz", lambda s: s.pop("tracks.npz")),
        ("blink is not a file", lambda s: s.update({"tracks.npz": npz(s["tracks.npz"], blink=None)})),
        (
            "viewmats is float64 [23, 4, 4], expected",
            lambda s: s.update({"arrays.npz": npz(s["arrays.npz"], viewmats=np.zeros((23, 4, 4)))}),
        ),
        (
            "speech is float16 [22, 4, 2], expected Float16[ndarray, 'frames dim window']",
            lambda s: s.update({"arrays.npz": npz(s["arrays.npz"], speech=np.zeros((22, 4, 2), np.float16))}),
        ),
        ("RIFF", lambda s: s.update({"wav": b"no sound"})),
        (
            "its index or split is not that of the shards' samples",
            lambda s: s.update({"tracks.npz": npz(s["tracks.npz"], index=np.arange(23, dtype=np.int32))}),
        ),
        ("wrong length of sound", lambda s: s.update({"wav": s["wav"][:-3200]})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_meta_is_named(store: LocalStorage, capsys: pytest.CaptureFixture, fault: str, change) -> None:
    repack(store, META, lambda samples: change(samples[0]))
    lines = verify(store, capsys)
    assert len(lines) == 1
    assert lines[0].startswith(f"{META}: wrong ")
    assert fault in lines[0]
