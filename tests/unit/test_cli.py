"""The command line: dispatch, help, and how mistakes end."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fiag_dist import __version__, cli
from fiag_dist.errors import DataError
from fiag_dist.media.video import VideoWriter


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch):
    """Puts a function in the place of every command's module; returns how to choose it, and the names that were imported."""
    imported: list[str] = []

    def choose(main) -> list[str]:
        def find(name: str) -> SimpleNamespace:
            imported.append(name)
            return SimpleNamespace(main=main)

        monkeypatch.setattr(cli.importlib, "import_module", find)
        return imported

    return choose


def raising(error: BaseException):
    def main(argv: list[str]) -> int:
        raise error

    return main


def test_help_names_every_command_with_its_input(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"], ["help"]):
        assert cli.main(argv) == 0
        text = capsys.readouterr().out
        for name, command in cli.COMMANDS.items():
            assert f"\n  {name} {command.usage}".rstrip() in text
            assert command.summary in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"fiag-dist {__version__}"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from fiag_dist import cli; cli.main(['--help']); print(*(m for m in ('torch', 'numpy', 'numba', 'ray') if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(("name", "module"), [(name, command.module) for name, command in cli.COMMANDS.items()])
def test_a_command_runs_its_module_with_the_other_arguments(stand_in, name: str, module: str) -> None:
    seen = []
    imported = stand_in(lambda argv: seen.append(argv) or 3)
    assert cli.main([name, "in", "--out", "x"]) == 3
    assert (imported, seen) == ([f"fiag_dist.{module}"], [["in", "--out", "x"]])


@pytest.mark.parametrize(("typed", "nearest"), [("pak", "pack"), ("pretrian", "pretrain"), ("weight", "weights")])
def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str], typed: str, nearest: str) -> None:
    assert cli.main([typed]) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error == f"fiag-dist: unknown command {typed!r}; did you mean {nearest!r}?\n"


def test_unknown_command_without_a_near_one_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["xyzzy"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in cli.COMMANDS)


def test_a_mistake_is_one_line_without_traceback(stand_in, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(raising(DataError("clip a.mp4: no audio track")))
    assert cli.main(["pack", "a.mp4"]) == 2
    assert capsys.readouterr().err == "fiag-dist: clip a.mp4: no audio track\n"


@pytest.mark.parametrize("argv", [["--debug", "pack", "a.mp4"], ["pack", "a.mp4", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    stand_in, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    stand_in(raising(DataError("clip a.mp4: no audio track")))
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.endswith("fiag-dist: clip a.mp4: no audio track\n")


def test_the_command_never_sees_debug(stand_in) -> None:
    seen = []
    stand_in(lambda argv: seen.extend(argv) or 0)
    assert cli.main(["pack", "--debug", "a.mp4"]) == 0
    assert seen == ["a.mp4"]


def test_interrupt_ends_with_130(stand_in, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(raising(KeyboardInterrupt()))
    assert cli.main(["adapt"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_termination_puts_away_what_was_begun(
    stand_in, capsys: pytest.CaptureFixture[str], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    def films(argv: list[str]) -> int:
        with VideoWriter(tmp_path / "talk.mp4", 64, 64, 25) as video:
            for _ in range(60):  # the encoder looks ahead before there is a file
                video.write(np.zeros((64, 64, 3), np.uint8))
            assert list(tmp_path.iterdir())
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(signal.SIGTERM)  # a second one, as `timeout` or a logout sends it
        return 0

    stand_in(films)
    hangup = signal.signal(signal.SIGHUP, lambda *_: None)  # what starts tests may ignore it
    try:
        before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)]
        assert cli.main(["render"]) == status
        assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)] == before
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert capsys.readouterr().err == f"fiag-dist: stopped by {number.name}\n"
    assert not list(tmp_path.iterdir())


def test_a_hangup_that_is_ignored_ends_nothing(stand_in) -> None:
    stand_in(lambda argv: signal.raise_signal(signal.SIGHUP) or 5)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.main(["render"]) == 5
    finally:
        signal.signal(signal.SIGHUP, hangup)


def test_a_command_in_another_thread_runs(stand_in) -> None:
    stand_in(lambda argv: 3)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(cli.main, ["pack"]).result() == 3


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", [["--help"], ["identity", "info", "--help"]])
def test_a_reader_that_has_seen_enough_ends_it_quietly(arguments: list[str], buffered: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    env = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    result = subprocess.run(
        [sys.executable, "-m", "fiag_dist.cli", *arguments], stdout=writer, stderr=subprocess.PIPE, env=env, timeout=60
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")


def test_a_broken_pipe_that_is_not_ours_keeps_its_traceback() -> None:
    program = (
        "from fiag_dist.ending import guarded\ndef main(argv): raise BrokenPipeError('of a socket')\nguarded(main)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "BrokenPipeError: of a socket" in result.stderr


def test_our_own_bugs_keep_their_traceback(stand_in) -> None:
    stand_in(raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main(["evaluate"])


def test_python_m_ends_with_the_same_status() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "fiag_dist.cli", "xyzzy"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr.startswith("fiag-dist: unknown command 'xyzzy'")
    assert result.stderr.count("\n") == 1
