"""Identities at one place: those that this call packs, among those that lie there already."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from fiag_dist.errors import DataError
from fiag_dist.shards.folder import is_whole, marked
from fiag_dist.shards.manifest import FILE, IdentityEntry, Manifest, read_manifest, write_manifest
from fiag_dist.shards.packing import Done
from fiag_dist.storage import Storage


@dataclass(frozen=True)
class Collection:
    """A folder or prefix, the format of what is packed now (`formats`: a manifest that names nobody), and the names that are."""

    storage: Storage
    formats: Manifest
    names: frozenset[str]

    def stored(self) -> Manifest:
        """The manifest that is there now; one that names nobody, where there is none."""
        return read_manifest(self.storage, check=False) if self.storage.exists(FILE) else self.formats

    def others(self, there: Manifest) -> list[IdentityEntry]:
        """Identities of a stored manifest that this call does not pack. Raises DataError when they have another format."""
        others = [entry for entry in there.identities if entry.name not in self.names]
        if others and not self._alike(there):
            raise DataError(
                f"{self.storage.url}: holds {len(others)} {'identities' if len(others) > 1 else 'identity'} of {there.size}x{there.size} at "
                f"{there.fps} fps with {there.audio.extractor} speech and {there.id_embedding.model} embeddings, which these settings do not give; "
                "give another --out, or the same settings"
            )
        return others

    def named(self, there: Manifest) -> dict[str, IdentityEntry]:
        """Identities that a stored manifest names; none where it has another format."""
        return {entry.name: entry for entry in there.identities} if self._alike(there) else {}

    def with_earlier(self, before: Mapping[str, IdentityEntry], done: Mapping[str, Done]) -> dict[str, Done]:
        """The results, where a refused clip's shards of `before` stay as long as they are whole: nothing was written over them."""
        kept = {}
        for name, result in done.items():
            if result.entry is None and name in before:
                sizes = self.storage.sizes(name)
                entry = marked(self.storage, sizes, name)
                if entry and entry.sha256 == before[name].sha256 and is_whole(entry, sizes):
                    kept[name] = Done(entry, f"{result.reason}; the shards of before stay", result.seconds)
        return {**done, **kept}

    def arrived(self, result: Done) -> Done:
        """Refuses shards that a worker wrote where this process does not see them."""
        entry = result.entry
        if entry is None or self.storage.sizes(entry.name).items() >= entry.files.items():
            return result
        return Done(
            None,
            f"packed by a node whose {self.storage.url} is not this one's; give an --out that all nodes share: s3://bucket/prefix or a shared folder",
        )

    def write(self, done: Mapping[str, Done]) -> Manifest:
        """Names what is done beside the others that the manifest has now: another pack may have ended since this one began.

        Two that end within the same moment can still miss one another; packed again, each finds its shards and only names them.
        """
        entries = self.others(self.stored()) + [result.entry for result in done.values() if result.entry]
        manifest = dataclasses.replace(self.formats, identities=sorted(entries, key=lambda entry: entry.name))
        write_manifest(self.storage, manifest)
        return manifest

    def _alike(self, there: Manifest) -> bool:
        return dataclasses.replace(there, identities=[]) == self.formats
