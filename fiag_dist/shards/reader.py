"""Shards -> frames: streaming in time order through webdataset, or any frame at random through an index of each tar file."""

import io
import json
import os
import tarfile
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import Any, TypeVar
from zipfile import BadZipFile

import cv2
import numpy as np
from webdataset.tariterators import group_by_keys, tar_file_expander

from fiag_dist.errors import DataError
from fiag_dist.shards.manifest import IdentityEntry, MetaEntry, ShardEntry, mend
from fiag_dist.shards.schema import checked, mismatches
from fiag_dist.storage import DamagedError, MissingError, Storage
from fiag_dist.types import Frame, IdentityMeta, Split

T = TypeVar("T")

TRACKS = ("index", "time_s", "test", "mouth_open", "blink")
"""Per-frame values that lie in meta.tar, so that a sampler need not open a sample."""


def read_meta(storage: Storage, entry: IdentityEntry) -> IdentityMeta:
    """What is stored once for an identity. Raises DataError for a missing, truncated or damaged file."""
    return _of_meta(storage, entry, lambda data: meta_of(data, entry.name))


def meta_of(data: bytes, name: str) -> IdentityMeta:
    """The identity `name` from the bytes of its meta.tar. Raises ValueError that says what is wrong."""
    with _one_fault():
        members = _members(data)
        with np.load(io.BytesIO(members["arrays.npz"]), allow_pickle=False) as arrays:
            stored = {k: arrays[k] for k in arrays.files}
        own = {
            "name": name,
            "wav": _wav(members["wav"]),
            "plate": _rgb(members["plate.png"]),
            "split": ["test" if t else "train" for t in tracks_of(data)["test"]],
            "thumbnail": _rgb(members["thumbnail.jpg"]),
            "report": json.loads(members["report.json"]),
        }
    return checked(IdentityMeta, stored | own)


def tracks_of(data: bytes) -> dict[str, np.ndarray]:
    """Per-frame values from the bytes of a meta.tar: index, time_s, test, mouth_open, blink. Raises ValueError that says what is wrong."""
    with _one_fault(), np.load(io.BytesIO(_members(data)["tracks.npz"]), allow_pickle=False) as tracks:
        return {name: tracks[name] for name in TRACKS}


def iter_frames(storage: Storage, entry: IdentityEntry, split: Split | None = None) -> Iterator[Frame]:
    """Frames in time order, one split or all, streamed: one shard is open at a time. Raises DataError for damaged shards."""

    def opened() -> Iterator[dict[str, Any]]:
        for shard in entry.shards:
            with open_shard(storage, shard) as stream:
                yield {"url": shard.file, "stream": stream}

    try:
        for sample in group_by_keys(tar_file_expander(opened())):
            frame = decode(sample, f"shard {storage.url}: {sample['__key__']}", mend(storage))
            if split is None or frame.split == split:
                yield frame
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"shards of {storage.url}/{entry.name}: not a whole tar file ({error}); {mend(storage)}"
        ) from error


def decode(sample: dict[str, Any], where: str, advice: str) -> Frame:
    """A frame from a sample's members, as webdataset yields them undecoded. Raises DataError that starts with `where`."""
    try:
        frame = parse(sample)
        wrong = mismatches(frame)
        if wrong:
            raise ValueError("; ".join(wrong))
    except ValueError as error:
        raise DataError(f"{where}: damaged sample ({error}); {advice}") from error
    return frame


def parse(sample: dict[str, Any]) -> Frame:
    """A frame from a sample's members; types and shapes are as they come. Raises ValueError that says what is wrong."""
    with _one_fault():
        record = json.loads(sample["json"])
        fields = {
            "identity": sample["__key__"].rsplit("/", 1)[0],
            "index": record["frame"],
            "time_s": record["time_s"],
            "split": record["split"],
            "image": _rgb(sample["jpg"]),
            "alpha": _gray(sample["alpha.png"]),
            "labels": _gray(sample["mask.png"]),
            "audio": _array(sample["audio.npy"]),
            "embedding": _array(sample["id.npy"]),
            "viewmat": np.array(record["camera"], np.float32),
            "K": np.array(record["K"], np.float32),
            "swing": np.array(record["swing"], np.float32),
            "expression": np.array(record["expression"], np.float32),
            "landmarks": _array(sample["landmarks.npy"]),
            "lips_rect": tuple(record["lips_rect"]),
            "mouth_open": record["mouth_open"],
            "blink": record["blink"],
        }
    return checked(Frame, fields)


