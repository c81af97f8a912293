"""Pictures that are too many to hold: packed into an unnamed temporary file, read back by number."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

import numpy as np
from jaxtyping import UInt8

from fiag_dist.errors import DataError


@contextmanager
def handed_on(size: int) -> Iterator[Spool]:
    """A spool that whoever the body gives it to must close; closed here only when the body fails."""
    spool = Spool(size)
    try:
        yield spool
    except BaseException:
        spool.close()
        raise


class Spool:
    """A growing list of uint8 [size, size] pictures on disk. The file vanishes when it is closed, at the latest with this object."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        self._places: list[tuple[int, int]] = []

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def append(self, picture: UInt8[np.ndarray, "size size"]) -> None:
        """Raises DataError when the temporary folder is full."""
        data = zlib.compress(np.ascontiguousarray(picture).tobytes(), 1)
        try:
            place = self._file.seek(0, 2)
            self._file.write(data)
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: can't hold what packing puts aside ({error.strerror}); make room, or set TMPDIR to another folder"
            ) from error
        self._places.append((place, len(data)))

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "size size"]:
        place, length = self._places[index]
        try:
            self._file.seek(place)
            data = self._file.read(length)
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: can't hold what packing puts aside ({error.strerror}); make room, or set TMPDIR to another folder"
            ) from error
        return np.frombuffer(zlib.decompress(data), np.uint8).reshape(self._size, self._size)

    def close(self) -> None:
        with suppress(OSError):  # what a full disk does not take is wanted no longer, and `append` has said it
            self._file.close()

    def __del__(self) -> None:
        self.close()
