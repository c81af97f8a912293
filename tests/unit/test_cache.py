"""The cache of remote files: bounded, least recently used first out, whole copies only, shared by threads and processes that may die."""

import errno
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fiag_dist import weights
from fiag_dist.errors import ConfigError
from fiag_dist.storage import cache as cache_module
from fiag_dist.storage.cache import Cache, cache_bound, cache_folder


def content(name: str, size: int) -> bytes:
    return random.Random(name).randbytes(size)


def take(cache: Cache, name: str, size: int = 100, fetched: list[str] | None = None) -> None:
    """Opens a copy, fetching it if need be, and compares it."""

    def fetch(part: Path) -> None:
        if fetched is not None:
            fetched.append(name)
        part.write_bytes(content(name, size))

    with cache.open(name, size, fetch) as stream:
        assert stream.read() == content(name, size)


def copies(cache: Cache) -> set[str]:
    return {file.name for file in cache.folder.iterdir() if file.is_file()}


def test_the_copy_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache, fetched = Cache(tmp_path, 250), []
    for name in ("a", "b", "a", "c", "a", "d"):
        take(cache, name, fetched=fetched)
    assert fetched == ["a", "b", "c", "d"]
    assert copies(cache) == {"a", "d"}
    take(cache, "big", 1000)
    assert copies(cache) == {"big"}, "one that is larger than the bound is kept alone"
    take(cache, "a")
    assert copies(cache) == {"a"}


def test_a_dropped_copy_stays_readable_where_it_is_open(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 150)
    with cache.open("a", 100, lambda part: part.write_bytes(content("a", 100))) as stream:
        take(cache, "b")
        assert copies(cache) == {"b"}
        assert stream.read() == content("a", 100)


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)

    def fetch(part: Path) -> None:
        part.write_bytes(b"half")
        raise ConnectionError("cut")

    with pytest.raises(ConnectionError):
        cache.open("a", 100, fetch)
    assert copies(cache) == set()
    take(cache, "a")


def test_a_folder_that_can_not_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "taken" / "locks").mkdir(parents=True)
    for lock in range(cache_module.LOCKS):
        (tmp_path / "taken" / "locks" / f"{lock:02d}").mkdir()  # whose lock files can't be opened
    for name, reason in (("file", "Not a directory"), ("file/below", "Not a directory"), ("taken", "Is a directory")):
        line = (
            rf"^{tmp_path}/{name}.*: copies of remote files can't be kept there \({reason}\); give FIAG_CACHE another"
        )
        with pytest.raises(ConfigError, match=line):
            take(Cache(tmp_path / name, 1000), "a")


def test_a_copy_of_another_user_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, fetched = Cache(tmp_path, 1000), []
    take(cache, "a", fetched=fetched)

    def denied(*words: object, **more: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(cache_module.os, "utime", denied)
    take(cache, "a", fetched=fetched)
    assert fetched == ["a"]


def test_threads_that_want_the_same_fetch_it_once(tmp_path: Path) -> None:
    cache, fetched = Cache(tmp_path, 1000), []

    def slow(part: Path) -> None:
        fetched.append(part)
        time.sleep(0.1)
        part.write_bytes(content("a", 100))

    def read(_: int) -> bytes:
        with cache.open("a", 100, slow) as stream:
            return stream.read()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(read, range(4))) == {content("a", 100)}
    assert len(fetched) == 1


KILLED = """
import sys, time
from pathlib import Path
from fiag_dist.storage.cache import Cache

def fetch(part):
    part.write_bytes(b"half")
    print("fetching", flush=True)
    time.sleep(60)

Cache(Path(sys.argv[1]), 250).open("a", 200, fetch)
"""


def test_what_a_killed_process_left_is_found_and_what_a_living_one_fetches_counts(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "fetching\n"
        cache = Cache(tmp_path, 250)
        take(cache, "b", 50)
        take(cache, "c", 50)
        assert copies(cache) == {"c", ".part-200-a"}, "200 bytes of the bound are spoken for"
    finally:
        other.kill()
        other.communicate()
    take(cache, "d", 100)
    assert copies(cache) == {"c", "d"}, "nobody will finish that one"
    take(cache, "a", 200)
    assert copies(cache) == {"a"}


MANY = """
import random, sys
from pathlib import Path
from fiag_dist.storage.cache import Cache

cache, rng = Cache(Path(sys.argv[1]), 5000), random.Random(sys.argv[2])
for _ in range(150):
    name = str(rng.randrange(12))
    with cache.open(name, 1000, lambda part: part.write_bytes(random.Random(name).randbytes(1000))) as stream:
        assert stream.read() == random.Random(name).randbytes(1000)
    held = 0
    for file in Path(sys.argv[1]).iterdir():
        if file.is_file() and not file.name.startswith(".part-"):
            held += 1000
    assert held <= 6000, held  # the look is not one moment: a copy may go and another come in between
"""


def test_processes_share_the_bound(tmp_path: Path) -> None:
    others = [subprocess.Popen([sys.executable, "-c", MANY, str(tmp_path), str(seed)]) for seed in range(3)]
    assert [other.wait(120) for other in others] == [0, 0, 0]
    assert len(copies(Cache(tmp_path, 5000))) == 5
    for name in copies(Cache(tmp_path, 5000)):
        assert (tmp_path / name).read_bytes() == content(name, 1000)


def test_the_bound_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIAG_CACHE_GIB", "0.5")
    assert cache_bound() == 2**29
    for text in ("much", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("FIAG_CACHE_GIB", text)
        with pytest.raises(ConfigError, match=f"FIAG_CACHE_GIB={text}: must be a number of GiB above 0"):
            cache_bound()


def test_what_is_kept_for_a_user_lies_in_one_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FIAG_CACHE", "FIAG_WEIGHTS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = tmp_path / "home" / ".cache" / "fiag_dist"
    assert (cache_folder(), weights.cache_folder()) == (home, home / "weights")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    chosen = tmp_path / "xdg" / "fiag_dist"
    assert (cache_folder(), weights.cache_folder()) == (chosen, chosen / "weights")
    monkeypatch.setenv("FIAG_CACHE", str(tmp_path / "copies"))
    assert (cache_folder(), weights.cache_folder()) == (tmp_path / "copies", chosen / "weights")
