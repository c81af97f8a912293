"""From packing to training on a real S3 server: what is read is what was packed, or one line says which shard is not."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_proxy import Fault, Proxy, always, at_random, every_third
from made_shards import FRAMES, make, write_two

from fiag_dist import cli
from fiag_dist.config import TrainConfig
from fiag_dist.dist.ownership import assign
from fiag_dist.errors import DataError
from fiag_dist.shards.manifest import FILE, read_manifest
from fiag_dist.shards.reader import FrameReader, iter_frames, read_meta
from fiag_dist.shards.writer import write_identity
from fiag_dist.storage import S3Storage, Storage, open_storage, retry
from fiag_dist.training.feed import Feed

sys.path.insert(0, str(Path(__file__).parents[2] / "shards"))
import make_demo

SHARD = "anna/anna-000001.tar"
DEMO = make_demo.Demo(seconds=0.9, size=32, seed=0, frames_per_shard=6)
PASSING = (
    Fault("status"),
    Fault("status", status=500, code="InternalError"),
    Fault("lost answer"),
    Fault("cut answer"),
)


@pytest.fixture
def store(url: str) -> S3Storage:
    """`anna` and `bert`, three shards each."""
    store = S3Storage(url)
    write_two(store)
    return store


def lessons(storage: Storage, steps: int = 12) -> list:
    """The first frames that a rank would train on, with what it would learn of them."""
    manifest = read_manifest(storage)
    ownership = assign(manifest.names, {entry.name: entry.split.train for entry in manifest.identities}, 2, 1)
    feed = Feed(TrainConfig(seed=3), storage, manifest, ownership, 0)
    try:
        return [lesson for step in range(steps) for lesson in feed.next(step)]
    finally:
        feed.close()


def test_packed_verified_and_trained_on(url: str, tmp_path: Path, proxy: Proxy, capsys, monkeypatch) -> None:
    proxy.calm()
    proxy.choose = every_third(".", Fault("lost answer"))
    manifest = make_demo.make_demo(url, 2, DEMO, jobs=1)
    puts = [request for request, _ in proxy.seen if request.startswith("PUT")]
    first = next(number for number, request in enumerate(puts) if request.endswith(FILE))
    assert all(request.endswith(FILE) for request in puts[first:]), "the manifest comes last"
    proxy.choose = every_third(".", Fault("status"))
    assert cli.main(["shards", "verify", url]) == 0
    assert "all 2 identities are whole" in capsys.readouterr().out
    proxy.calm()
    far, near = open_storage(url), open_storage(tmp_path / "near")
    for path in far.list():
        near.write(path, far.read(path))
    # Less room than shards: they come and go while they are trained on.
    room = 2.5 * max(shard.bytes for entry in manifest.identities for shard in entry.shards)
    monkeypatch.setenv("FIAG_CACHE_GIB", str(room / 2**30))
    proxy.choose = every_third(".", Fault("cut answer"))
    for one, other in zip(lessons(far), lessons(near), strict=True):
        assert (one.lane, one.rival, one.shot.index) == (other.lane, other.rival, other.shot.index)
        for name in ("image", "alpha", "labels", "audio", "embedding", "expression", "landmarks"):
            assert torch.equal(getattr(one.shot, name), getattr(other.shot, name)), name
    assert proxy.count("^GET .*tar") > 2 * sum(len(entry.files) for entry in manifest.identities), "they went, and came"
    kept = [file.stat().st_size for file in (tmp_path / "cache" / "objects").iterdir() if file.is_file()]
    assert 0 < sum(kept) <= room


def test_packing_that_is_cut_off_publishes_nothing_and_goes_on(url: str, proxy: Proxy) -> None:
    store = S3Storage(url)
    proxy.choose = always("^PUT .*bert-000001", Fault("cut request"))
    with pytest.raises(DataError, match=rf"{url}/bert/bert-000001.tar: writing failed 3 times"):
        write_two(store)
    proxy.calm()
    assert "bert/bert-000001.tar" not in store.list()
    with pytest.raises(DataError, match=r"manifest.json: no such file .*holds anna/, bert/.*fiag-dist pack"):
        read_manifest(store)
    write_two(store)
    assert cli.main(["shards", "verify", url]) == 0


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", r"\d+ bytes found, \d+ expected \(fetched again, and no better\)"),
        ("changed", r"SHA-256 .* found, .* expected, the size is right \(fetched again, and no better\)"),
        ("vanished", "no such file, but the manifest names it"),
    ],
)
def test_a_damaged_shard_is_named_wherever_it_is_read(
    store: S3Storage, proxy: Proxy, kind, words: str, capsys: pytest.CaptureFixture
) -> None:
    entry = read_manifest(store).entry("anna")
    reader = FrameReader(store, entry)
    proxy.calm()
    proxy.choose = always(f"^GET .*{SHARD}", Fault(kind))
    message = rf"^shard {store.url}/{SHARD}: {words}.*; run: fiag-dist shards verify {store.url}, then pack again$"
    reader.frame(9)
    with pytest.raises(DataError, match=message):
        reader.frame(10)
    assert proxy.count(f"^GET .*{SHARD}") == (1 if kind == "vanished" else 2)
    with pytest.raises(DataError, match=message):
        list(iter_frames(store, entry))
    assert cli.main(["shards", "verify", store.url]) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if ": ok, " not in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{SHARD}: {'missing' if kind == 'vanished' else kind}")
    proxy.choose = always("^GET .*anna/meta.tar", Fault(kind))
    FrameReader(store, entry)  # its copy is in the cache, and right
    proxy.choose = always("^GET .*bert/meta.tar", Fault(kind))
    with pytest.raises(DataError, match=rf"shard {store.url}/bert/meta.tar: {words}"):
        read_meta(store, read_manifest(store).entry("bert"))


def test_a_copy_that_is_damaged_is_fetched_again_once(store: S3Storage, proxy: Proxy, tmp_path: Path) -> None:
    entry = read_manifest(store).entry("anna")
    truth = [frame.labels for frame in iter_frames(store, entry)]
    (copy,) = (tmp_path / "cache" / "objects").glob("*-anna-000001.tar")
    data = copy.read_bytes()
    for damaged in (data[:-512], data[:2000] + b"\xff" + data[2001:], b""):
        copy.write_bytes(damaged)
        proxy.calm()
        assert np.array_equal(FrameReader(S3Storage(store.url), entry).frame(12).labels, truth[12])
        assert proxy.count(SHARD) == 1
        assert copy.read_bytes() == data
    copy.unlink()  # as another process does to make room
    reader = FrameReader(store, entry)
    reader.frame(10)
    copy.unlink()
    assert np.array_equal(reader.frame(12).labels, truth[12])
    proxy.calm()
    proxy.choose = always(".", Fault("status"))
    assert np.array_equal(reader.frame(13).labels, truth[13]), "a copy that is there needs no server"


def test_packing_anew_is_not_hidden_by_old_copies(store: S3Storage) -> None:
    before = [frame.labels for frame in iter_frames(store, read_manifest(store).entry("anna"))]
    entry = write_identity(store, *make("anna", seed=7), 10)
    after = [frame.labels for frame in iter_frames(store, entry)]
    assert not any(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(np.array_equal(a, b.labels) for a, b in zip(after, make("anna", seed=7)[1], strict=True))


READS = """
import json, sys
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.shards.reader import FrameReader
from fiag_dist.storage import open_storage

