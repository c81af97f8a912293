"""The page that a browser shows: controls, sound, and pictures that follow the visitor's camera. The only file that imports viser."""

import base64
import contextlib
import html
import io
import logging
import math
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numba
import viser

from fiag_dist.acting.backdrop import bounce
from fiag_dist.acting.staging import COLOURS
from fiag_dist.errors import FiagError
from fiag_dist.media.sound import Sound
from fiag_dist.types import EXPRESSION_NAMES, GAZE
from fiag_dist.viewing.orbit import FOV_RAD, Orbit
from fiag_dist.viewing.origin import is_own_page
from fiag_dist.viewing.show import Look, Show, Speech

HEIGHTS = (128, 256, 384, 512, 768, 1024)
"""Of the picture, pixels; the page scales it to the window."""
BACKGROUNDS = ("clip", *COLOURS)
WIDEST = 2.5
"""Width over height, at most: beside the head there is nothing to be seen."""
_JPEG_QUALITY = 90
_TICK_S = 0.2
"""How far the time slider may lag behind the speech."""
_PATIENCE_S = 1.5
"""How long the picture waits for the sound, which a browser may hold back."""
_BEGUN = "in step"
_PRESS_BEGUN = f"[...document.querySelectorAll('button')].find(b => b.textContent.trim() === '{_BEGUN}').click()"
"""What the page does when the sound begins: nothing but its buttons speaks to us."""
_MUSCLES = {
    "AU01": "brows up, inside",
    "AU02": "brows up, outside",
    "AU04": "brows down",
    "AU05": "eyes wide",
    "AU06": "cheeks up",
    "AU07": "lids tight",
    "gaze_left": "look to its left",
    "gaze_up": "look up",
    "AU45": "eyes closed",
}
"""What each of EXPRESSION_NAMES does."""
_LOWEST = {name: -1.0 if name in GAZE else 0.0 for name in EXPRESSION_NAMES}
_MOST_PIXELS = 1e5
"""Of a browser's window, along a side."""


