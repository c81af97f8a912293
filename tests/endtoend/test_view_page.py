"""The page in a real browser: a head that turns where it is pulled, that talks when it is given a sound file, and rests otherwise."""

import math
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_identity as tiny

pytest.importorskip("viser", reason="viser is not installed: bash launch/install.sh ingest,view")

import browser
from commands import ROOT
from scipy.io import wavfile

from fiag_dist.acting.synthesize import Identity
from fiag_dist.viewing.orbit import Orbit
from fiag_dist.viewing.page import Page, Visit
from fiag_dist.viewing.show import Show

HEAD = (slice(100, 420), slice(340, 660))
"""Where the head is in a screenshot, to the left of the controls."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    home = tmp_path_factory.mktemp("view")
    folder = tiny.make_identity(home / "ball", tiny.pack(home / "data"), consent="<b>yes</b>", motion_scale=3.0)
    show = Show(Identity.load(folder))
    page = Page(show, show.silence(), "127.0.0.1", 0)
    yield page
    page.close()


@pytest.fixture(scope="module")
def tab(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Tab]:
    program = browser.find()
    if program is None:
        pytest.skip(f"none of {', '.join(browser.NAMES)} is on PATH")
    with browser.opened(program, f"http://127.0.0.1:{page.port}", tmp_path_factory.mktemp("profile")) as tab:
        tab.until(lambda: tab.evaluate("!!document.querySelector('input[type=file]')"), "the controls")
        yield tab


def head(tab: browser.Tab) -> np.ndarray:
    return tab.screenshot()[HEAD].astype(int)


def settled(tab: browser.Tab, before: np.ndarray | None = None) -> np.ndarray:
    """The head, once it shows something else than `before` and stands still."""

    def still() -> np.ndarray | None:
        first = head(tab)
        if before is not None and np.abs(first - before).mean() < 1:
            return None
        time.sleep(0.4)
        return first if np.abs(head(tab) - first).max() < 3 else None

    found = tab.until(lambda: (image := still()) is not None and [image], "a picture that stands still")
    return found[0]


def audio(tab: browser.Tab, what: str):
    return tab.evaluate(f"(() => {{ const a = document.querySelector('audio'); return a && a.{what} }})()")


def test_the_page_shows_the_head_and_who_it_is(page: Page, tab: browser.Tab) -> None:
    shown = settled(tab)
    np.testing.assert_allclose(shown[120:200, 120:200].mean((0, 1)), [205, 145, 120], atol=25, err_msg="the ball")
    text = tab.evaluate("document.body.innerText")
    assert "ball is synthetic" in text
    assert "<b>yes</b>" in text, "a note of consent is text, not a part of the page"
    assert "Share" not in text


def test_pulling_turns_the_head_and_straight_on_turns_it_back(tab: browser.Tab) -> None:
    before = settled(tab)
    tab.drag((500, 300), (580, 320))
    turned = settled(tab, before)
    assert np.abs(turned - before).mean() > 1
    tab.click("Straight on")
    back = settled(tab, turned)
    assert np.abs(back - before).mean() < 0.3 * np.abs(turned - before).mean()


def test_a_dropped_sound_is_seen_and_heard_in_step(page: Page, tab: browser.Tab, tmp_path: Path) -> None:
    before = settled(tab)
    wavfile.write(tmp_path / "speech.wav", 16000, (tiny.voice(8.0) * 32767).astype(np.int16))
    tab.upload(tmp_path / "speech.wav")
    tab.until(lambda: audio(tab, "currentTime"), "sound")
    visit = next(iter(page.visits.values()))
    apart = []
    for _ in range(5):
        time.sleep(0.2)
        apart.append(audio(tab, "currentTime") - visit.now_s())
    assert np.abs(np.median(apart)) < 0.15, f"sound before picture, s: {apart}"
    assert np.abs(head(tab) - before).mean() > 1, "it talks"
    tab.click("Pause")
    tab.until(lambda: audio(tab, "paused") is None, "silence")
    assert 0.5 < visit.now_s() < 8
    here = visit.now_s()
    tab.click("Play")
    tab.until(lambda: audio(tab, "currentTime"), "sound again")
    assert visit.now_s() >= here
    tab.until(lambda: visit.now_s() == 0, "the end, and from there the beginning")


class Gui:
    """Controls as a visit asks for them, which can be given any value, as by a browser."""

    def __init__(self) -> None:
        self.named: dict[str, SimpleNamespace] = {}

    def __getattr__(self, kind: str):
        return lambda label, *given, **named: self._made(kind, label, given, named)

    def _made(self, kind: str, label: str, given: tuple, named: dict):
        if kind == "add_folder":
            return nullcontext()
        initial = named.get("initial_value", given[-1] if given else None)
        listens = {name: lambda heard: None for name in ("on_update", "on_click", "on_upload")}
        self.named[label] = SimpleNamespace(value=initial[0] if isinstance(initial, tuple) else initial, **listens)
        return self.named[label]


def test_nonsense_of_one_browser_is_held_to_its_range(page: Page) -> None:
    shown: list[np.ndarray] = []
    home, gui = Orbit(), Gui()
    camera = SimpleNamespace(
        wxyz=home.wxyz, position=home.position, look_at=home.look_at, image_width=300, image_height=100,
        on_update=lambda heard: None,
    )  # fmt: skip
    scene = SimpleNamespace(set_background_image=lambda image, **options: shown.append(image))
    client = SimpleNamespace(gui=gui, scene=scene, camera=camera)
    visit = Visit(client, page._show, page._speech, threading.Event())  # type: ignore[arg-type]
    visit.draw()
    gui.named["as the clip goes on"].value = False
    gui.named["expression by hand"].value = True
    wrong = {"frame of the clip": 10**9, "time, s": math.nan, "pixels": "99999999", "background": "no colour"}
    for label, value in (wrong | {"eyes closed": math.inf, "look up": math.nan}).items():
        gui.named[label].value = value
    camera.image_height, camera.position = 0, (math.nan,) * 3
    visit.draw()
    assert [image.shape for image in shown] == [(64, 160, 3)] * 2
    visit._start()
    assert visit.draw() is not None
    gui.named["time, s"].value = -math.inf
    visit._stop()
    assert visit.now_s() == 0
    for name in ("speech.w\0v", f"speech.{'x' * 300}"):  # no disk takes them
        visit._uploaded(SimpleNamespace(name=name, content=b"RIFF"))  # type: ignore[arg-type]
        assert visit._said.content.startswith(f"{name}: ")


def test_who_leaves_while_the_controls_are_made_is_no_visitor(page: Page) -> None:
    client = SimpleNamespace(client_id=-7, gui=Gui(), camera=SimpleNamespace(on_update=lambda heard: None))
    page._came(client)  # type: ignore[arg-type]
    assert not client.gui.named, "it has left before"
    connections = page._server._websock_server._live_connections
    connections[-7] = SimpleNamespace(request=None)  # type: ignore[assignment]
    try:
        page._came(client)  # type: ignore[arg-type]
    finally:
        del connections[-7]
    assert client.gui.named
    assert -7 not in page.visits


def test_what_goes_wrong_in_one_visit_is_said_once_and_stops_no_other(
    page: Page, capfd: pytest.CaptureFixture[str]
) -> None:
    drawn: list[bool] = []

    def fails() -> None:
        raise ValueError("of\na browser")

    others = {-1: SimpleNamespace(draw=fails), -2: SimpleNamespace(draw=lambda: drawn.append(True))}
    page.visits.update(others)  # type: ignore[arg-type]
    try:
        for times in (1, 2):
            page._wake.set()
            deadline = time.monotonic() + 30
            while len(drawn) < times and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(drawn) >= times
    finally:
        for number in others:
            page.visits.pop(number)
    said = capfd.readouterr().err
    assert said == "fiag-dist: a visitor's picture was left out: ValueError: of a browser\n"


def test_a_file_without_sound_is_named_on_the_page(tab: browser.Tab, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("not a sound")
    tab.upload(tmp_path / "notes.wav")
    said = tab.until(
        lambda: "can't be read" in (text := tab.evaluate("document.body.innerText")) and text, "the reason"
    )
    assert "notes.wav: " in said
    assert "/tmp/" not in said


def test_an_idle_page_costs_nothing(tab: browser.Tab) -> None:
    settled(tab)
    began = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - began < 0.1


def test_the_command_serves_until_it_is_stopped(tmp_path: Path) -> None:
    folder = tiny.make_identity(tmp_path / "ball", tiny.pack(tmp_path / "data"))
    words = [sys.executable, "-m", "fiag_dist.cli", "view", str(folder), "--port", "0"]
    served = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in the background
    )  # fmt: skip
    try:
        assert served.stdout
        address = re.fullmatch(r"ball: (http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\n", served.stdout.readline())
        assert address
        with urllib.request.urlopen(address[1], timeout=30) as answer:
            assert b"<html" in answer.read()
        served.send_signal(signal.SIGINT)
        out, error = served.communicate(timeout=30)
        assert (served.returncode, out, error) == (0, "", "")
    finally:
        served.kill()
        served.wait()
