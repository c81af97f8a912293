"""manifest.json: what a folder of shards holds. Written last, so everything that it names is complete."""

import dataclasses
import hashlib
import json
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fiag_dist.errors import DataError, meant
from fiag_dist.storage import Storage, open_storage
from fiag_dist.storage.protocol import relative

T = TypeVar("T")

FILE = "manifest.json"
BESIDE = "shards"
"""What adaptation calls the folder beside identities that it packs their clips into."""
VERSION = 2
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Names of identities: folders are called after them, also those that adaptation writes and takes away."""


@dataclass(frozen=True, kw_only=True)
class AudioFormat:
    """Speech features of one frame: [dim, window]."""

    extractor: str
    dim: int
    window: int


@dataclass(frozen=True, kw_only=True)
class EmbeddingFormat:
    """Which face recogniser made the identity embeddings, and their length."""

    model: str
    dim: int


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar file of samples; `file` is relative to the manifest."""

    file: str
    num_frames: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class MetaEntry:
    """The tar file of what an identity stores once."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SplitEntry:
    """Frames of each split."""

    train: int
    test: int


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """What an identity was packed from; `settings` is a hash of every setting that shapes the shards."""

    file: str
    bytes: int
    sha256: str
    settings: str


@dataclass(frozen=True, kw_only=True)
class IdentityEntry:
    """One packed identity."""

    name: str
    num_frames: int
    seconds: float
    split: SplitEntry
    shards: list[ShardEntry]
    meta: MetaEntry
    source: SourceEntry | None = None
    consent: str = ""
    """What the person agreed to, in free text; travels into identity folders and rendered videos."""

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each of its files, by path."""
        return {s.file: s.bytes for s in (*self.shards, self.meta)}

    @property
    def sha256(self) -> str:
        """Of all that its files hold: the same for the same footage packed in the same way."""
        return hashlib.sha256("".join(s.sha256 for s in (*self.shards, self.meta)).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Formats that all identities share, and the identities."""

    fps: int
    size: int
    """Side of the square frames, pixels."""
    sample_rate: int
    audio: AudioFormat
    expression: list[str]
    """Names of the expression channels."""
    id_embedding: EmbeddingFormat
    identities: list[IdentityEntry] = field(default_factory=list)
    version: int = VERSION

    @property
    def names(self) -> list[str]:
        return [i.name for i in self.identities]

    def entry(self, name: str) -> IdentityEntry:
        """The identity called `name`. Raises DataError that offers the nearest name."""
        for identity in self.identities:
            if identity.name == name:
                return identity
        raise DataError(f"identity {name!r} is not in the manifest; {meant(name, self.names, 20)}")


def read_manifest(source: str | Storage, check: bool = True) -> Manifest:
    """The manifest of a folder or s3:// prefix; with `check` every file's size is compared with it.

    Raises DataError for a missing folder or manifest, an unknown version, a malformed entry, a name that can't be a folder, a path that leaves the folder, a
    missing file or a differing size.
    """
    storage = open_storage(source) if isinstance(source, str) else source
    where = f"{storage.url}/{FILE}"
    if not storage.exists(FILE):
        there = storage.children()
        what = f"holds {', '.join(there[:6])}{' ...' if len(there) > 6 else ''}" if there else "is missing or empty"
        raise DataError(
            f"{where}: no such file ({storage.url} {what}); make it: fiag-dist pack CLIPS --out {storage.url}"
        )
    try:
        tree = json.loads(storage.read(FILE))
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); pack again") from error
    version = tree.get("version") if isinstance(tree, dict) else None
    if version != VERSION:
        raise DataError(
            f"{where}: version {version!r}, this program reads version {VERSION}; delete {storage.url} and pack again"
        )
    manifest = from_json(Manifest, tree, where)
    for identity in manifest.identities:
        check_paths(identity, where)
    if check:
        check_sizes(storage, manifest.identities)
    return manifest


def write_manifest(storage: Storage, manifest: Manifest) -> None:
    """Puts the manifest in place, after everything that it names. Raises DataError."""
    storage.write(FILE, (json.dumps(dataclasses.asdict(manifest), indent=1) + "\n").encode())


def check_name(name: str) -> None:
    """Raises DataError for the name of an identity that can't be a folder."""
    if not NAME.fullmatch(name):
        raise DataError(f"identity name {name!r:.80}: use 1-64 letters, digits, - and _, a letter or digit first")


def check_paths(identity: IdentityEntry, where: str) -> None:
    """Raises DataError, which starts with `where`, for a name that can't be a folder, or a file that could lie outside the manifest's folder."""
    try:
        check_name(identity.name)
        for file in identity.files:
            relative(file)
    except DataError as error:
        raise DataError(f"{where}: {error}; pack again") from error


def check_sizes(storage: Storage, identities: list[IdentityEntry]) -> None:
    """Raises DataError for the first file that is missing or whose size is not the manifest's."""
    sizes = storage.sizes()
    for identity in identities:
        for file, expected in identity.files.items():
            if file not in sizes:
                raise DataError(f"shard {storage.url}/{file}: no such file, but the manifest names it; {mend(storage)}")
            if sizes[file] != expected:
                found = f"{sizes[file]} bytes found, {expected} in the manifest"
                raise DataError(f"shard {storage.url}/{file}: {found}; {mend(storage)}")


def mend(storage: Storage) -> str:
    """The advice for damaged shards."""
    return f"run: fiag-dist shards verify {storage.url}, then pack again"


def from_json(cls: type[T], tree: Any, where: str) -> T:
    """The frozen dataclass `cls` from parsed JSON; keys it does not know are ignored. Raises DataError for a missing key or a wrong type."""
    if not isinstance(tree, dict):
        raise DataError(f"{where}: expected an object, got {tree!r:.60}; pack again")
    values = {}
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        if item.name in tree:
            values[item.name] = _value(hints[item.name], tree[item.name], f"{where}: {item.name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise DataError(f"{where}: {item.name!r} is missing; pack again")
    return cls(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        return None if value is None else _value(typing.get_args(hint)[0], value, where)
    if typing.get_origin(hint) is list and isinstance(value, list):
        return [_value(typing.get_args(hint)[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is hint:
        return value
    raise DataError(f"{where}: {value!r:.60} has the wrong type; pack again")
