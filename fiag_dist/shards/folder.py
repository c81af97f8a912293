"""An identity's folder among the shards: what packing writes into it, whether that is complete, and what of it may be taken away."""

import dataclasses
import json
import re
import uuid

from fiag_dist.errors import DataError
from fiag_dist.shards.manifest import IdentityEntry, check_paths, from_json
from fiag_dist.storage import LocalStorage, Storage

META, REPORT, SHEET = "meta.tar", "report.json", "contact_sheet.png"
MARK = "entry.json"
"""Written last into an identity's folder: without it the folder is unfinished."""


def probe(storage: Storage) -> None:
    """Raises DataError where no file can be written and taken away again: better before the work than after it."""
    if isinstance(storage, LocalStorage) and storage.folder.is_file():
        raise DataError(f"{storage.url}: is a file; --out is a folder for the shards")
    file = f".probe-{uuid.uuid4().hex}"
    try:
        storage.write(file, b"written before the work, to see whether it can be")
        storage.delete(file)
    except DataError as error:
        raise DataError(f"{storage.url}: takes no files ({error}); nothing was packed, give another --out") from error


def shard(name: str, number: int) -> str:
    """What the shard of this number is called, in its folder."""
    return f"{name}-{number:06d}.tar"


def own_files(name: str) -> re.Pattern[str]:
    """Names of what packing writes into the folder of `name`; it deletes nothing else."""
    others = "|".join(re.escape(file) for file in (META, REPORT, SHEET, MARK))
    return re.compile(rf"{re.escape(name)}-\d{{6,}}\.tar|{others}")


def clear(storage: Storage, name: str) -> None:
    """Takes away what packing wrote for `name`, finished or not; whatever else lies there stays."""
    storage.delete(name, own_files(name))


def stranger(sizes: dict[str, int], name: str) -> str:
    """The first file where `name` would be packed that packing does not write; empty where there is none. What is hidden does not count: systems leave it."""
    own = own_files(name)
    for path in sizes:
        inside = path.removeprefix(f"{name}/")
        hidden = any(part.startswith(".") for part in inside.split("/"))
        if path == name or (inside != path and not hidden and not own.fullmatch(inside)):
            return path
    return ""


def write_mark(storage: Storage, entry: IdentityEntry) -> None:
    """Says in an identity's folder that it is finished, and what it holds."""
    storage.write(f"{entry.name}/{MARK}", (json.dumps(dataclasses.asdict(entry), indent=1) + "\n").encode())


def marked(storage: Storage, sizes: dict[str, int], name: str) -> IdentityEntry | None:
    """The entry in an identity's folder: it was packed completely, from whatever clip."""
    mark = f"{name}/{MARK}"
    if mark not in sizes:
        return None
    try:
        entry = from_json(IdentityEntry, json.loads(storage.read(mark)), f"{storage.url}/{mark}")
        check_paths(entry, mark)
    except (ValueError, DataError):
        return None  # made by another version, or damaged: pack again
    return entry if entry.name == name else None


def is_whole(entry: IdentityEntry, sizes: dict[str, int]) -> bool:
    """Whether all that an entry names is there."""
    return all(sizes.get(file) == size for file, size in entry.files.items())
