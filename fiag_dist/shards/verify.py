"""Is a folder of shards what its manifest says? Reads every byte, opens every sample, and names what differs."""

import hashlib
import io
import tarfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from webdataset.tariterators import group_by_keys, tar_file_expander

from fiag_dist.shards.manifest import IdentityEntry, Manifest, MetaEntry, ShardEntry
from fiag_dist.shards.reader import meta_of, parse, tracks_of
from fiag_dist.shards.schema import SAMPLE_MEMBERS, meta_mismatches, mismatches
from fiag_dist.storage import MissingError, Storage

SHOWN = 3
"""Samples of a shard that are named one by one; the others are counted."""


@dataclass
class _Seen:
    """What the shards of an identity hold, in their order."""

    index: list[int] = field(default_factory=list)
    test: list[bool] = field(default_factory=list)
    all_read: bool = True


def extras(storage: Storage, manifest: Manifest) -> list[str]:
    """Shards in the folders of identities that the manifest does not name, one line each."""
    named = {file for entry in manifest.identities for file in entry.files}
    there = (path for path in storage.list() if path.endswith(".tar") and path.count("/") == 1)
    return [f"{path}: extra: the manifest does not name it" for path in there if path not in named]


def damage(storage: Storage, manifest: Manifest, entry: IdentityEntry) -> list[str]:
    """What is wrong with an identity, one line each that starts with the file's path. Raises DataError when the storage can't be read."""
    found, seen = [], _Seen()
    for shard in entry.shards:
        data, wrong = _bytes(storage, shard)
        found += wrong or _shard_damage(data, manifest, entry, shard, seen)
        seen.all_read &= not wrong
    data, wrong = _bytes(storage, entry.meta)
    found += wrong or _meta_damage(data, manifest, entry, seen)
    counted = sum(shard.num_frames for shard in entry.shards)
    if not counted == entry.num_frames == entry.split.train + entry.split.test:
        found.append(
            f"manifest.json: wrong number of frames: {entry.num_frames} in {entry.name}, {counted} in its shards, "
            f"{entry.split.train} + {entry.split.test} in its splits"
        )
    return found


def _bytes(storage: Storage, part: ShardEntry | MetaEntry) -> tuple[bytes, list[str]]:
    """A file's bytes, and what is wrong with them. A place that does not answer is no damage: that error goes on to the caller."""
    try:
        data = storage.read(part.file)
    except MissingError:
        return b"", [f"{part.file}: missing"]
    if len(data) != part.bytes:
        what = "truncated" if len(data) < part.bytes else "too long"
        return data, [f"{part.file}: {what}: {len(data)} bytes found, {part.bytes} in the manifest"]
    if hashlib.sha256(data).hexdigest() != part.sha256:
        return data, [f"{part.file}: changed: its size is right, its SHA-256 is not the manifest's"]
    return data, []


def _shard_damage(data: bytes, manifest: Manifest, entry: IdentityEntry, shard: ShardEntry, seen: _Seen) -> list[str]:
    """What is wrong inside a shard whose bytes are the manifest's: it was packed so."""
    faults: list[str] = []
    count = 0
    try:
        for sample in group_by_keys(tar_file_expander([{"url": shard.file, "stream": io.BytesIO(data)}])):
            count += 1
            faults += [
                f"{shard.file}: {sample['__key__']}: {text}" for text in _sample_damage(sample, manifest, entry, seen)
            ]
    except (tarfile.TarError, EOFError, ValueError) as error:
        return [f"{shard.file}: not a tar file of samples ({error})"]
    found = faults[:SHOWN]
    if len(faults) > SHOWN:
        found.append(f"{shard.file}: and {len(faults) - SHOWN} more faults of its samples")
    if count != shard.num_frames:
        found.append(f"{shard.file}: wrong number of frames: {count} found, {shard.num_frames} in the manifest")
    return found


def _sample_damage(sample: dict[str, Any], manifest: Manifest, entry: IdentityEntry, seen: _Seen) -> list[str]:
    members = {name for name in sample if not name.startswith("__")}
    lacking, unknown = set(SAMPLE_MEMBERS) - members, members - set(SAMPLE_MEMBERS)
    found = [f"wrong schema: no {name}" for name in sorted(lacking)]
    found += [f"wrong schema: unknown member {name}" for name in sorted(unknown)]
    if lacking:
        return found
    try:
        frame = parse(sample)
    except ValueError as error:
        return [*found, f"wrong schema: {error}"]
    found += [f"wrong schema: {text}" for text in mismatches(frame, manifest)]
    if sample["__key__"] != f"{entry.name}/{frame.index:06d}":
        found.append(f"wrong schema: its name is not {entry.name}/{frame.index:06d}")
    if seen.index and frame.index <= seen.index[-1]:
        found.append(f"wrong schema: frame {frame.index} comes after frame {seen.index[-1]}")
    seen.index.append(frame.index)
    seen.test.append(frame.split == "test")
    return found


def _meta_damage(data: bytes, manifest: Manifest, entry: IdentityEntry, seen: _Seen) -> list[str]:
    """What is wrong inside meta.tar, and where it contradicts the shards or the manifest."""
    where = entry.meta.file
    try:
        meta, tracks = meta_of(data, entry.name), tracks_of(data)
    except ValueError as error:
        return [f"{where}: wrong schema: {error}"]
    found = [f"{where}: wrong schema: {text}" for text in meta_mismatches(meta, manifest)]
    if len(meta.split) != entry.num_frames:
        found.append(f"{where}: wrong number of frames: {len(meta.split)} found, {entry.num_frames} in the manifest")
    elif meta.split.count("test") != entry.split.test:
        tests = meta.split.count("test")
        found.append(f"{where}: wrong split: {tests} test frames found, {entry.split.test} in the manifest")
    elif seen.all_read and not (
        np.array_equal(tracks["index"], seen.index) and np.array_equal(tracks["test"], seen.test)
    ):
        found.append(f"{where}: wrong schema: its index or split is not that of the shards' samples")
    seconds = round(len(meta.wav) / manifest.sample_rate, 3)
    if seconds != entry.seconds:
        found.append(f"{where}: wrong length of sound: {seconds} s found, {entry.seconds} s in the manifest")
    return found
