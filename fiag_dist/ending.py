"""How every command ends: its exit status, the one line for a user's mistake, and the signals that end it."""

import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from fiag_dist.errors import CHECKED, FULL, FiagError


def endings() -> list[signal.Signals]:
    """Signals that end a command: SIGTERM, and SIGHUP of a terminal that is closed, unless it is ignored (nohup)."""
    return [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]


def guarded(main: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Runs a command's `main(argv)` and returns the exit status: how every command, `python -m fiag_dist.X` included, meets a user's mistake.

    A FiagError becomes one line on stderr and 2, a full disk too, wherever it is met; Ctrl-C becomes 130, SIGTERM 143, SIGHUP 129. Anything else is a bug
    of ours and keeps its traceback. `--debug` (anywhere in `argv`, taken out before `main` sees it) adds the traceback to that line and turns checked mode
    on, for this process and those it starts. A reader that has seen enough (`| head`) ends it with 141, as it ends other programs. `argv` None: the
    process's own arguments.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug, ended_by = "--debug" in args, []
    if debug:
        os.environ[CHECKED] = "1"
    try:
        try:
            with _endings_as_interrupt(ended_by):
                return main([arg for arg in args if arg != "--debug"])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 141
    except FiagError as error:
        if debug:
            traceback.print_exc()
        print(f"fiag-dist: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if debug or error.errno not in FULL:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"fiag-dist: {where}{error.strerror}; make room, and give the same command again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        number = ended_by[0] if ended_by else signal.SIGINT
        with suppress(OSError):  # the terminal is gone
            print(f"fiag-dist: stopped by {'Ctrl-C' if number == signal.SIGINT else number.name}", file=sys.stderr)
        return 128 + number


@contextmanager
def _endings_as_interrupt(ended_by: list[signal.Signals]) -> Iterator[None]:
    """SIGTERM and SIGHUP end the body as Ctrl-C does, and are noted, since Ray makes an interrupt of its own of ours; a second does not disturb the end."""

    def interrupt(number: int, _: Any) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        ended_by.append(signal.Signals(number))
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # others can't be told of signals
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in endings()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nobody_reads() -> bool:
    """Whether stdout is a pipe without a reader; what is left in it then goes nowhere, and the interpreter does not complain of it at its end."""
    watch = select.poll()
    watch.register(sys.stdout, 0)
    gone = bool(watch.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone
