"""What a visitor of the page sees from where, and what stops the page from being served."""

import io
import math
import socket
import wave
from pathlib import Path

import numpy as np
import pytest
import tiny_identity as tiny
import torch

from fiag_dist import view
from fiag_dist.acting.staging import NECK_M, Staging
from fiag_dist.acting.synthesize import Identity
from fiag_dist.errors import ConfigError, DataError
from fiag_dist.media.sound import Sound
from fiag_dist.viewing import show as viewing
from fiag_dist.viewing.orbit import FARTHEST_M, FOV_RAD, HOME_M, Orbit
from fiag_dist.viewing.origin import is_loopback, is_own_page
from fiag_dist.viewing.show import AROUND, Look, Show


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("view")
    return tiny.make_identity(home / "ball", tiny.pack(home / "data"), motion_scale=6.0)


@pytest.fixture(scope="module")
def ball(folder: Path) -> Identity:
    return Identity.load(folder)


@pytest.fixture(scope="module")
def show(ball: Identity) -> Show:
    return Show(ball)


def round_the_head(yaw: float, distance_m: float = HOME_M) -> Orbit:
    """A camera that went round the neck, to the right of a visitor, and looks at it."""
    half = yaw / 2
    position = NECK_M + distance_m * np.array([math.sin(yaw), 0, math.cos(yaw)])
    # First the turn about y, then the half turn about x that makes OpenCV's y point down.
    return Orbit((0.0, math.cos(half), 0.0, -math.sin(half)), tuple(position), tuple(NECK_M))


def test_straight_before_the_face_a_visitor_sees_what_is_rendered(ball: Identity, show: Show) -> None:
    speech = show.listen(Sound(tiny.voice(0.4)))
    look = Look(t=3, pose=3, width=tiny.SIZE, height=tiny.SIZE)
    rendered = list(ball.frames(tiny.voice(0.4)))[3]
    assert np.abs(show.picture(speech, look).astype(int) - rendered).max() <= 1
    green = list(ball.frames(tiny.voice(0.4), Staging(background="green")))[3]
    seen = show.picture(speech, Look(t=3, pose=3, width=tiny.SIZE, height=tiny.SIZE, background="green"))
    assert np.abs(seen.astype(int) - green).max() <= 1


