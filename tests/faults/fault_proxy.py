"""A proxy before an S3 server that does to chosen requests what networks and servers do: delays, refusals, cuts, bytes that are lost or changed."""

import asyncio
import itertools
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

Kind = Literal[
    "slow",
    "status",
    "cut request",
    "stall request",
    "changed request",
    "lost answer",
    "cut answer",
    "reset answer",
    "truncated",
    "changed",
    "vanished",
]


@dataclass(frozen=True)
class Fault:
    """What happens to one request.

    slow: the answer waits `seconds`. status: the server is not asked, the answer is `status` with `body`, or else with the error `code`.
    cut request: the server gets half of the body, then both connections end. stall request: `seconds` lie
    before the second half. changed request: it gets all with one bit turned.
    lost answer: the server does it, nobody says so.
    cut answer, reset answer: half of the body arrives, then the connection ends, or is reset.
    truncated, changed: half of the body, or all with one bit turned, as if it were the whole truth. vanished: 404.
    """

    kind: Kind
    seconds: float = 0.0
    status: int = 503
    code: str = "SlowDown"
    body: str = ""


Choice = Callable[[str], Fault | None]
"""The fault, if any, for a request given as `METHOD /path?query`."""


def these(pattern: str, *faults: Fault) -> Choice:
    """The faults one after the other for requests that match; then none."""
    left = list(faults)
    return lambda request: left.pop(0) if left and re.search(pattern, request) else None


def always(pattern: str, fault: Fault) -> Choice:
    """The same fault for all requests that match."""
    return lambda request: fault if re.search(pattern, request) else None


def every_third(pattern: str, fault: Fault) -> Choice:
    """The fault for the first, fourth, seventh ... request that matches."""
    turns = itertools.cycle((fault, None, None))
    return lambda request: next(turns) if re.search(pattern, request) else None


def at_random(seed: int, share: float, *faults: Fault) -> Choice:
    """One of the faults for this share of all requests."""
    rng = random.Random(seed)
    return lambda request: rng.choice(faults) if rng.random() < share else None


@dataclass
class Proxy:
    """The running proxy. `choose` may be exchanged at any time; `seen` lists every request with the fault that it met."""

    url: str
    choose: Choice
    seen: list[tuple[str, Fault | None]] = field(default_factory=list)

    def count(self, pattern: str) -> int:
        """Requests so far that match."""
        return sum(bool(re.search(pattern, request)) for request, _ in self.seen)

    def calm(self) -> None:
        """No more faults, and nothing seen yet."""
        self.choose = lambda request: None
        self.seen.clear()


@contextmanager
def fault_proxy(upstream: str) -> Iterator[Proxy]:
    """Runs a proxy to the server at `upstream` on a free port of loopback, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fault proxy", daemon=True)
    thread.start()
    proxy = Proxy("", lambda request: None)
    host = urlsplit(upstream)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await _one_request(proxy, reader, writer, str(host.hostname), int(host.port or 80))
        with suppress(OSError):
            writer.close()
            await writer.wait_closed()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    server = run(asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20))
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        run(_end(server))
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _one_request(
    proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
) -> None:
    """Takes one request, and answers it or not; each connection carries one."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {line.partition(":")[0].strip().lower(): line.partition(":")[2].strip() for line in lines}
    request = f"{method} {unquote(target)}"
    fault = proxy.choose(request)
    proxy.seen.append((request, fault))
    kind = fault.kind if fault else None
    if headers.get("expect"):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    if fault and kind in ("status", "vanished"):
        refusal = fault if kind == "status" else Fault("status", status=404, code="NoSuchKey")
        await _write(writer, *_refusal(method, refusal))
        return
    own = ("expect:", "connection:")  # neither is part of the signature
    kept = [first, *(line for line in lines if not line.lower().startswith(own)), "Connection: close"]
    from_server, to_server = await asyncio.open_connection(host, port, limit=2**20)
    try:
        to_server.write("\r\n".join(kept).encode("latin-1") + b"\r\n\r\n")
        half = len(body) // 2 if kind in ("cut request", "stall request") else 0
        to_server.write(body[:half])
        await to_server.drain()
        if kind == "cut request":
            return
        if fault and kind == "stall request":
            await asyncio.wait({asyncio.create_task(reader.read(1))}, timeout=fault.seconds)
            if reader.at_eof():  # the client has gone
                return
        to_server.write(_turned(body) if kind == "changed request" else body[half:])
        answer_head = await from_server.readuntil(b"\r\n\r\n")
        answer = await from_server.read() if method != "HEAD" else b""
    finally:
        to_server.close()
    if fault and kind == "slow":
        await asyncio.sleep(fault.seconds)
    if kind == "lost answer":
        return
    await _answer(writer, answer_head, answer, kind)


async def _answer(writer: asyncio.StreamWriter, head: bytes, body: bytes, kind: Kind | None) -> None:
    """Hands on an answer of the server, or what is left of it."""
    half = len(body) // 2
    if kind in ("truncated", "changed"):
        body = body[:half] if kind == "truncated" else _turned(body)
        # the object itself is so: the server's checksum of the whole would give it away
        head = re.sub(rb"(?i)\r\nx-amz-checksum-[^\r]*", b"", head)
        head = re.sub(rb"(?i)(\r\ncontent-length:) *\d+", rb"\1 %d" % len(body), head)
    head = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head).removesuffix(b"\r\n") + b"Connection: close\r\n\r\n"
    await _write(writer, head, body[:half] if kind in ("cut answer", "reset answer") else body)
    if kind == "reset answer":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


def _turned(body: bytes) -> bytes:
    """The body with one bit of its middle turned."""
    half = len(body) // 2
    return body[:half] + bytes(byte ^ 1 for byte in body[half : half + 1]) + body[half + 1 :]


def _refusal(method: str, fault: Fault) -> tuple[bytes, bytes]:
    error = f"<Error><Code>{fault.code}</Code><Message>as the test wants it</Message></Error>"
    text = fault.body or (error if fault.code else "<html>no</html>")
    body = b"" if method == "HEAD" else text.encode()
    head = f"HTTP/1.1 {fault.status} no\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode(), body


async def _write(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
    writer.write(head + body)
    await writer.drain()
