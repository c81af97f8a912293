"""fiag-dist pack: clips in, shards and a manifest out. One Ray task a clip; a bad clip is refused with its reason and the others go on."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from fiag_dist.config import PackConfig
from fiag_dist.ending import guarded
from fiag_dist.errors import DataError
from fiag_dist.ingest import precomputed, speech
from fiag_dist.ingest.gather import find_clips, find_prepared, fingerprint
from fiag_dist.ingest.layouts import pack_any
from fiag_dist.media.sound import SAMPLE_RATE
from fiag_dist.shards.folder import is_whole, marked, probe, stranger, write_mark
from fiag_dist.shards.manifest import (
    FILE,
    AudioFormat,
    EmbeddingFormat,
    IdentityEntry,
    Manifest,
    SourceEntry,
    read_manifest,
    write_manifest,
)
from fiag_dist.shards.packing import Done, Packer, Work
from fiag_dist.shards.settings import refuse_nonsense
from fiag_dist.shards.workers import pack_all
from fiag_dist.storage import Storage, open_storage
from fiag_dist.tables import tabulate, text_of
from fiag_dist.types import EXPRESSION_NAMES

RECIPE = 11
"""Raised whenever the same clip and settings give other shards: everything is then packed again."""
EMBEDDING = EmbeddingFormat(model="dlib-resnet-v1", dim=128)


@dataclass(frozen=True, kw_only=True)
class PackCommand:
    """Packs video clips of one person each into shards. Run again, it does only what is new, changed or unfinished."""

    clips: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="CLIP_OR_FOLDER...")]
    """Clips (mp4, mov, mkv, webm, avi) and folders of them."""
    out: str
    """Folder or s3://bucket/prefix for the shards; identities that are there already stay."""
    consent: str = ""
    """What the people in these clips agreed to, in free text: kept in the manifest, in each identity made of them, and in every rendered video."""
    address: str = ""
    """Ray cluster to work on (host:port, ray://host:port or auto); none: RAY_ADDRESS, else this machine. Clips must then lie where every node finds them
    by the same path, weights and S3 credentials be on every node, and --out be on S3 or a folder that all share."""
    settings: Annotated[PackConfig, tyro.conf.arg(name="")] = field(default_factory=PackConfig)


@dataclass(frozen=True)
class PackResult:
    """`manifest`: as it stands in the folder now. `refused`: why, by clip name; what was packed of such a clip before can still be in the manifest."""

    manifest: Manifest
    refused: dict[str, str]


def main(argv: Sequence[str]) -> int:
    """The command. Returns 0 when at least one clip is usable."""
    command = tyro.cli(PackCommand, args=list(argv), prog="fiag-dist pack")
    pack(
        [Path(c) for c in command.clips],
        command.out,
        command.settings,
        consent=command.consent,
        address=command.address,
    )
    return 0


