"""A run folder on S3: what grows line by line is written on this machine, and copied to where the run lives at every checkpoint."""

from fiag_dist.dist.process import Process
from fiag_dist.storage import LocalStorage, cache_folder, open_storage

RECORDS = ("metrics.jsonl",)
"""Files that a run which goes on adds to."""


class Mirror:
    """The local folder of a run's logs and pictures. Of a run on local disk it is the run folder itself, and nothing is copied."""

    def __init__(self, url: str, process: Process) -> None:
        """Brings what a run that goes on adds to here, if it is not."""
        storage = open_storage(url)
        is_local = isinstance(storage, LocalStorage)
        self._remote = None if is_local else storage
        self.folder = storage.folder if is_local else cache_folder() / "runs" / url.partition("://")[2]
        self._rank = process.rank
        self._published: dict[str, tuple[int, int]] = {}
        if self._remote is None or not process.is_first:
            return
        for name in RECORDS:
            if not (self.folder / name).exists() and self._remote.exists(name):
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / name).write_bytes(self._remote.read(name))

    def publish(self) -> None:
        """Copies what changed since the last time. Raises DataError when the place can't be reached."""
        if self._remote is None:
            return
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            name, seen = path.relative_to(self.folder).as_posix(), path.stat()
            state = seen.st_size, seen.st_mtime_ns
            if self._writer_of(name) == self._rank and self._published.get(name) != state:
                self._remote.write(name, path.read_bytes())
                self._published[name] = state

    @staticmethod
    def _writer_of(name: str) -> int:
        """The rank that writes a file: its own log; everything else is rank 0's."""
        number = name.removeprefix("logs/rank").removesuffix(".log")
        return int(number) if number.isdigit() else 0
