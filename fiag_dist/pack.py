"""fiag-dist pack: clips in, shards and a manifest out. One Ray task a clip; a bad clip is refused with its reason and the others go on."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
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
from fiag_dist.shards.collection import Collection
from fiag_dist.shards.folder import is_whole, marked, probe, stranger, write_mark
from fiag_dist.shards.manifest import (
    FILE,
    AudioFormat,
    EmbeddingFormat,
    IdentityEntry,
    Manifest,
    SourceEntry,
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
    there = Collection(storage, _formats(cfg, found), frozenset(found))
    sizes = storage.sizes()
    probe(storage)
    stored = there.stored()
    there.others(stored)  # another format is refused before the work, not after it
    before = there.named(stored)
    done, todo = _sorted(found, there, sizes, cfg, consent, _everywhere(out), stored)
    done = there.with_earlier(before, done)
    for name, result in done.items():
        say(f"{name}: " + (f"refused: {result.reason}" if result.reason else "unchanged, skipped"))
    if todo and FILE in sizes:  # what the manifest names must be complete at every moment
        there.write(done)
    try:
        for work, result in pack_all(todo, cfg.jobs, packer, say, address):
            result = done[work.name] = there.arrived(result)
            say(f"[{len(done)}/{len(found)}] {work.name}: {_outcome(result)}")
    except KeyboardInterrupt:
        say(
            f"stopped: {len(done)} of {len(found)} clips are finished and stay; the same command goes on with the others"
        )
        raise
    done = there.with_earlier(before | there.named(there.stored()), done)
    say(_table({name: done[name] for name in found}, {work.name for work in todo}))
    refused = {name: done[name].reason for name in found if done[name].reason}
    if len(refused) == len(found):
        if any(result.entry for result in done.values()):
            there.write(done)
        name, reason = next(iter(refused.items()))
        raise DataError(f"none of {len(found)} clips can be used; {name}: {reason}")
    return PackResult(there.write(done), refused)


def _sorted(
    found: Mapping[str, list[Path]],
    there: Collection,
    sizes: dict[str, int],
    cfg: PackConfig,
    consent: str,
    out: str,
    stored: Manifest,
) -> tuple[dict[str, Done], list[Work]]:
    """Clips that need no work, because they can't be packed or are packed already, and what is to be done for the others."""
    named = {entry.name: entry for entry in stored.identities}
    shape = (there.formats.audio.dim, there.formats.audio.window)
    done: dict[str, Done] = {}
    todo: list[Work] = []
    for name, paths in found.items():
        if len(paths) > 1:
            done[name] = Done(None, f"{len(paths)} clips have this name ({', '.join(map(str, paths))}); rename them")
            continue
        try:
            source = _source(paths[0], cfg)
        except DataError as error:
            done[name] = Done(None, str(error))
            continue
        mark = marked(there.storage, sizes, name)
        note = consent or _agreed(named.get(name) or mark, source)
        work = Work(paths[0].absolute(), name, out, cfg, source, shape, note)
        if mark and _is_finished(mark, sizes, work):
            done[name] = Done(_with_note(there.storage, mark, note))
        elif other := stranger(sizes, name):
            reason = (
                f"{there.storage.url}/{other} lies where its shards would go, and is none of them; give another --out"
            )
            done[name] = Done(None, reason)
        else:
            todo.append(work)
    return done, todo


def _with_note(storage: Storage, mark: IdentityEntry, note: str) -> IdentityEntry:
    """The entry of a finished identity, with this note of consent, here and in its folder."""
    if mark.consent != note:
        mark = dataclasses.replace(mark, consent=note)
        write_mark(storage, mark)
    return mark


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
