"""`fiag-dist shards ls|verify|show|remove URL`: what a folder of shards holds, whether it is whole, what one sample looks like, and people taken out of it."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from fiag_dist.errors import DataError
from fiag_dist.shards.folder import clear
from fiag_dist.shards.manifest import Manifest, read_manifest, write_manifest
from fiag_dist.shards.reader import FrameReader
from fiag_dist.shards.verify import damage, extras
from fiag_dist.storage import Storage, open_storage


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 2 when `verify` finds damage. Raises DataError."""
    parser = argparse.ArgumentParser(prog="fiag-dist shards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="ls|verify|show|remove")
    for name, text in (
        ("ls", "a table of the identities"),
        ("verify", "read everything and name what is missing, truncated, changed, extra or malformed"),
        ("show", "lay one sample out as files"),
        ("remove", "take people out: out of the manifest, and then their files"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("url", help="folder or s3:// prefix that holds manifest.json")
        if name == "show":
            command.add_argument("--identity", help="its name (default: the first)")
            command.add_argument("--frame", type=int, default=0, help="position in time order (default: 0)")
            command.add_argument("--out", type=Path, help="folder for the files (default: sample-IDENTITY-FRAME here)")
        if name == "remove":
            command.add_argument("names", nargs="+", metavar="NAME", help="whom to take out")
    args = parser.parse_args(argv)
    storage = open_storage(args.url)
    if args.command == "verify":
        return _verify(storage)
    if args.command == "remove":
        return _remove(storage, args.names)
    manifest = read_manifest(storage)
    if args.command == "ls":
        print(table(manifest).encode("utf-8", "backslashreplace").decode())  # file names may be no text
        return 0
    return _show(storage, manifest, args.identity, args.frame, args.out)


def table(manifest: Manifest) -> str:
    """One line for each identity, and a line for all."""
    width = max([8, *map(len, manifest.names)])
    lines = [f"{'identity':<{width}}  frames  seconds  train  test  shards      MiB  packed from"]
    for entry in manifest.identities:
        lines.append(
            f"{entry.name:<{width}} {entry.num_frames:>7} {entry.seconds:>8.1f} {entry.split.train:>6} {entry.split.test:>5}"
            f" {len(entry.shards):>7} {sum(entry.files.values()) / 2**20:>8.1f}"
            f"  {entry.source.file if entry.source else ''}".rstrip()
        )
    audio, embedding = manifest.audio, manifest.id_embedding
    lines.append(
        f"{len(manifest.identities)} identities, {sum(i.num_frames for i in manifest.identities)} frames of "
        f"{manifest.size}x{manifest.size} at {manifest.fps} fps; speech {audio.extractor} [{audio.dim}, {audio.window}]; "
        f"identity {embedding.model} [{embedding.dim}]"
    )
    return "\n".join(lines)


def _verify(storage: Storage) -> int:
    manifest = read_manifest(storage, check=False)
    bad = [*extras(storage, manifest)]
    print("".join(f"{line}\n" for line in bad), end="", flush=True)
    for entry in manifest.identities:
        lines = damage(storage, manifest, entry)
        bad += lines
        files = len(entry.shards) + 1
        print("\n".join(lines or [f"{entry.name}: ok, {entry.num_frames} frames in {files} files"]), flush=True)
    if bad:
        fix = f"pack again: fiag-dist pack CLIPS --out {storage.url}, and delete what is extra"
        print(f"{storage.url}: {len(bad)} fault{'s' if len(bad) > 1 else ''}, named above; {fix}", file=sys.stderr)
        return 2
    print(f"all {len(manifest.identities)} identities are whole")
    return 0


def _remove(storage: Storage, names: Sequence[str]) -> int:
    """The manifest goes first: at no moment does it name what is not there."""
    manifest = read_manifest(storage, check=False)
    gone = {name: manifest.entry(name) for name in names}
    kept = [entry for entry in manifest.identities if entry.name not in gone]
    write_manifest(storage, dataclasses.replace(manifest, identities=kept))
    for name, entry in gone.items():
        with storage.claim(name):
            clear(storage, name)
        print(f"{name}: {entry.num_frames} frames taken out of {storage.url}")
    print(
        f"{len(kept)} identities are left. What was trained on these frames has learnt from them: delete their identity folders, and pretrain anew without them"
    )
    return 0


def _show(storage: Storage, manifest: Manifest, name: str | None, position: int, out: Path | None) -> int:
    if not manifest.identities:
        raise DataError(f"{storage.url}: the manifest names no identities")
    entry = manifest.entry(name) if name else manifest.identities[0]
    if not 0 <= position < entry.num_frames:
        raise DataError(f"frame {position} of {entry.name}: it has frames 0..{entry.num_frames - 1}")
    members = dict(FrameReader(storage, entry).sample(position))
    stem = members.pop("__key__").replace("/", "-")
    folder = out or Path(f"sample-{stem}")
    target = open_storage(str(folder))
    for extension, data in members.items():
        target.write(f"{stem}.{extension}", data)
    print(members["json"].decode())
    print(f"{len(members)} files in {folder}/")
    return 0
