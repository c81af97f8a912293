"""fiag-dist view: an identity in a web page, to be looked at from any side and to be given something to say."""

import contextlib
import errno
import importlib.util
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numba
import torch
import tyro

from fiag_dist.acting.actor import refuse_remote
from fiag_dist.acting.synthesize import Identity
from fiag_dist.ending import guarded
from fiag_dist.errors import ConfigError
from fiag_dist.media.sound import Sound
from fiag_dist.viewing.origin import is_loopback
from fiag_dist.viewing.show import Show

HINT = "bash launch/install.sh ingest,view"


@dataclass(frozen=True, kw_only=True)
class ViewCommand:
    """Serves a page with an identity in it: turn it about, drop a sound file, and see and hear it talk. Ctrl-C ends it."""

    identity: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IDENTITY")]
    """Identity folder: one of those that `fiag-dist adapt` wrote, or `fiag-dist evaluate runs/NAME` in runs/NAME/identities."""
    audio: Path | None = None
    """What it says at first; any sound file or video, up to 10 minutes. Others can be dropped into the page."""
    port: int = 8080
    """0: any that is free."""
    host: str = "127.0.0.1"
    """Address to listen on. The page asks for no password: only with the default is it this machine's alone."""


def main(argv: list[str]) -> int:
    """The command; serves until it is interrupted. Raises ConfigError, DataError or WeightsError."""
    command = tyro.cli(ViewCommand, args=argv, prog="fiag-dist view")
    if importlib.util.find_spec("viser") is None:
        raise ConfigError(f"view: the page needs a package that is not installed; run: {HINT}")
    check_address(command.host, command.port)
    if command.audio:
        refuse_remote(command.audio, is_file=True)
    torch.set_num_threads(1)  # a frame's networks are too small to be worth sharing out
    numba.set_num_threads(max(1, min(numba.get_num_threads() - 1, 8)))  # one core is the browser's
    show = Show(Identity.load(command.identity))
    speech = show.listen(Sound(command.audio)) if command.audio else show.silence()
    from fiag_dist.viewing.page import Page  # an optional extra

    page = Page(show, speech, command.host, command.port)
    with contextlib.closing(page), contextlib.suppress(KeyboardInterrupt):
        where = "" if is_loopback(command.host) else "; whoever reaches this machine can use it"
        host = f"[{command.host}]" if ":" in command.host else command.host
        print(f"{show.info.name}: http://{host}:{page.port}{where} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    return 0


def check_address(host: str, port: int) -> None:
    """Raises ConfigError where nothing can listen."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: the rule is 0 to 65535; for example --port 8080")
    try:
        for family, _, _, _, address in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            socket.create_server(address, family=family).close()
    except socket.gaierror as error:
        raise ConfigError(
            f"--host {host}: leads to no address ({error.strerror}); give one of this machine, or leave it out"
        ) from error
    except OSError as error:
        mends = {
            errno.EADDRINUSE: f"end what does, or give another: --port {port + 1 if port < 65535 else 8080}",
            errno.EACCES: "give a --port from 1024 on",
        }
        mend = mends.get(error.errno or 0, "give a --host that is an address of this machine, or leave it out")
        raise ConfigError(f"--host {host} --port {port}: can't be listened on ({error.strerror}); {mend}") from error


if __name__ == "__main__":
    sys.exit(guarded(main))
