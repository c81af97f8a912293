"""Frames -> WebDataset shards. The same frames give the same bytes, so packing again gives the same SHA-256."""

import hashlib
import io
import json
import wave
from collections.abc import Iterable

import cv2
import numpy as np
from webdataset.writer import TarWriter

from fiag_dist.errors import DataError
from fiag_dist.media.sound import SAMPLE_RATE
from fiag_dist.shards import folder
from fiag_dist.shards.manifest import IdentityEntry, MetaEntry, ShardEntry, SplitEntry, check_name
from fiag_dist.storage import Storage
from fiag_dist.types import Frame, IdentityMeta

JPEG_QUALITY = 95


def write_identity(
    storage: Storage, meta: IdentityMeta, frames: Iterable[Frame], frames_per_shard: int
) -> IdentityEntry:
    """Writes `<name>/<name>-000000.tar ...` and `<name>/meta.tar`, holding one shard in memory at a time; returns the manifest's entry.

    Frames come in time order and as many as `meta.split` says. What was packed under the name before is removed first, and nothing else that lies there.
    Raises DataError for a name that can't be a folder, no frames, or a storage that can't be written.
    """
    check_name(meta.name)
    folder.clear(storage, meta.name)
    shards: list[ShardEntry] = []
    tracks = _Tracks()
    pending: list[dict] = []
    for frame in frames:
        tracks.add(frame)
        pending.append(encode(frame))
        if len(pending) == frames_per_shard:
            shards.append(_write_shard(storage, meta.name, len(shards), pending))
            pending = []
    if pending:
        shards.append(_write_shard(storage, meta.name, len(shards), pending))
    if not shards:
        raise DataError(f"identity {meta.name}: no frames to write; the clip has no usable footage")
    assert tracks.split == list(meta.split), "the frames' splits are not the meta's"
    num_frames, num_test = len(tracks.split), tracks.split.count("test")
    return IdentityEntry(
        name=meta.name,
        num_frames=num_frames,
        seconds=round(len(meta.wav) / SAMPLE_RATE, 3),
        split=SplitEntry(train=num_frames - num_test, test=num_test),
        shards=shards,
        meta=_write_meta(storage, meta, tracks),
    )


def encode(frame: Frame) -> dict:
    """One sample as webdataset's TarWriter takes it: `__key__` and the bytes of each member."""
    x0, y0, x1, y1 = frame.lips_rect
    record = {
        "frame": int(frame.index),
        "time_s": float(frame.time_s),
        "split": frame.split,
        "camera": _plain(frame.viewmat),
        "K": _plain(frame.K),
        "swing": _plain(frame.swing),
        "expression": _plain(frame.expression),
        "lips_rect": [int(x0), int(y0), int(x1), int(y1)],
        "mouth_open": float(frame.mouth_open),
        "blink": float(frame.blink),
    }
    return {
        "__key__": f"{frame.identity}/{frame.index:06d}",
        "jpg": jpeg(frame.image),
        "alpha.png": _image(".png", frame.alpha),
        "mask.png": _image(".png", frame.labels),
        "audio.npy": _npy(frame.audio.astype(np.float16)),
        "id.npy": _npy(frame.embedding.astype(np.float32)),
        "landmarks.npy": _npy(frame.landmarks.astype(np.float16)),
        "json": json.dumps(record).encode(),
    }


def jpeg(image: np.ndarray) -> bytes:
    """JPEG of a uint8 RGB image, without chroma subsampling: lips are small and red."""
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return _image(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, *sampling])


def wav_bytes(samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> bytes:
    """A 16-bit mono WAV file of float samples in -1..1."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sample_rate)
        out.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return stream.getvalue()


class _Tracks:
    """Per-frame values that samplers need without opening a sample."""

    def __init__(self) -> None:
        self.index: list[int] = []
        self.time_s: list[float] = []
        self.split: list[str] = []
        self.mouth_open: list[float] = []
        self.blink: list[float] = []

    def add(self, frame: Frame) -> None:
        assert not self.index or frame.index > self.index[-1], "frames must come in time order"
        for name, values in vars(self).items():
            values.append(getattr(frame, name))

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "index": np.array(self.index, np.int32),
            "time_s": np.array(self.time_s, np.float64),
            "test": np.array([s == "test" for s in self.split]),
            "mouth_open": np.array(self.mouth_open, np.float32),
            "blink": np.array(self.blink, np.float32),
        }


def _write_shard(storage: Storage, name: str, number: int, samples: list[dict]) -> ShardEntry:
    file = f"{name}/{folder.shard(name, number)}"
    data = _tar(samples)
    storage.write(file, data)
    return ShardEntry(file=file, num_frames=len(samples), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _write_meta(storage: Storage, meta: IdentityMeta, tracks: _Tracks) -> MetaEntry:
    file = f"{meta.name}/{folder.META}"
    arrays = {
        "embedding": meta.embedding,
        "rest_landmarks": meta.rest_landmarks,
        "viewmats": meta.viewmats,
        "K": meta.K,
        "swing": meta.swing,
        "expressions": meta.expressions,
        "speech": meta.speech,
        "silence": meta.silence,
    }
    sample = {
        "__key__": f"{meta.name}/meta",
        "wav": wav_bytes(meta.wav),
        "plate.png": _image(".png", meta.plate[..., ::-1]),
        "thumbnail.jpg": jpeg(meta.thumbnail),
        "arrays.npz": _npz(arrays),
        "tracks.npz": _npz(tracks.arrays()),
        "report.json": json.dumps(meta.report, indent=1).encode(),
    }
    data = _tar([sample])
    storage.write(file, data)
    return MetaEntry(file=file, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _tar(samples: list[dict]) -> bytes:
    stream = io.BytesIO()
    with TarWriter(stream, user="fiag", group="fiag", mtime=0, encoder=False) as tar:
        for sample in samples:
            tar.write(sample)
    return stream.getvalue()


def _image(extension: str, image: np.ndarray, options: list[int] | None = None) -> bytes:
    done, data = cv2.imencode(extension, np.ascontiguousarray(image), options or [])
    assert done, f"OpenCV could not encode {extension} of shape {image.shape}"
    return data.tobytes()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _plain(values: np.ndarray) -> list:
    """Nested lists of the shortest decimals that give the same float32 back."""
    return [_plain(v) if np.ndim(v) else float(str(np.float32(v))) for v in values]
