"""Local storage: atomic writes, listings that hide unfinished files, errors that name the URL, retries only for what can pass."""

import errno
import threading
from pathlib import Path

import pytest

from fiag_dist import storage as storage_module
from fiag_dist.errors import DataError
from fiag_dist.storage import LocalStorage, open_storage


def test_round_trip(tmp_path: Path) -> None:
    store = open_storage(str(tmp_path / "new"))
    assert not store.exists("a/b.bin")
    store.write("a/b.bin", b"12345")
    store.write("a/c/d.bin", b"1")
    store.write("ab.bin", b"")
    assert store.read("a/b.bin") == b"12345"
    assert store.size("a/b.bin") == 5
    assert store.exists("a")
    assert store.exists("a/b.bin")
    assert store.list("a") == ["a/b.bin", "a/c/d.bin"]
    assert store.list() == ["a/b.bin", "a/c/d.bin", "ab.bin"]
    assert store.children() == ["a/", "ab.bin"]
    assert store.local("a/b.bin").read_bytes() == b"12345"
    store.delete("a")
    store.delete("never/there")
    assert store.list() == ["ab.bin"]


def test_unfinished_files_are_not_listed_and_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_storage(tmp_path)
    store.write("x", b"old")

    def full(descriptor: int) -> None:
        assert store.list() == ["x"], "the half-written file shows"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage_module.os, "fsync", full)
    with pytest.raises(DataError, match=r"/x: the disk is full"):
        store.write("x", b"new bytes")
    assert store.read("x") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    store = open_storage(tmp_path)
    versions = [bytes([i]) * 200_000 for i in range(2)]
    store.write("x", versions[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for version in versions:
                store.write("x", version)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(store.read("x") in versions for _ in range(50))
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("action", ["read", "size", "local"])
def test_missing_file_names_its_url(tmp_path: Path, action: str) -> None:
    store = open_storage(tmp_path)
    with pytest.raises(DataError, match=rf"{tmp_path}/no/file.tar: no such file"):
        getattr(store, action)("no/file.tar")


@pytest.mark.parametrize("url", ["gs://bucket/x", "http://host/x"])
def test_unknown_scheme(url: str) -> None:
    with pytest.raises(DataError, match="not supported"):
        open_storage(url)


def test_bucket_must_be_named() -> None:
    with pytest.raises(DataError, match="no bucket"):
        open_storage("s3:///x")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_paths_stay_inside(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match="inside its folder"):
        open_storage(tmp_path).read(path)


@pytest.mark.parametrize(("number", "calls"), [(errno.ESTALE, 3), (errno.EACCES, 1)])
def test_only_errors_that_can_pass_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, calls: int
) -> None:
    store = LocalStorage(str(tmp_path))
    store.write("x", b"1")
    made = []
    read_bytes = Path.read_bytes

    def flaky(path: Path) -> bytes:
        made.append(path)
        if len(made) < 3:
            raise OSError(number, "now and then")
        return read_bytes(path)

    monkeypatch.setattr(storage_module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(Path, "read_bytes", flaky)
    if calls == 3:
        assert store.read("x") == b"1"
    else:
        with pytest.raises(DataError, match="access denied"):
            store.read("x")
    assert len(made) == calls


def test_remote_copies_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIAG_CACHE_GIB", str(250 / 2**30))
    for age, name in enumerate(["new", "middle", "old"]):
        file = tmp_path / name
        file.write_bytes(b"x" * 100)
        storage_module.os.utime(file, (1000 - age, 1000 - age))
    storage_module._evict(tmp_path, 100)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