class Visit:
    """One browser: its controls and what they say, its sound, the last picture it was sent. Its callbacks only note and wake; `draw` does the work."""

    def __init__(self, client: viser.ClientHandle, show: Show, speech: Speech, wake: threading.Event):
        self._client, self._show, self._speech, self._wake = client, show, speech, wake
        self._start_s = 0.0
        """From where in the speech it was last played."""
        self._began_s: float | None = None
        """When, by the machine's clock, it is played from there; None while paused."""
        self._drawn: Look | None = None
        self._newest: viser.UploadedFile | None = None
        """The speech that was given last."""
        gui, info = client.gui, show.info
        consent = f" Consent: {html.escape(info.consent)}" if info.consent else ""
        gui.add_markdown(f"**{html.escape(info.name)}** is synthetic: it never said what it says here.{consent}")
        upload = gui.add_upload_button("Speech ...", hint="wav, mp3, flac, m4a, or a video with sound; up to 10 min")
        self._said = gui.add_markdown("")
        self._play = gui.add_button("Play")
        self._seconds = gui.add_slider("time, s", 0.0, len(speech) / info.fps, 1 / info.fps, 0.0)
        with gui.add_folder("Sound", expand_by_default=False):
            self._sound = gui.add_checkbox("on", True)
            begun = gui.add_button(_BEGUN, hint="The page presses it when the sound begins; the picture waits for it")
        self._heard = gui.add_html("")
        with gui.add_folder("Picture"):
            self._heights = [str(height) for height in sorted({*HEIGHTS, info.size})]
            self._height = gui.add_dropdown("pixels", self._heights, initial_value=str(info.size))
            self._background = gui.add_dropdown("background", BACKGROUNDS)
            straight = gui.add_button(
                "Straight on", hint="Drag turns the head, the wheel comes nearer, the right button moves"
            )
        with gui.add_folder("Pose and expression"):
            self._moves = gui.add_checkbox("as the clip goes on", True)
            self._pose = gui.add_slider("frame of the clip", 0, len(show.loop) - 1, 1, 0)
            self._by_hand = gui.add_checkbox("expression by hand", False)
            self._muscles = [gui.add_slider(_MUSCLES[name], low, 1.0, 0.05, 0.0) for name, low in _LOWEST.items()]
        for handle in (self._height, self._background, self._moves, self._pose, self._by_hand, *self._muscles):
            handle.on_update(lambda _: wake.set())
        upload.on_upload(lambda event: self._uploaded(event.target.value))
        self._play.on_click(lambda _: self._pressed())
        self._seconds.on_update(lambda event: self._stop() if event.client else None)  # else `draw` moved it
        self._sound.on_update(lambda _: self._silenced())
        begun.on_click(lambda _: self._begun())
        straight.on_click(lambda _: self._straight())
        client.camera.on_update(lambda _: wake.set())

    def draw(self) -> float | None:
        """Sends the picture of this moment, unless the page shows it already. Returns in how many seconds the next is due; None: not before a change."""
        # A callback may change them at any moment.
        speech, start_s, began_s = self._speech, self._start_s, self._began_s
        fps, num = self._show.info.fps, len(speech)
        seconds = self._at_s(began_s)
        if began_s is not None and seconds >= num / fps:
            self._stop()
            self._seconds.value = seconds = 0.0
        elif began_s is not None and abs(seconds - self._seconds.value) > _TICK_S:
            self._seconds.value = seconds
        t = min(int(seconds * fps + 0.01), num - 1)
        look = self._look(t)
        if look != self._drawn:
            image = self._show.picture(speech, look)
            self._client.scene.set_background_image(image, format="jpeg", jpeg_quality=_JPEG_QUALITY)
            self._drawn = look
        if began_s is None:
            return None
        return max(began_s - start_s + (t + 1) / fps - time.monotonic(), 0.0)

    def now_s(self) -> float:
        """Where in the speech the page is."""
        return self._at_s(self._began_s)

    def _at_s(self, began_s: float | None) -> float:
        if began_s is None:
            return _within(self._seconds.value, 0.0, len(self._speech) / self._show.info.fps)
        return self._start_s + max(time.monotonic() - began_s, 0.0)

    def _look(self, t: int) -> Look:
        """What the controls say. Their values come from the browser, which may send anything: each is held to its range."""
        camera, info, last = self._client.camera, self._show.info, len(self._show.loop) - 1
        height = int(self._height.value) if self._height.value in self._heights else info.size
        sides = (_within(side, 1, _MOST_PIXELS) for side in (camera.image_width, camera.image_height))
        aspect = _within(next(sides) / next(sides), 1 / WIDEST, WIDEST)
        muscles = zip(self._muscles, _LOWEST.values(), strict=True)
        return Look(
            t=t,
            pose=bounce(t, last + 1) if self._moves.value else int(_within(self._pose.value, 0, last)),
            expression=tuple(_within(slider.value, low, 1.0) for slider, low in muscles) if self._by_hand.value else (),
            orbit=Orbit.of(camera.wxyz, camera.position, camera.look_at),
            background=self._background.value if self._background.value in BACKGROUNDS else "clip",
            width=2 * round(height * aspect / 2),
            height=height,
        )

    def _uploaded(self, file: viser.UploadedFile) -> None:
        self._stop()
        self._newest = file
        name = html.escape(file.name)
        self._said.content = f"listening to {name} .."
        stored_as = ""
        try:
            with tempfile.NamedTemporaryFile(suffix=Path(file.name).suffix) as stored:
                stored_as = stored.name
                stored.write(file.content)
                stored.flush()
                speech = self._show.listen(Sound(stored_as))
        except (FiagError, OSError, ValueError) as error:  # a full disk, a name that no disk takes
            if file is self._newest:
                said = str(error).replace(stored_as, file.name) if stored_as else f"{file.name}: {error}"  # pyrefly: ignore[redundant-condition]
                self._said.content = html.escape(said)
            return
        if file is not self._newest:  # one that came later was listened to sooner
            return
        length_s = len(speech) / self._show.info.fps
        self._said.content = f"{name}, {length_s:.1f} s"
        self._speech, self._drawn = speech, None
        self._seconds.max, self._seconds.value = length_s, 0.0
        self._start()

    def _start(self) -> None:
        """Plays on from where the slider is, together with the sound."""
        start_s, patience_s = self._at_s(None), 0.0
        if self._sound.value and self._speech.samples.any():
            patience_s = _PATIENCE_S
            data = base64.b64encode(self._speech.wav(start_s)).decode()
            self._heard.content = (
                f'<audio autoplay onplaying="{_PRESS_BEGUN}" src="data:audio/wav;base64,{data}"></audio>'
            )
        self._start_s, self._began_s = start_s, time.monotonic() + patience_s
        self._play.label = "Pause"
        self._wake.set()

    def _begun(self) -> None:
        """The sound is heard from this moment on."""
        now_s, began_s = time.monotonic(), self._began_s
        if began_s is not None and began_s > now_s:
            self._began_s = now_s
            self._wake.set()

    def _stop(self) -> None:
        self._began_s, self._play.label, self._heard.content = None, "Play", ""
        self._wake.set()

    def _pressed(self) -> None:
        """The button: plays on, or stops at this moment."""
        if self._began_s is None:
            self._start()
        else:
            self._seconds.value = self.now_s()
            self._stop()

    def _silenced(self) -> None:
        """The visitor chose whether to hear it."""
        if self._began_s is not None:
            self._pressed()
            self._start()

    def _straight(self) -> None:
        home = Orbit()
        with self._client.atomic():
            self._client.camera.position = home.position
            self._client.camera.look_at = home.look_at


def _within(value: float, low: float, high: float) -> float:
    """The nearest in a range; its low end for what is no number."""
    return low if math.isnan(value) else min(max(value, low), high)


class _Server(viser.ViserServer):
    def request_share_url(self, verbose: bool = True) -> str | None:
        """A face is not to be had under a public address because somebody pressed a button."""
        return None


class Page:
    """Serves a show to any number of browsers, each with its own controls; one thread draws for all of them."""

    def __init__(self, show: Show, speech: Speech, host: str, port: int):
        """port: free, or 0 for any."""
        self._show, self._speech, self._host = show, speech, host
        self.visits: dict[int, Visit] = {}
        self._wake, self._over = threading.Event(), False
        self._faults: set[int] = set()
        """Visits of which it was said that they can't be drawn."""
        # A browser that opens a connection and thinks better of it, or leaves while a picture is on its way, is no error.
        logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "Queued a .* on a closed connection")
        with contextlib.redirect_stdout(io.StringIO()):  # it would print an address of its own
            self._server = _Server(host, port, verbose=False)
        self.port = self._server.get_port()
        home, server = Orbit(), self._server
        server.scene.set_up_direction("+y")
        server.initial_camera.position, server.initial_camera.look_at = home.position, home.look_at
        server.initial_camera.fov = FOV_RAD
        server.gui.configure_theme(show_logo=False, show_share_button=False, dark_mode=True)
        server.gui.set_panel_label(f"fiag-dist view: {show.info.name}")
        self._thread = threading.Thread(target=self._draw, args=(numba.get_num_threads(),), daemon=True)
        self._thread.start()
        server.on_client_connect(self._came)
        server.on_client_disconnect(self._left)

    def close(self) -> None:
        """Ends the page and its thread."""
        self._over = True
        self._wake.set()
        self._thread.join()
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()

    def _came(self, client: viser.ClientHandle) -> None:
        number = client.client_id
        connection = self._server._websock_server._live_connections.get(number)
        if connection is None:
            return  # it has left
        request = connection.request
        if request and not is_own_page(request.headers.get("Origin"), request.headers.get("Host"), self._host):
            return  # it gets neither controls nor pictures
        self.visits[number] = Visit(client, self._show, self._speech, self._wake)
        if number not in self._server.get_clients():
            self.visits.pop(number, None)  # it left meanwhile, and nobody says so again
        self._wake.set()

    def _left(self, client: viser.ClientHandle) -> None:
        self.visits.pop(client.client_id, None)

    def _drawn(self, number: int) -> float | None:
        """One visit's `draw`. What goes wrong in it is said once, in a line, and leaves the other visits alone."""
        visit = self.visits.get(number)
        try:
            return visit.draw() if visit else None
        except Exception as error:  # whatever it is: the thread draws for everybody
            if number not in self._faults:
                self._faults.add(number)
                said = " ".join(str(error).split())
                print(f"fiag-dist: a visitor's picture was left out: {type(error).__name__}: {said}", file=sys.stderr)
            return None

    def _draw(self, num_threads: int) -> None:
        """Draws whatever is due, and sleeps until something is."""
        numba.set_num_threads(num_threads)  # numba counts them for each thread that calls it
        due_s: float | None = None
        while not self._over:
            self._wake.wait(due_s)
            self._wake.clear()
            waits = [self._drawn(number) for number in list(self.visits)]
            due_s = min((wait for wait in waits if wait is not None), default=None)
