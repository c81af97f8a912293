"""S3Storage on a real server: the same answers as a folder on disk, whatever happens on the way, or one line that says what did not work."""

import os
import pickle
import random
import re
from pathlib import Path

import pytest
from fault_proxy import Fault, Proxy, always, every_third, these

from fiag_dist.errors import DataError
from fiag_dist.storage import MissingError, S3Storage, UnreachableError, open_storage, retry, s3

SLOW_DOWN = Fault("status", status=503, code="SlowDown")
PASSING = (
    SLOW_DOWN,
    Fault("status", status=500, code="InternalError"),
    Fault("status", status=502, code=""),
    Fault("status", status=429, code="TooManyRequests"),
    Fault("cut request"),
    Fault("lost answer"),
    Fault("cut answer"),
    Fault("reset answer"),
    Fault("slow", seconds=0.02),
)
FILES = {"a/b.bin": b"12345" * 5000, "a/c/d é+%.bin": b"1", "ab.bin": b""}


@pytest.fixture
def store(url: str) -> S3Storage:
    """FILES on the server."""
    store = S3Storage(url)
    for path, data in FILES.items():
        store.write(path, data)
    return store


def everything(store: S3Storage) -> tuple:
    """What every way of asking answers."""
    with store.open("a/b.bin") as stream:
        opened = stream.read()
    return (
        [store.read(path) for path in FILES],
        [store.size(path) for path in FILES],
        [store.exists(path) for path in ("a", "a/b.bin", "a/b", "no", "")],
        (store.sizes(), store.sizes("a/c"), store.sizes("a/b.bin"), store.list("a")),
        (store.children(), store.children("a"), store.children("no")),
        opened,
    )


TRUTH = (
    [*FILES.values()],
    [25000, 1, 0],
    [True, True, False, False, True],
    (
        {"a/b.bin": 25000, "a/c/d é+%.bin": 1, "ab.bin": 0},
        {"a/c/d é+%.bin": 1},
        {},
        ["a/b.bin", "a/c/d é+%.bin"],
    ),
    (["a/", "ab.bin"], ["b.bin", "c/"], []),
    FILES["a/b.bin"],
)


def test_round_trip(store: S3Storage) -> None:
    assert everything(store) == TRUTH
    store.write("ab.bin", b"new")
    assert store.read("ab.bin") == b"new"
    with store.open("ab.bin") as stream:
        assert stream.read() == b"new"
    store.delete("a", re.compile("b.bin|d.*"))
    assert store.list() == ["a/c/d é+%.bin", "ab.bin"]
    store.delete("a")
    store.delete("never/there")
    assert store.list() == ["ab.bin"]
    store.delete("ab.bin")
    assert not store.exists("")


def test_long_listings_come_in_pages(store: S3Storage) -> None:
    pages = [[item["Key"] for item in page["Contents"]] for page in store._pages("", MaxKeys=2)]
    assert [len(page) for page in pages] == [2, 1]
    assert len({key for page in pages for key in page}) == 3


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind} {fault.status} {fault.code}".strip())
def test_faults_that_pass_are_outlasted(store: S3Storage, proxy: Proxy, fault: Fault) -> None:
    proxy.calm()
    proxy.choose = every_third(".", fault)
    assert everything(store) == TRUTH
    store.write("a/new", b"x" * 3000)
    store.delete("a/c")
    assert sum(seen is fault for _, seen in proxy.seen) >= 8
    proxy.calm()
    assert store.sizes() == {"a/b.bin": 25000, "a/new": 3000, "ab.bin": 0}
    assert store.read("a/new") == b"x" * 3000


@pytest.mark.parametrize("fault", [SLOW_DOWN, Fault("cut request"), Fault("lost answer")], ids=lambda f: f.kind)
def test_tries_are_counted_and_come_to_an_end(store: S3Storage, proxy: Proxy, fault: Fault) -> None:
    proxy.calm()
    proxy.choose = always("^PUT", fault)
    message = rf"^{store.url}/a/b.bin: writing failed {retry.ATTEMPTS} times in \d+ s: .*{re.escape(proxy.url)}.*run the command"
    with pytest.raises(UnreachableError, match=message) as caught:
        store.write("a/b.bin", b"new")
    assert "\n" not in str(caught.value)
    # the HTTP library below sends once more by itself what ended without an answer
    assert proxy.count("^PUT") == retry.ATTEMPTS * (1 if fault is SLOW_DOWN else 2)


def test_what_cannot_pass_is_asked_once(store: S3Storage, proxy: Proxy) -> None:
    proxy.calm()
    with pytest.raises(MissingError, match=rf"^{store.url}/no: no such file$"):
        store.size("no")
    assert len(proxy.seen) == 1
    with pytest.raises(MissingError):
        store.read("no")
    with pytest.raises(MissingError):
        store.open("no")
    proxy.calm()
    proxy.choose = always(".", Fault("status", status=403, code="AccessDenied"))
    for number, ask in enumerate((store.read, store.exists, store.list, store.delete, store.open), 1):
        with pytest.raises(UnreachableError, match=r"failed: access denied: 403.*check the AWS_"):
            ask("a/b.bin")
        assert len(proxy.seen) == number
    with pytest.raises(UnreachableError, match=r"writing failed: access denied: 403 AccessDenied \(as the test"):
        store.write("x", b"1")
    assert proxy.count("^PUT") == 1
    proxy.choose = these(".", Fault("status", status=400, code="RequestTimeout"))
    assert store.read("ab.bin") == b"", "one of the few answers below 500 that can pass"


