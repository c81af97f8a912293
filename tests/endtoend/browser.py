"""A headless Chromium, driven through its own debugging protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = (1000, 640)
"""Of the window, pixels."""


def find() -> str | None:
    """The program, if this machine has it."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """The only tab."""

    def __init__(self, socket: ClientConnection):
        self._socket, self._numbers = socket, itertools.count()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        """Waits for something to become true, and returns it."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"after {seconds} s still not: {what}"
            time.sleep(0.1)
        return value

    def screenshot(self, path: Path | None = None) -> np.ndarray:
        """What the window shows, RGB; as a PNG, too."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path:
            path.write_bytes(data)
        return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def drag(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """Pulls with the left button."""
        for kind, (x, y) in (
            ("mouseMoved", start),
            ("mousePressed", start),
            *(
                ("mouseMoved", tuple(int(a + (b - a) * k / 8) for a, b in zip(start, end, strict=True)))
                for k in range(9)
            ),
            ("mouseReleased", end),
        ):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def click(self, label: str) -> None:
        """Presses the button with this text, as a person does: sound needs that."""
        place = f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {label!r})"
        self.until(lambda: self.evaluate(f"!!{place}"), f"a button {label!r}")
        x, y = self.evaluate(
            f"(() => {{ const r = {place}.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] }})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def upload(self, path: Path) -> None:
        """Gives a file to the page's only file button."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


@contextmanager
def opened(program: str, address: str, profile: Path) -> Iterator[Tab]:
    """A browser without a window, at this address. profile: an empty folder."""
    width, height = SIZE
    switches = [
        "--headless=new",
        "--no-sandbox",
        "--enable-unsafe-swiftshader",
        "--no-first-run",
        "--disable-extensions",
        "--disable-dev-shm-usage",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
    ]
    browser = subprocess.Popen([program, *switches, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = profile / "DevToolsActivePort"
        end = time.monotonic() + 60
        while not (port_file.is_file() and port_file.read_text().strip()):
            assert browser.poll() is None, "the browser ended"
            assert time.monotonic() < end, "the browser does not start"
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30) as answer:
            tabs = json.load(answer)
        target = next(tab for tab in tabs if tab["type"] == "page")
        with connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
            tab = Tab(socket)
            tab.call("Page.enable")
            yield tab
    finally:
        browser.terminate()
        browser.wait(30)