def test_a_wide_page_has_the_frame_in_its_middle(ball: Identity, show: Show) -> None:
    size, speech = tiny.SIZE, show.silence()
    wide = show.picture(speech, Look(width=3 * size, height=2 * size))
    assert (wide[:, :8] == AROUND).all()
    assert (wide[:, -8:] == AROUND).all()
    square = show.picture(speech, Look(width=2 * size, height=2 * size))
    assert np.abs(wide[:, size // 2 : -(size // 2)].astype(int) - square).mean() < 0.5


@pytest.mark.parametrize("yaw", [0.0, 0.4, -1.2])
def test_going_round_turns_the_head_on_its_neck_the_other_way(yaw: float) -> None:
    orbit = round_the_head(yaw)
    np.testing.assert_allclose(orbit.to_world @ [0, 0, HOME_M], NECK_M - orbit.position, atol=1e-9)
    viewmat, K = tiny.viewmat(0), np.array([[300, 0, 32], [0, 300, 32], [0, 0, 1]], np.float32)
    camera = orbit.camera(viewmat, K, orbit.onto(64, 64, 64), 64, 64)
    neck, nose = np.array([*NECK_M, 1]), np.array([0, NECK_M[1], NECK_M[2] + 0.1, 1])
    turned = camera.viewmat.numpy().astype(np.float64)
    np.testing.assert_allclose(turned @ neck, viewmat @ neck, atol=1e-6)
    moved = (turned - viewmat) @ nose
    np.testing.assert_allclose(
        moved[0], -0.1 * math.sin(yaw), atol=1e-6, err_msg="seen from its left, it looks to our left"
    )
    torch.testing.assert_close(camera.K, torch.from_numpy(K))


def test_from_aside_hair_does_not_fly_along_the_clips_view() -> None:
    viewmat = np.eye(4, dtype=np.float32)
    viewmat[:3, :3] = np.diag([1, -1, -1])  # a camera before the face
    viewmat[2, 3] = 1.4
    swing = np.concatenate([np.eye(3), [[0.002], [0.001], [0.02]]], 1).astype(np.float32)
    np.testing.assert_array_equal(round_the_head(0.0).flattened(swing, viewmat), swing)
    for yaw in (0.5, -1.2):
        flat = round_the_head(yaw).flattened(swing, viewmat)
        np.testing.assert_allclose(flat[:, 3], [0.002, 0.001, 0], atol=1e-6)
    half = round_the_head(0.1).flattened(swing, viewmat)
    assert half[2, 3] == pytest.approx(0.01, rel=0.01)


def test_coming_nearer_and_moving_aside_scale_and_shift_the_picture() -> None:
    near = round_the_head(0.0, HOME_M / 2).onto(64, 100, 80)
    np.testing.assert_allclose(near @ [32, 32, 1], [50, 40, 1])
    assert near[0, 0] == pytest.approx(2 * 80 / 64)
    aside = 2 * HOME_M * math.tan(FOV_RAD / 2)  # as much as the page is high
    right = Orbit(
        position=(NECK_M[0] + aside / 4, NECK_M[1], NECK_M[2] + HOME_M),
        look_at=(NECK_M[0] + aside / 4, NECK_M[1], NECK_M[2]),
    )
    np.testing.assert_allclose(right.onto(64, 80, 80) @ [32, 32, 1], [20, 40, 1])


def test_a_browser_may_say_anything_of_its_camera(show: Show) -> None:
    home = Orbit()
    assert Orbit.of(home.wxyz, home.position, home.look_at) == home
    assert Orbit.of(home.wxyz, (0.0, math.nan, 1.0), home.look_at) == home
    far = Orbit.of((0.0, 0.0, 0.0, 0.0), (1e300, 0.0, 1.0), (-1e300, 0.0, 0.0))
    assert far.position == (FARTHEST_M, 0.0, 1.0)
    assert show.picture(show.silence(), Look(orbit=far, width=64, height=64)).shape == (64, 64, 3)


def test_sound_and_hands_move_the_face_and_time_does_not_stand_still(show: Show) -> None:
    speech, silence = show.listen(Sound(tiny.voice(1.0))), show.silence()
    look = Look(t=12, width=tiny.SIZE, height=tiny.SIZE)
    talking, silent = (show.picture(heard, look).astype(int) for heard in (speech, silence))
    assert np.abs(talking - silent).max() > 1
    by_hand = show.picture(silence, Look(t=12, width=tiny.SIZE, height=tiny.SIZE, expression=(1.0,) * 9))
    assert np.abs(by_hand - silent).max() > 1
    later = show.picture(silence, Look(t=12, pose=20, width=tiny.SIZE, height=tiny.SIZE))
    assert np.abs(later - silent).max() > 1


def test_the_sound_goes_on_from_any_moment(show: Show) -> None:
    voice = tiny.voice(1.0)
    speech = show.listen(Sound(voice))
    assert len(speech) == tiny.FPS
    with wave.open(io.BytesIO(speech.wav(0.25))) as file:
        assert (file.getnchannels(), file.getframerate()) == (1, 16000)
        heard = np.frombuffer(file.readframes(16000), "<i2") / 32767
    np.testing.assert_allclose(heard, voice[4000:], atol=1e-4)


def test_a_speech_that_a_page_can_not_hold_is_refused(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "LONGEST_S", 2)
    with pytest.raises(DataError, match=r"longer than 2 s.*fiag-dist render"):
        show.listen(Sound(tiny.voice(60.0)))


def test_mistakes_are_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        cases = [
            (
                [str(folder), "--port", taken],
                ConfigError,
                f"--port {taken}: can't be listened on .*in use.*give another",
            ),
            ([str(folder), "--port", "70000"], ConfigError, "0 to 65535"),
            ([str(folder), "--port", "0", "--host", "203.0.113.7"], ConfigError, "203.0.113.7.*give a --host that is"),
            ([str(folder), "--host", "no.such.invalid"], ConfigError, "^--host no.such.invalid: leads to no address"),
            ([str(tmp_path), "--port", "0"], DataError, r"no identity\.json in it"),
            (
                [str(folder), "--port", "0", "--audio", "s3://b/a.wav"],
                ConfigError,
                r"^s3://b/a\.wav: .* copy it here first: aws s3 cp s3://b/a\.wav a\.wav$",
            ),
            ([str(folder), "--port", "0", "--audio", str(tmp_path / "no.wav")], DataError, "No such file"),
        ]
        for argv, kind, message in cases:
            with pytest.raises(kind, match=message) as caught:
                view.main(argv)
            assert "\n" not in str(caught.value)
    find = view.importlib.util.find_spec
    monkeypatch.setattr(view.importlib.util, "find_spec", lambda name: None if name == "viser" else find(name))
    with pytest.raises(ConfigError, match=r"not installed; run: bash launch/install.sh ingest,view"):
        view.main([str(folder)])


def test_an_address_of_the_newer_kind_is_listened_on() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    view.check_address("::1", 0)


def test_no_port_beyond_the_last_is_advised() -> None:
    with (
        socket.create_server(("127.0.0.1", 65535)),
        pytest.raises(ConfigError, match=r"in use.*or give another: --port 8080$"),
    ):
        view.check_address("127.0.0.1", 65535)


def test_only_this_machine_is_served_unless_asked_otherwise() -> None:
    assert view.ViewCommand(identity=Path("x")).host == "127.0.0.1"
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("studio.example")


@pytest.mark.parametrize(
    ("origin", "host", "served_on", "own"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", "127.0.0.1", True),
        ("http://localhost:8080", "localhost:8080", "127.0.0.1", True),
        (None, "127.0.0.1:8080", "127.0.0.1", True),
        ("https://other.example", "127.0.0.1:8080", "127.0.0.1", False),
        ("null", "127.0.0.1:8080", "127.0.0.1", False),
        ("http://rebound.example:8080", "rebound.example:8080", "127.0.0.1", False),
        ("http://studio.example:8080", "studio.example:8080", "0.0.0.0", True),
        ("https://other.example", "studio.example:8080", "0.0.0.0", False),
    ],
)
def test_no_other_site_sees_through_a_visitors_browser(
    origin: str | None, host: str, served_on: str, own: bool
) -> None:
    assert is_own_page(origin, host, served_on) is own