def test_a_wrong_key_is_no_missing_file(url: str, proxy: Proxy, monkeypatch, forget_clients) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    forget_clients()
    proxy.calm()
    for number, ask in enumerate((S3Storage.exists, S3Storage.read, S3Storage.delete, S3Storage.list), 1):
        with pytest.raises(UnreachableError, match="access denied: 403"):
            ask(S3Storage(url), "x")
        assert proxy.count(".") == number


def test_mistakes_in_the_settings_say_what_to_set(url: str, monkeypatch, forget_clients) -> None:
    for ask in (lambda s: s.write("x", b"1"), lambda s: s.exists("x"), lambda s: s.list(), lambda s: s.read("x")):
        with pytest.raises(DataError, match=r"there is no bucket 'nowhere'; create it, or correct its name"):
            ask(S3Storage("s3://nowhere/x"))
    with pytest.raises(DataError, match="Invalid bucket name"):
        S3Storage("s3://no way/x").read("x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget_clients()
    with pytest.raises(UnreachableError, match=rf"reading failed {retry.ATTEMPTS} times.*check .*127.0.0.1:9"):
        S3Storage(url).read("x")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    forget_clients()
    with pytest.raises(DataError, match=r"no S3 credentials .*set AWS_ACCESS_KEY_ID"):
        S3Storage(url).read("x")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    forget_clients()
    with pytest.raises(DataError, match=r"no S3 credentials .*nobody"):
        S3Storage(url).read("x")


def test_a_profile_gives_key_and_endpoint(store: S3Storage, tmp_path: Path, monkeypatch, forget_clients) -> None:
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    endpoint, key, secret = (os.environ[name] for name in names)
    (tmp_path / "config").write_text(f"[profile lab]\nendpoint_url = {endpoint}\nregion = us-east-1\n")
    (tmp_path / "credentials").write_text(f"[lab]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    for name in names:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    forget_clients()
    assert everything(S3Storage(store.url)) == TRUTH


def test_a_server_that_hangs_is_asked_again(store: S3Storage, proxy: Proxy, monkeypatch, forget_clients) -> None:
    monkeypatch.setattr(s3, "READ_S", 0.5)
    forget_clients()
    proxy.choose = these("GET", Fault("slow", seconds=20))
    assert S3Storage(store.url).read("a/b.bin") == FILES["a/b.bin"]


@pytest.mark.parametrize("kind", ["cut request", "lost answer"])
def test_an_upload_is_there_whole_or_not_at_all(store: S3Storage, proxy: Proxy, kind) -> None:
    old, new = FILES["a/b.bin"], random.Random(0).randbytes(200_000)
    proxy.choose = always("^PUT", Fault(kind))
    for path, before in (("a/b.bin", old), ("a/new.bin", None)):
        with pytest.raises(UnreachableError):
            store.write(path, new)
        proxy.choose, waiting = (lambda request: None), proxy.choose
        found = store.read(path) if store.exists(path) else None
        assert found == (before if kind == "cut request" else new)
        proxy.choose = waiting


def test_bytes_changed_on_their_way_up_are_sent_again(store: S3Storage, proxy: Proxy) -> None:
    data = random.Random(1).randbytes(50_000)
    proxy.calm()
    proxy.choose = these("^PUT", Fault("changed request"), Fault("changed request"))
    store.write("a/new.bin", data)
    assert proxy.count("^PUT") == 3
    assert store.read("a/new.bin") == data


def test_a_deletion_that_is_refused_in_part_is_an_error(store: S3Storage, proxy: Proxy) -> None:
    refused = (
        '<?xml version="1.0"?><DeleteResult><Error><Key>a/b.bin</Key><Code>AccessDenied</Code>'
        "<Message>locked</Message></Error></DeleteResult>"
    )
    proxy.choose = always("^POST .*delete", Fault("status", status=200, body=refused))
    with pytest.raises(DataError, match=r"deleting failed: .*AccessDenied \(locked\)"):
        store.delete("a")


def test_storages_are_pickled_without_their_connection(store: S3Storage) -> None:
    again = pickle.loads(pickle.dumps(store))
    assert again._client is None
    assert everything(again) == TRUTH


def test_slashes_too_many_name_the_same_place(store: S3Storage) -> None:
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    for url in (f"s3://{bucket}//{prefix}/", f"s3://{bucket}/{prefix}//", f"s3://{bucket}///{prefix}"):
        again = S3Storage(url)
        assert again.url == store.url
        assert everything(again) == TRUTH
    open_storage(f"s3://{bucket}/{prefix}//deep//").write("x", b"1")
    assert store.read("deep/x") == b"1"
    assert open_storage(f"s3://{bucket}//").url == f"s3://{bucket}"


def test_open_storage_knows_the_scheme(url: str) -> None:
    assert isinstance(open_storage(url + "/"), S3Storage)
    assert open_storage(url + "/").url == url


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_objects_in_parts_appear_together(store: S3Storage, proxy: Proxy, seed: int) -> None:
    """Above 100 MB an object goes up in parts of 50."""
    rng = random.Random(seed)
    data = rng.randbytes(2**20) * 101
    cut = (Fault("cut request"), SLOW_DOWN)
    proxy.choose = always("^PUT .*partNumber=2", Fault("cut request"))
    with pytest.raises(UnreachableError):
        store.write("big.bin", data)
    proxy.calm()
    assert not store.exists("big.bin")
    proxy.choose = these("partNumber=2|^POST .*uploadId", rng.choice(cut), Fault("lost answer"))
    store.write("big.bin", data)
    proxy.choose = these("^GET .*big", Fault("cut answer"), Fault("reset answer"))
    assert store.read("big.bin") == data
    proxy.choose = these("^GET .*big", Fault("cut answer"), Fault("reset answer"))
    with store.open("big.bin") as stream:
        assert stream.read() == data