store = open_storage(sys.argv[1])
reader = FrameReader(store, read_manifest(store).entry("anna"))
print(json.dumps([int(reader.frame(i).labels.sum()) for i in range(len(reader))]))
"""


def test_processes_of_a_machine_fetch_a_shard_once(store: S3Storage, proxy: Proxy) -> None:
    proxy.calm()
    proxy.choose = always("^GET .*tar", Fault("slow", seconds=0.5))
    other = subprocess.Popen([sys.executable, "-c", READS, store.url], stdout=subprocess.PIPE, text=True)
    while other.poll() is None and not proxy.count("^GET .*tar"):
        time.sleep(0.02)
    reader = FrameReader(store, read_manifest(store).entry("anna"))
    found = [[int(reader.frame(i).labels.sum()) for i in range(FRAMES)], json.loads(other.communicate(timeout=120)[0])]
    assert found == [[int(frame.labels.sum()) for frame in make("anna")[1]]] * 2
    assert proxy.count("^GET .*tar") == 4, "three shards and meta.tar, for both"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_many_random_faults(url: str, proxy: Proxy, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to half of the requests fail in ways that can pass: packing and reading come through, or end in one line and leave nothing half done."""
    monkeypatch.setattr(retry, "ATTEMPTS", 6)
    rng = np.random.default_rng(seed)
    store = S3Storage(url)
    proxy.choose = at_random(seed, float(rng.uniform(0.1, 0.5)), *PASSING, Fault("cut request"), Fault("reset answer"))
    monkeypatch.setenv("FIAG_CACHE_GIB", str(rng.uniform(5e4, 5e5) / 2**30))
    done, refused = 0, []
    truth = [frame.labels for frame in make("anna")[1]]
    for _ in range(5):
        try:
            write_two(store)
            manifest = read_manifest(store)
            reader = FrameReader(S3Storage(url), manifest.entry("anna"))
            for position in rng.integers(0, FRAMES, 30).tolist():
                assert np.array_equal(reader.frame(position).labels, truth[position])
            done += 1
        except DataError as error:
            refused.append(str(error))
    met = sum(fault is not None for _, fault in proxy.seen)
    print(f"seed {seed}: {done} rounds done, {len(refused)} refused; {met} faults in {len(proxy.seen)} requests")
    assert all("failed 6 times" in line and "\n" not in line for line in refused), refused
    proxy.calm()
    write_two(store)
    assert cli.main(["shards", "verify", url]) == 0
