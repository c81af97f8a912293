"""Local storage: atomic writes, listings that hide unfinished files, errors that name the URL, retries only for what can pass."""

import errno
import hashlib
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from fiag_dist.errors import DataError
from fiag_dist.storage import DamagedError, LocalStorage, MissingError, local, open_storage, retry


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
    with store.open("a/b.bin") as stream:
        assert stream.read() == b"12345"
    store.delete("a")
    store.delete("never/there")
    assert store.list() == ["ab.bin"]


def test_some_files_of_a_folder_go_and_the_others_stay(tmp_path: Path) -> None:
    store = open_storage(tmp_path)
    for path in ("a/x-1", "a/x-2", "a/y", "a/x-deep/x-1", "x-1", "b"):
        store.write(path, b"1")
    (tmp_path / "a" / ".part-0123").touch()
    for folder in ("a", "b", "never/there"):
        store.delete(folder, re.compile(r"x-.|b"))
    assert store.list() == ["a/x-deep/x-1", "a/y", "b", "x-1"]
    assert not (tmp_path / "a" / ".part-0123").exists()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTEMPTY])
def test_a_folder_that_others_are_at_work_in_is_deleted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store, rmtree = open_storage(tmp_path), local.shutil.rmtree
    store.write("a/x", b"1")
    made = []

    def disturbed(path: Path) -> None:
        made.append(path)
        if len(made) < 3:
            raise OSError(number, os.strerror(number))
        rmtree(path)

    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(local.shutil, "rmtree", disturbed)
    store.delete("a")
    assert len(made) == 3
    assert not (tmp_path / "a").exists()


def test_a_claim_is_one_process_s_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    store, other = open_storage(tmp_path), open_storage(tmp_path)
    refused = pytest.raises(DataError, match=r"/a: claiming failed 6 times in 0 s: another process is writing there")
    with store.claim("a"):
        with refused, other.claim("a"):
            pass
        with other.claim("b"):
            store.write("b/x", b"1")
    assert store.children() == ["b/"], "an empty folder goes with its claim"
    with other.claim("a"):
        pass
    words = [
        sys.executable,
        "-c",
        f"import sys, time; from fiag_dist.storage import open_storage\nwith open_storage({str(tmp_path)!r}).claim('a'): print(flush=True); time.sleep(60)",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        with pytest.raises(DataError, match="another process"), other.claim("a"):
            pass
        holder.kill()
    with other.claim("a"):
        pass


def test_a_place_that_knows_no_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(descriptor: int, how: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(local.fcntl, "flock", unable)
    store = open_storage(tmp_path)
    with store.claim("a"):
        store.write("a/x", b"1")
    assert store.list() == ["a/x"]


def test_links_are_followed_and_what_vanishes_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, elsewhere = open_storage(tmp_path / "here"), open_storage(tmp_path / "elsewhere")
    store.write("a/x", b"1")
    elsewhere.write("y", b"12")
    elsewhere.write("deep/z", b"123")
    (tmp_path / "here/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here/c").symlink_to("b")
    (tmp_path / "elsewhere/deep/back").symlink_to(tmp_path / "here")  # circles: b/deep/back/b, and b/up/here/b
    (tmp_path / "elsewhere/up").symlink_to("..")
    (tmp_path / "here/nowhere").symlink_to("gone")
    (tmp_path / "here/itself").symlink_to("itself")
    assert store.sizes() == {"a/x": 1, "b/deep/z": 3, "b/y": 2, "c/deep/z": 3, "c/y": 2}
    stat = Path.stat

    def vanishing(path: Path, **words: bool) -> os.stat_result:
        if path.name == "x":
            path.unlink()  # after it was listed
        return stat(path, **words)

    monkeypatch.setattr(Path, "stat", vanishing)
    assert store.sizes("a") == {}


def test_unfinished_files_are_not_listed_and_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_storage(tmp_path)
    store.write("x", b"old")

    def full(descriptor: int) -> None:
        assert store.list() == ["x"], "the half-written file shows"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local.os, "fsync", full)
    with pytest.raises(DataError, match=r"/x: writing failed: the disk is full; free space"):
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


@pytest.mark.parametrize("action", ["read", "size", "open"])
def test_missing_file_names_its_url(tmp_path: Path, action: str) -> None:
    store = open_storage(tmp_path)
    with pytest.raises(MissingError, match=rf"{tmp_path}/no/file.tar: no such file"):
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


@pytest.mark.parametrize(
    ("number", "calls", "message"),
    [
        (errno.ESTALE, 3, ""),
        (errno.EACCES, 1, "x: reading failed: access denied .*check the folder's rights"),
        (errno.ENOTDIR, 1, "x: reading failed: NotADirectoryError: .*check the disk"),
    ],
)
def test_only_errors_that_can_pass_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, calls: int, message: str
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

    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(Path, "read_bytes", flaky)
    if message:
        with pytest.raises(DataError, match=message):
            store.read("x")
    else:
        assert store.read("x") == b"1"
    assert len(made) == calls


def test_what_never_passes_ends_with_the_number_of_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(path: Path) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(DataError, match=rf"/x: reading failed {retry.ATTEMPTS} times in 0 s: OSError: .*Stale"):
        open_storage(tmp_path).read("x")


@pytest.mark.parametrize("action", ["exists", "sizes", "list", "children"])
def test_what_can_not_be_looked_at_is_one_line(tmp_path: Path, action: str) -> None:
    store = open_storage(tmp_path)
    with pytest.raises(
        DataError, match=r"^/.*xxx: (reading|listing) failed: .*; check the disk and the path$"
    ) as caught:
        getattr(store, action)("x" * 300)  # no name is so long
    assert "\n" not in str(caught.value)


def test_a_folder_that_can_not_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, scandir = open_storage(tmp_path), os.scandir
    store.write("a/x", b"1")

    def denied(path: str | Path) -> object:
        if Path(path).name == "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(
        DataError, match=r"listing failed: access denied \(Permission denied\); check the folder's rights"
    ):
        store.sizes()


@dataclass(frozen=True)
class Expected:
    bytes: int
    sha256: str


def test_opened_files_are_what_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStorage(str(tmp_path))
    store.write("x", b"12345")
    expected = Expected(5, hashlib.sha256(b"12345").hexdigest())
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: hashed.append(args) or digest(*args))
    for _ in range(3):
        with store.open("x", expected) as stream:
            assert stream.read() == b"12345"
    assert len(hashed) == 1, "an unchanged file is compared once"
    (tmp_path / "x").write_bytes(b"12354")
    with pytest.raises(DamagedError, match=rf"^{tmp_path}/x: SHA-256 \w{{12}}... found, {expected.sha256[:12]}... exp"):
        store.open("x", expected)
    (tmp_path / "x").write_bytes(b"123")
    with pytest.raises(DamagedError, match=rf"^{tmp_path}/x: 3 bytes found, 5 expected$"):
        store.open("x", expected)
    (tmp_path / "x").unlink()
    with pytest.raises(MissingError, match=rf"^{tmp_path}/x: no such file$"):
        store.open("x", expected)