class FrameReader:
    """Any frame of an identity by its position 0 .. num_frames-1 in time order. Threads may share a reader.

    `train`, `test`: positions of each split, int64. `index`: number of each frame in its clip. `mouth_open`, `blink`: float32, one a frame.
    No sample stays in memory: the operating system keeps files that are read again and again, and reading one takes a fiftieth of decoding it.
    Raises DataError for a missing, truncated or damaged file.
    """

    def __init__(self, storage: Storage, entry: IdentityEntry) -> None:
        tracks = _of_meta(storage, entry, tracks_of)
        self.entry = entry
        self.index: np.ndarray = tracks["index"]
        self.test = np.flatnonzero(tracks["test"])
        self.train = np.flatnonzero(~tracks["test"])
        self.mouth_open: np.ndarray = tracks["mouth_open"]
        self.blink: np.ndarray = tracks["blink"]
        if len(self.index) != entry.num_frames:
            raise DataError(
                f"shard {storage.url}/{entry.meta.file}: {len(self.index)} frames, {entry.num_frames} in the manifest; {mend(storage)}"
            )
        self._storage = storage
        self._starts = np.cumsum([0] + [s.num_frames for s in entry.shards])
        self._files: dict[int, _ShardFile] = {}

    def __len__(self) -> int:
        return self.entry.num_frames

    def frame(self, position: int) -> Frame:
        """The frame at `position`; IndexError outside 0 .. len-1."""
        sample = self.sample(position)
        return decode(sample, f"shard {self._storage.url}: {sample['__key__']}", mend(self._storage))

    def embedding(self, position: int) -> np.ndarray:
        """What the face recogniser says of the frame at `position`, float32 [id_dim]; its pictures are not decoded."""
        return self._array(position, "id.npy")

    def landmarks(self, position: int) -> np.ndarray:
        """Tracked landmarks of the frame at `position`, float32 [478, 3], head frame, metres; its pictures are not decoded."""
        return self._array(position, "landmarks.npy")

    def _array(self, position: int, member: str) -> np.ndarray:
        sample = self.sample(position)
        try:
            with _one_fault():
                return np.asarray(_array(sample[member]), np.float32)
        except ValueError as error:
            where = f"shard {self._storage.url}: {sample['__key__']}"
            raise DataError(f"{where}: damaged sample ({error}); {mend(self._storage)}") from error

    def sample(self, position: int) -> dict[str, Any]:
        """The stored bytes of the frame's members, by extension, and its `__key__`; IndexError outside 0 .. len-1."""
        position = int(position)
        if not 0 <= position < len(self):
            raise IndexError(f"frame position {position} of {len(self)}")
        number = int(np.searchsorted(self._starts, position, "right")) - 1
        return self._file(number).read(position - int(self._starts[number]))

    def _file(self, number: int) -> "_ShardFile":
        if number not in self._files:
            self._files[number] = _ShardFile(self._storage, self.entry.shards[number])
        return self._files[number]


class _ShardFile:
    """Where each member of each sample lies in one tar file."""

    def __init__(self, storage: Storage, shard: ShardEntry) -> None:
        self._storage, self._shard = storage, shard
        self._samples: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with open_shard(storage, shard) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    self._samples.setdefault(f"{folder}/{stem}", {})[extension] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            raise DataError(f"shard {storage.url}/{shard.file}: not a tar file ({error}); {mend(storage)}") from error
        self._keys = list(self._samples)
        if len(self._keys) != shard.num_frames:
            found = f"{len(self._keys)} samples found, {shard.num_frames} in the manifest"
            raise DataError(f"shard {storage.url}/{shard.file}: {found}; {mend(storage)}")

    def read(self, number: int) -> dict[str, Any]:
        """The members' bytes and `__key__` of one sample, read in one call."""
        key = self._keys[number]
        members = self._samples[key]
        start = min(offset for offset, _ in members.values())
        stop = max(offset + size for offset, size in members.values())
        with open_shard(self._storage, self._shard) as stream:  # anew each time: a cached copy may have been dropped
            data = os.pread(stream.fileno(), stop - start, start)
        return {"__key__": key} | {k: data[o - start : o - start + n] for k, (o, n) in members.items()}


def open_shard(storage: Storage, shard: ShardEntry | MetaEntry) -> BufferedReader:
    """A tar file, opened on this machine, whose bytes are the manifest's. Raises DataError that says which is missing or damaged."""
    try:
        return storage.open(shard.file, shard)
    except MissingError as error:
        raise DataError(f"shard {error}, but the manifest names it; {mend(storage)}") from error
    except DamagedError as error:
        raise DataError(f"shard {error}; it is not what the manifest names; {mend(storage)}") from error


def _of_meta(storage: Storage, entry: IdentityEntry, take: Callable[[bytes], T]) -> T:
    with open_shard(storage, entry.meta) as stream:
        data = stream.read()
    try:
        return take(data)
    except ValueError as error:
        raise DataError(f"shard {storage.url}/{entry.meta.file}: damaged ({error}); {mend(storage)}") from error


def _members(data: bytes) -> dict[str, bytes]:
    """Files of a meta.tar by extension."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        return {m.name.rsplit("/", 1)[-1].partition(".")[2]: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


@contextmanager
def _one_fault() -> Iterator[None]:
    """Whatever a decoder says of damaged bytes, as a ValueError."""
    try:
        yield
    except KeyError as error:  # numpy puts a sentence there, dict the name
        raise ValueError(str(error.args[0]) if " " in str(error.args[0]) else f"no {error.args[0]}") from error
    except (ValueError, TypeError, OSError, EOFError, wave.Error, tarfile.TarError, BadZipFile, cv2.error) as error:
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _wav(data: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(data)) as stream:
        return np.frombuffer(stream.readframes(stream.getnframes()), "<i2").astype(np.float32) / 32767


def _rgb(data: bytes) -> np.ndarray:
    return np.ascontiguousarray(_decoded(data, cv2.IMREAD_COLOR)[..., ::-1])


def _gray(data: bytes) -> np.ndarray:
    return _decoded(data, cv2.IMREAD_GRAYSCALE)


def _decoded(data: bytes, flag: int) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None:
        raise ValueError("an image can't be decoded")
    return image


def _array(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)
