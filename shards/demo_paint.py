"""What the demo's people are made of: textured patches for skin, hair, eyes, mouth and torso, and the wall behind."""

import cv2
import numpy as np
from demo_head import (
    AXES,
    CENTRE_Z,
    EYE_HALF,
    EYE_X,
    EYE_Y,
    MAX_GAP_M,
    MOTIONS,
    MOUTH_HALF,
    MOUTH_Y,
    Person,
    basis,
    front,
    surface,
    warp,
)
from demo_raster import Patch

from fiag_dist.types import Label

TEXTURE = (640, 700)
"""Texels of the skin, rows by columns; its columns are dense in front."""


def plain(rest: np.ndarray, colour: tuple | np.ndarray, label: Label, **more) -> Patch:
    """A patch of one colour."""
    return Patch(rest, np.full((2, 2, 3), colour, np.float64), np.full((2, 2), label, np.uint8), **more)


def build(person: Person, number: int) -> list[Patch]:
    """Everything of a person that can be seen."""
    patches = [_skin(person, number), *_eyes(person), *_mouth(person), *_ears(person), *_torso(person)]
    if person.long_hair:
        patches.append(_long_hair(person))
    return patches


def backdrop(person: Person, size: int, seed: int) -> np.ndarray:
    """The wall behind: soft shapes, float [size, size, 3] 0..1."""
    rng = np.random.default_rng(seed)
    small = rng.normal(0, 0.06, (6, 6, 1)) + rng.normal(0, 0.02, (6, 6, 3)) + np.linspace(0.06, -0.10, 6)[:, None, None]
    wall = np.array(person.wall) + cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(wall, 0.05, 0.95).astype(np.float32)


def _skin(person: Person, number: int) -> Patch:
    """Face, scalp and short hair, cut along the lips and the lids."""
    cut_latitudes = [np.arcsin(MOUTH_Y / AXES[1]), np.arcsin(EYE_Y / AXES[1])]
    below, between, above = 55, 50, 60
    knots = [-np.pi / 2, *cut_latitudes, np.pi / 2]
    parts = [np.linspace(a, b, n + 1) for a, b, n in zip(knots, knots[1:], (below, between, above), strict=False)]
    latitude = np.concatenate(parts)  # the rows of the cuts are there twice: once for each side
    index = np.concatenate(
        [np.arange(below + 1), below + np.arange(between + 1), below + between + np.arange(above + 1)]
    )
    at = index / index[-1]
    rest, hair = _scalp(person, *np.meshgrid(_longitudes(180), latitude))
    rows, cols = rest.shape[:2]
    above_mouth = np.arange(rows) > below
    above_eyes = np.arange(rows) > below + between + 1
    moves = basis(rest.reshape(-1, 3), np.repeat(above_mouth, cols), np.repeat(above_eyes, cols)).reshape(
        len(MOTIONS), rows, cols, 3
    )
    moves = moves * (1 - hair[..., None])
    fine_latitude = np.interp(np.linspace(0, 1, TEXTURE[0]), at, latitude)
    colours, labels = _paint_skin(person, number, _longitudes(TEXTURE[1]), fine_latitude)
    return Patch(warp(rest, person), colours, labels, moves, cuts=(below, below + between + 1), rows_at=at)


def _longitudes(count: int) -> np.ndarray:
    """Columns of the skin, dense in front; what lies farther back is never seen."""
    share = np.linspace(-1, 1, count)
    return 2.3 * (0.6 * share + 0.4 * share**3)