def pack(
    clips: Sequence[str | Path],
    out: str,
    cfg: PackConfig | None = None,
    report: Callable[[str], None] = print,
    packer: Packer = pack_any,
    consent: str = "",
    address: str = "",
) -> PackResult:
    """Packs clips, and the clips in folders, to a folder or s3:// prefix, and merges them into the manifest there.

    `report` gets one line a clip as it finishes, now and then how far all are, and a table at the end; `packer` makes the samples, in Ray's workers.
    `consent` becomes the note of all these clips; without it, files that are the same as before keep theirs, also where they are packed anew.
    `address` is that of a Ray cluster; a Ray that this process is connected to already is used, and one that is started ends with the process.
    Raises ConfigError for settings out of range, DataError when a path is missing, a folder holds no clips, no clip is usable, `out` can't be written,
    or shards of another format are there already, DistributedError when the cluster does not answer.
    """

    def say(text: str) -> None:
        report(text.encode("utf-8", "backslashreplace").decode())  # file names may be no text, which stdout can refuse

    cfg = cfg or PackConfig()
    refuse_nonsense(cfg)
    found = (find_prepared if cfg.layout == "instag" else find_clips)([Path(c) for c in clips])
    storage = open_storage(out)
    sizes = storage.sizes()
    formats = _formats(cfg, found)
    probe(storage)
    stored = _stored(storage, formats)
    _others(storage, stored, formats, set(found))  # another format is refused before the work, not after it
    named, before = {entry.name: entry for entry in stored.identities}, _named(stored, formats)
    done: dict[str, Done] = {}
    todo: list[Work] = []
    for name, paths in found.items():
        if len(paths) > 1:
            done[name] = Done(None, f"{len(paths)} clips have this name ({', '.join(map(str, paths))}); rename them")
            continue
        try:
            source, shape = _source(paths[0], cfg), (formats.audio.dim, formats.audio.window)
        except DataError as error:
            done[name] = Done(None, str(error))
            continue
        there = marked(storage, sizes, name)
        note = consent or _agreed(named.get(name) or there, source)
        work = Work(paths[0].absolute(), name, _everywhere(out), cfg, source, shape, note)
        if there and _is_finished(there, sizes, work):
            if there.consent != note:
                there = dataclasses.replace(there, consent=note)
                write_mark(storage, there)
            done[name] = Done(there)
        elif other := stranger(sizes, name):
            reason = f"{storage.url}/{other} lies where its shards would go, and is none of them; give another --out"
            done[name] = Done(None, reason)
        else:
            todo.append(work)
    done = _with_earlier(storage, before, done)
    for name, result in done.items():
        say(f"{name}: " + (f"refused: {result.reason}" if result.reason else "unchanged, skipped"))
    if todo and FILE in sizes:  # what the manifest names must be complete at every moment
        _write(storage, formats, set(found), done)
    try:
        for work, result in pack_all(todo, cfg.jobs, packer, say, address):
            result = done[work.name] = _arrived(storage, result)
            say(f"[{len(done)}/{len(found)}] {work.name}: {_outcome(result)}")
    except KeyboardInterrupt:
        say(
            f"stopped: {len(done)} of {len(found)} clips are finished and stay; the same command goes on with the others"
        )
        raise
    done = _with_earlier(storage, before | _named(_stored(storage, formats), formats), done)
    table = _table({name: done[name] for name in found}, {work.name for work in todo})
    say(table)
    refused = {name: done[name].reason for name in found if done[name].reason}
    if len(refused) == len(found):
        if any(result.entry for result in done.values()):
            _write(storage, formats, set(found), done)
        name, reason = next(iter(refused.items()))
        raise DataError(f"none of {len(found)} clips can be used; {name}: {reason}")
    return PackResult(_write(storage, formats, set(found), done), refused)


def _formats(cfg: PackConfig, found: dict[str, list[Path]]) -> Manifest:
    """The manifest without identities."""
    dim, window = _dims(cfg, [clips[0] for clips in found.values()])
    return Manifest(
        fps=cfg.fps,
        size=cfg.size,
        sample_rate=SAMPLE_RATE,
        audio=AudioFormat(extractor=speech.in_manifest(cfg.extractor), dim=dim, window=window),
        expression=list(EXPRESSION_NAMES),
        id_embedding=EMBEDDING,
    )


def _dims(cfg: PackConfig, clips: list[Path]) -> tuple[int, int]:
    """Shape of the speech features; that of the first clip that has some, where they were made by another program."""
    for clip in clips[:-1]:
        with suppress(DataError):
            return speech.dims(cfg.extractor, clip)
    return speech.dims(cfg.extractor, clips[-1])


def _stored(storage: Storage, formats: Manifest) -> Manifest:
    """The manifest that is there now; `formats`, which names nobody, where there is none."""
    return read_manifest(storage, check=False) if storage.exists(FILE) else formats


def _others(storage: Storage, there: Manifest, formats: Manifest, names: set[str]) -> list[IdentityEntry]:
    """Identities of a stored manifest, apart from `names`. Raises DataError when they have another format."""
    others = [entry for entry in there.identities if entry.name not in names]
    if others and dataclasses.replace(there, identities=[]) != formats:
        raise DataError(
            f"{storage.url}: holds {len(others)} {'identities' if len(others) > 1 else 'identity'} of {there.size}x{there.size} at {there.fps} fps "
            f"with {there.audio.extractor} speech "
            f"and {there.id_embedding.model} embeddings, which these settings do not give; give another --out, or the same settings"
        )
    return others


def _named(there: Manifest, formats: Manifest) -> dict[str, IdentityEntry]:
    """Identities that a stored manifest names; none where it has another format."""
    same = dataclasses.replace(there, identities=[]) == formats
    return {entry.name: entry for entry in there.identities} if same else {}


