"""A run folder on S3: what grows line by line is written on this machine, and copied to where the run lives at every checkpoint."""

from pathlib import Path

from fiag_dist.acting.actor import INFO
from fiag_dist.dist.process import Process
from fiag_dist.storage import LocalStorage, Storage, cache_folder, open_storage

METRICS = "metrics.jsonl"
"""The record of a run's numbers."""
RECORDS = (METRICS, "logs/rank{rank}.log")
"""Files that a run which goes on adds to. TensorBoard's need not be brought: each process writes one of its own, and all are kept."""

EVENTS = "tb/"
"""Where TensorBoard's files are."""


def is_mirrored(folder: Path) -> bool:
    """Whether a run's local folder is that of a run which lives on S3."""
    return folder.is_relative_to(_copies())


class Mirror:
    """The local folder of a run's logs and pictures. Of a run on local disk it is the run folder itself, and nothing is copied."""

    def __init__(self, url: str, process: Process) -> None:
        """Brings here what a run that goes on adds to, as far as this rank writes it."""
        storage = open_storage(url)
        is_local = isinstance(storage, LocalStorage)
        self._remote = None if is_local else storage
        self.folder = storage.folder if is_local else _copies() / url.partition("://")[2]
        self._rank = process.rank
        self._published: dict[str, tuple[int, int]] = {}
        if self._remote:
            self._begin(self._remote)

    def _begin(self, remote: Storage) -> None:
        """Compares what an earlier process left here with what is there, which decides.

        What is there no more is deleted here. What is there counts as copied: it may be newer than ours, which must not replace it. Records that this
        rank writes are brought here, but for those of ours that go on from what is there.
        """
        records = [name.format(rank=self._rank) for name in RECORDS]
        own = self._own()
        # TensorBoard's files are many; all others are asked for one by one, since a run folder holds many more.
        events = remote.list(EVENTS) if any(name.startswith(EVENTS) for name, _ in own) else []
        for name, path in own:
            if not (name in events if name.startswith(EVENTS) else remote.exists(name)):
                path.unlink()
            elif name not in records:
                self._published[name] = _state(path)
        for name in records:
            if self._writer_of(name) == self._rank and remote.exists(name):
                here, stored = self.folder / name, remote.read(name)
                # Another machine may have gone on since, and what is there reaches to the newest checkpoint: ours stays where it goes on from that.
                if not (here.exists() and here.read_bytes().startswith(stored)):
                    here.parent.mkdir(parents=True, exist_ok=True)
                    here.write_bytes(stored)

    def publish(self) -> None:
        """Copies what changed since the last time. Raises DataError when the place can't be reached."""
        if self._remote is None:
            return
        for name, path in sorted(self._own(), key=lambda own: (own[1].name == INFO, own)):  # INFO last: it says: whole
            state = _state(path)
            if self._published.get(name) != state:
                self._remote.write(name, path.read_bytes())
                self._published[name] = state

    def _own(self) -> list[tuple[str, Path]]:
        """The files here that this rank writes, by name."""
        files = [(path.relative_to(self.folder).as_posix(), path) for path in self.folder.rglob("*") if path.is_file()]
        return [(name, path) for name, path in files if self._writer_of(name) == self._rank]

    @staticmethod
    def _writer_of(name: str) -> int:
        """The rank that writes a file: its own log; everything else is rank 0's."""
        number = name.removeprefix("logs/rank").removesuffix(".log")
        return int(number) if number.isdigit() else 0


def _copies() -> Path:
    return cache_folder() / "runs"


def _state(path: Path) -> tuple[int, int]:
    seen = path.stat()
    return seen.st_size, seen.st_mtime_ns