def _scalp(person: Person, longitude: np.ndarray, latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reference points with the hair's thickness, and how much each is hair, 0..1."""
    points = surface(longitude, latitude, person.nose)
    line = np.interp(
        np.abs(longitude), [0, 0.6, 1.0, 1.25, 1.5, 1.8, np.pi], [0.62, 0.60, 0.42, 0.02, 0.02, -0.40, -0.45]
    )
    line = line + person.hairline + 0.02 * np.sin(9 * longitude)
    hair = np.clip((latitude - line) / 0.10 + 0.5, 0, 1)
    hair = hair * hair * (3 - 2 * hair)
    outward = points - np.array([0, 0, CENTRE_Z])
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    return points + 0.011 * hair[..., None] * outward, hair


def _paint_skin(
    person: Person, number: int, longitude: np.ndarray, latitude: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Texture of the skin patch, painted in reference coordinates."""
    theta, phi = np.meshgrid(longitude, latitude)
    points = surface(theta, phi, person.nose)
    _, hair = _scalp(person, theta, phi)
    x, y, _ = np.moveaxis(points, -1, 0)
    ahead = np.cos(theta) > 0.15
    rng = np.random.default_rng(number)
    colours = np.broadcast_to(np.array(person.skin), (*x.shape, 3)).copy()
    soft = cv2.resize(rng.normal(0, 0.018, (24, 40)), x.shape[::-1], interpolation=cv2.INTER_CUBIC)
    colours *= 1 + soft[..., None]

    def paint(amount: np.ndarray, colour: tuple | np.ndarray) -> None:
        colours[:] += (np.clip(amount, 0, 1) * ahead)[..., None] * (np.array(colour) - colours)

    skin = np.array(person.skin)
    for side in (-1, 1):
        u, v = x - side * EYE_X, y - EYE_Y
        paint(0.30 * np.exp(-((x - side * 0.042) ** 2 + (y + 0.042) ** 2) / 0.016**2), skin * [1.0, 0.72, 0.70])
        paint(0.35 * np.exp(-((u / 0.018) ** 2) - ((v - 0.002) / 0.010) ** 2), skin * 0.72)
        paint(0.85 * np.exp(-(((x - side * 0.0075) / 0.0042) ** 4) - ((y + 0.0535) / 0.0022) ** 4), skin * 0.38)
        along = np.clip(1.08 - (u / EYE_HALF) ** 2, 0, 1)
        paint(_edge(np.where(v >= 0, 0.0016, 0.0006) * np.sqrt(along) - np.abs(v)) * (along > 0), _dark(person.hair))
        crease = 0.0052 * np.clip(1.05 - (u / (EYE_HALF * 1.05)) ** 2, 0, 1) ** 0.5
        paint(0.45 * np.exp(-(((v - crease) / 0.0007) ** 2)) * (v > 0.001) * (crease > 0.0005), skin * 0.6)
        j = (np.abs(x) - 0.013) / 0.036
        arch = 0.0105 + 0.0035 * (1 - ((2 - 4 * j) / 2.2) ** 2) + 0.0005 * (2 - 4 * j)
        thick = person.brow_m * np.clip(1.15 - j**2, 0.1, 1)
        inside = (x * side > 0) & (j > -0.06) & (j < 1.06)
        paint(_edge(thick - np.abs(y - arch), 0.0006) * inside * 0.9, _dark(person.hair))
    s, v = x / MOUTH_HALF, y - MOUTH_Y
    profile = np.clip(1 - s**2, 0, 1)
    top = 0.0065 * profile**0.7 - 0.0012 * np.exp(-((s / 0.13) ** 2))
    lips = ahead & (v < top) & (v > -0.008 * profile**0.6) & (np.abs(s) < 1)
    paint(_edge(np.minimum(top - v, v + 0.008 * profile**0.6)) * (np.abs(s) < 1), person.lip)
    paint(0.35 * np.exp(-((v / 0.0010) ** 2)) * (np.abs(s) < 1), np.array(person.lip) * 0.6)
    paint(0.25 * np.exp(-((x / 0.014) ** 2) - ((y - MOUTH_Y + 0.0125) / 0.0035) ** 2), skin * 0.7)
    for _ in range(3):
        spot = rng.uniform([-0.05, -0.10], [0.05, 0.04])
        paint(0.6 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 0.0012**2), skin * 0.45)
    strands = 0.10 * np.sin(70 * theta + 4 * np.sin(5 * phi)) + 0.08 * np.sin(31 * theta - 9 * phi)
    share = np.clip((hair - 0.25) / 0.2, 0, 1)[..., None]
    colours = colours * (1 - share) + share * np.array(person.hair) * (1 + strands[..., None])
    labels = np.full(x.shape, Label.HAIR, np.uint8)
    labels[(hair < 0.35) & (np.cos(theta) > 0.25)] = Label.FACE
    labels[lips] = Label.LIPS
    return np.clip(colours, 0, 1), labels


def _dark(colour: tuple) -> np.ndarray:
    """Brows and lashes: a darker shade of the hair."""
    return np.array(colour) * 0.45


def _eyes(person: Person) -> list[Patch]:
    """Two balls behind the lids; the texture's centre is the gaze."""
    angle, ring = np.meshgrid(np.linspace(0, 2 * np.pi, 33), np.linspace(0, 1.1, 17))
    fine_ring = np.linspace(0, 1.1, 220)[:, None]
    fine_angle = np.linspace(0, 2 * np.pi, 120)[None]
    radius = 0.0125
    r = radius * np.sin(fine_ring)
    colours = np.broadcast_to(np.array([0.93, 0.92, 0.90]), (220, 120, 3)).copy()
    lines = 1 + 0.12 * np.sin(24 * fine_angle)
    colours = np.where(
        (r < 0.0060)[..., None], np.array(person.iris) * (0.6 + 0.4 * r / 0.0060)[..., None] * lines[..., None], colours
    )
    colours[(r[:, 0] > 0.0055) & (r[:, 0] < 0.0061)] *= 0.5
    colours[r[:, 0] < 0.0026] = 0.03
    glint = (r * np.cos(fine_angle) + 0.0022) ** 2 + (r * np.sin(fine_angle) - 0.0024) ** 2 < 0.0011**2
    colours[glint] = 0.98
    patches = []
    for side in (-1, 1):
        lid = front(np.array(side * EYE_X), np.array(EYE_Y), person.nose)
        x, y = radius * np.sin(ring) * np.cos(angle), radius * np.sin(ring) * np.sin(angle)
        centre = warp(lid, person) - [0, 0, radius + 0.0030]
        rest = centre + np.stack([x * person.eyes, y, radius * np.cos(ring)], -1)
        patches.append(Patch(rest, colours, np.full((220, 120), Label.FACE, np.uint8), shade=0.4))
    return patches


def _mouth(person: Person) -> list[Patch]:
    """What an open mouth shows: throat, two rows of teeth, a tongue. The lower half goes with the jaw."""
    lips_z = float(front(np.array(0.0), np.array(MOUTH_Y), person.nose)[2])
    jaw = -0.70 * MAX_GAP_M / 0.84

    def arch(
        y0: float,
        y1: float,
        depth: float,
        half: float,
        drop_top: float,
        drop_bottom: float,
        colours: np.ndarray,
        **more,
    ) -> Patch:
        x, y = np.meshgrid(np.linspace(-half, half, 21), MOUTH_Y + np.linspace(y0, y1, 9))
        rest = np.stack([x, y, lips_z - depth - 12 * x**2], -1)
        moves = np.zeros((len(MOTIONS), *rest.shape))
        moves[0, ..., 1] = jaw * np.linspace(drop_bottom, drop_top, 9)[:, None]
        return Patch(warp(rest, person), colours, np.full(colours.shape[:2], Label.MOUTH, np.uint8), moves, **more)

    gaps = np.abs(np.sin(np.linspace(0, 8 * np.pi, 160))) < 0.16
    teeth = np.where(gaps[None, :, None], 0.55, 0.90) * np.array([1.0, 0.97, 0.90]) * np.ones((4, 1, 1))
    throat = np.linspace(0.20, 0.12, 8)[:, None, None] * np.array([1.0, 0.42, 0.40]) * np.ones((1, 4, 1))
    tongue = np.full((4, 4, 3), (0.62, 0.27, 0.27))
    return [
        arch(-0.022, 0.012, 0.017, 0.029, 0.0, 1.0, throat, shade=0.0),
        arch(-0.0012, 0.009, 0.008, 0.019, 0.0, 0.0, teeth, shade=0.3),
        arch(-0.011, -0.0022, 0.0095, 0.017, 1.0, 1.0, teeth * 0.9, shade=0.3),
        arch(-0.016, -0.0030, 0.0135, 0.016, 0.8, 1.0, tongue, shade=0.3),
    ]


def _ears(person: Person) -> list[Patch]:
    angle, ring = np.meshgrid(np.linspace(0, 2 * np.pi, 25), np.linspace(0, np.pi, 15))
    patches = []
    for side in (-1, 1):
        x, y, z = 0.010 * np.sin(ring) * np.cos(angle), 0.029 * np.cos(ring), 0.017 * np.sin(ring) * np.sin(angle)
        rest = np.stack([side * (0.079 + x - 0.2 * z), y - 0.018, z - 0.028], -1)
        patches.append(plain(warp(rest, person), np.array(person.skin) * [0.97, 0.90, 0.88], Label.HAIR))
    return patches


def _long_hair(person: Person) -> Patch:
    """A curtain around the back of the head, down to the neck; it turns with the head."""
    theta, t = np.meshgrid(np.linspace(1.25, 2 * np.pi - 1.25, 70), np.linspace(0, 1, 24))
    y = 0.045 - t * (0.172 + 0.008 * np.sin(7 * theta))
    swell = 0.90 + 0.20 * np.sin(np.pi * (0.1 + 0.75 * t))
    rest = np.stack([0.089 * swell * np.sin(theta), y, CENTRE_Z + 0.100 * swell * np.cos(theta)], -1)
    fine_theta, fine_t = np.meshgrid(np.linspace(1.25, 2 * np.pi - 1.25, 500), np.linspace(0, 1, 120))
    strands = 0.12 * np.sin(60 * fine_theta + 3 * np.sin(4 * fine_t)) + 0.08 * np.sin(23 * fine_theta)
    colours = np.array(person.hair) * (1 + strands - 0.15 * fine_t)[..., None]
    return Patch(warp(rest, person), np.clip(colours, 0, 1), np.full(fine_t.shape, Label.HAIR, np.uint8))


def _torso(person: Person) -> list[Patch]:
    """Neck and shoulders; they stand still."""
    theta, t = np.meshgrid(np.linspace(-np.pi, np.pi, 49), np.linspace(0, 1, 15))
    wide = 0.045 + 0.012 * t**2
    neck = np.stack([wide * np.sin(theta), -0.06 - 0.15 * t, -0.045 + 0.9 * wide * np.cos(theta)], -1)
    shadow = np.linspace(0.62, 1.0, 40)[:, None, None] ** 0.8
    skin = np.array(person.skin) * 0.94 * np.clip(shadow, 0, 1) * np.ones((1, 4, 1))
    theta, phi = np.meshgrid(np.linspace(0, 2 * np.pi, 73), np.linspace(0.01, np.pi / 2, 33))
    slope = np.sin(phi)
    shoulders = np.stack(
        [0.26 * slope * np.sin(theta), -0.145 - 0.17 * (1 - np.cos(phi)) ** 0.8, -0.055 + 0.10 * slope * np.cos(theta)],
        -1,
    )
    v = np.linspace(0, 1, 300)[:, None]
    weave = 1 + 0.05 * np.sin(150 * v) * np.ones((1, 8))
    shirt = np.array(person.shirt) * weave[..., None]
    return [
        Patch(neck, skin, np.full(skin.shape[:2], Label.TORSO, np.uint8), fixed=True),
        Patch(shoulders, np.clip(shirt, 0, 1), np.full(shirt.shape[:2], Label.TORSO, np.uint8), fixed=True),
    ]


def _edge(distance: np.ndarray, soft: float = 0.0005) -> np.ndarray:
    """0 outside, 1 inside a shape, over `soft` metres."""
    return np.clip(distance / soft + 0.5, 0, 1)