def _with_earlier(storage: Storage, named: dict[str, IdentityEntry], done: dict[str, Done]) -> dict[str, Done]:
    """The results, where a refused clip's shards of before, which were `named`, stay as long as they are whole: nothing was written over them."""
    kept = {}
    for name, result in done.items():
        if result.entry is None and name in named:
            sizes = storage.sizes(name)
            entry = marked(storage, sizes, name)
            if entry and entry.sha256 == named[name].sha256 and is_whole(entry, sizes):
                kept[name] = Done(entry, f"{result.reason}; the shards of before stay", result.seconds)
    return done | kept


def _source(path: Path, cfg: PackConfig) -> SourceEntry:
    """What the shards of a clip depend on. Raises DataError when it can't be read."""
    settings = dataclasses.asdict(cfg)
    del settings["jobs"]
    if cfg.extractor.startswith(speech.FROM_FILE):
        settings["features"] = _digest(precomputed.path_of(cfg.extractor.removeprefix(speech.FROM_FILE), path))
    size, digest = fingerprint(path)
    mark = hashlib.sha256(json.dumps([RECIPE, settings], sort_keys=True).encode()).hexdigest()[:16]
    return SourceEntry(file=path.name, bytes=size, sha256=digest, settings=mark)


def _digest(features: Path) -> str:
    """Of a file of speech features; empty where it can't be read, which packing says."""
    with suppress(DataError):
        return fingerprint(features)[1]
    return ""


def _is_finished(entry: IdentityEntry, sizes: dict[str, int], work: Work) -> bool:
    """Whether an identity was packed from the same clip with the same settings, and all of it is there."""
    same = entry.source and dataclasses.replace(entry.source, file=work.source.file) == work.source
    return bool(same and is_whole(entry, sizes))


def _agreed(before: IdentityEntry | None, source: SourceEntry) -> str:
    """The note of consent that was given for this very file."""
    same = before and before.source and before.source.sha256 == source.sha256
    return before.consent if before and same else ""


def _everywhere(out: str) -> str:
    """The same place for a process with another working folder."""
    return out if "://" in out else str(Path(out).expanduser().absolute())


def _arrived(storage: Storage, result: Done) -> Done:
    """Refuses shards that a worker wrote where this process does not see them."""
    entry = result.entry
    if entry is None or storage.sizes(entry.name).items() >= entry.files.items():
        return result
    return Done(
        None,
        f"packed by a node whose {storage.url} is not this one's; give an --out that all nodes share: s3://bucket/prefix or a shared folder",
    )


def _write(storage: Storage, formats: Manifest, names: set[str], done: dict[str, Done]) -> Manifest:
    """Writes what is done of `names` beside the others that the manifest has now: another pack may have ended since this one began.

    Two that end within the same moment can still miss one another; packed again, each finds its shards and only names them.
    """
    entries = _others(storage, _stored(storage, formats), formats, names) + [
        result.entry for result in done.values() if result.entry
    ]
    manifest = dataclasses.replace(formats, identities=sorted(entries, key=lambda entry: entry.name))
    write_manifest(storage, manifest)
    return manifest


def _outcome(result: Done) -> str:
    if result.bug:
        print(result.bug, file=sys.stderr)
    if result.entry is None:
        return f"refused: {result.reason}"
    speed = 1e3 * result.seconds / result.entry.num_frames
    note = f"; {result.note}" if result.note else ""
    return f"packed {result.entry.num_frames} frames in {result.seconds:.1f} s ({speed:.0f} ms a frame){note}"


def _table(done: dict[str, Done], new: set[str]) -> str:
    titles = ("clip", "state", "frames", "train", "test", "MiB", "note")
    rows = []
    for name, result in done.items():
        entry = result.entry
        if entry is None or result.reason:
            rows.append((name, "refused", "", "", "", "", result.reason))
        else:
            numbers = (str(entry.num_frames), str(entry.split.train), str(entry.split.test))
            mib = f"{sum(entry.files.values()) / 2**20:.1f}"
            renamed = f"of {entry.source.file}" if entry.source and Path(entry.source.file).stem != name else ""
            note = "; ".join(filter(None, (renamed, result.note)))
            rows.append((name, "packed" if name in new else "unchanged", *numbers, mib, note))
    return text_of(tabulate(titles, rows, folded=("clip", "note")))


if __name__ == "__main__":
    sys.exit(guarded(main))
