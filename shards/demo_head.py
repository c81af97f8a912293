"""The demo's head: a reference face whose every point is known, proportions that make it a person, and motions that are exact.

Reference coordinates: metres, head frame (x to the person's left, y up, z out of the face). A surface point is given by longitude (0 at the nose,
pi at the back) and latitude. The skin is cut along two latitudes, the closed lips and the closed lids, where it opens.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

MOUTH_Y, MOUTH_HALF = -0.076, 0.025
EYE_Y, EYE_X, EYE_HALF = -0.008, 0.0305, 0.014
AXES = np.array([0.077, 0.127, 0.088])
CENTRE_Z = -0.030
MAX_GAP_M = 0.019
"""Between the lips at full opening."""
LID_UPPER_M, LID_LOWER_M = 0.0058, 0.0034
"""How far the lids stand from the line on which they close, eyes open."""

MOTIONS = ("open", "width", "lids", "brow", "frown", "cheek")
"""What moves the skin; displacements are linear in these."""

LIPS_INNER_UPPER = (415, 310, 311, 312, 13, 82, 81, 80, 191)
LIPS_INNER_LOWER = (95, 88, 178, 87, 14, 317, 402, 318, 324)
LIDS_UPPER = (246, 161, 160, 159, 158, 157, 173, 466, 388, 387, 386, 385, 384, 398)
EYE_CORNERS = (33, 263)
"""Outer corners of the right and the left eye."""
IRISES = slice(468, 478)


@dataclass(frozen=True)
class Person:
    """Proportions, colours and voice of one made-up person; colours are RGB 0..1."""

    width: float
    height: float
    jaw: float
    nose: float
    eyes: float
    eye_distance: float
    lips: float
    brow_m: float
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    iris: tuple[float, float, float]
    lip: tuple[float, float, float]
    shirt: tuple[float, float, float]
    wall: tuple[float, float, float]
    hairline: float
    long_hair: bool
    pitch_hz: float
    tract: float


SKINS = (
    (0.95, 0.78, 0.68),
    (0.88, 0.68, 0.54),
    (0.72, 0.52, 0.39),
    (0.50, 0.34, 0.25),
    (0.93, 0.74, 0.62),
    (0.62, 0.43, 0.31),
)
HAIRS = (
    (0.16, 0.11, 0.08),
    (0.42, 0.26, 0.14),
    (0.78, 0.62, 0.36),
    (0.07, 0.06, 0.07),
    (0.50, 0.20, 0.10),
    (0.55, 0.54, 0.53),
)
IRIS = ((0.30, 0.50, 0.68), (0.36, 0.24, 0.14), (0.34, 0.50, 0.30), (0.45, 0.36, 0.20))
SHIRTS = (
    (0.20, 0.34, 0.55),
    (0.55, 0.20, 0.22),
    (0.22, 0.42, 0.32),
    (0.80, 0.78, 0.72),
    (0.30, 0.25, 0.40),
    (0.85, 0.62, 0.25),
)
WALLS = ((0.62, 0.70, 0.74), (0.76, 0.70, 0.62), (0.58, 0.64, 0.56), (0.70, 0.66, 0.74))


def make_person(number: int, seed: int) -> Person:
    """The person of that number: neighbours in number get different skin, hair and voice."""
    rng = np.random.default_rng((seed, number))
    skin = np.array(SKINS[number % len(SKINS)])
    deep = number % 2 == 1
    return Person(
        width=rng.uniform(0.94, 1.06),
        height=rng.uniform(0.96, 1.02),
        jaw=rng.uniform(-0.10, 0.12),
        nose=rng.uniform(0.8, 1.25),
        eyes=rng.uniform(0.9, 1.15),
        eye_distance=rng.uniform(-0.002, 0.002),
        lips=rng.uniform(0.8, 1.25),
        brow_m=rng.uniform(0.0016, 0.0032),
        skin=tuple(skin),
        hair=HAIRS[(number + int(rng.integers(2)) * 3) % len(HAIRS)],
        iris=IRIS[rng.integers(len(IRIS))],
        lip=tuple(skin * rng.uniform(0.78, 0.88) * np.array([0.98, 0.66, 0.68])),
        shirt=SHIRTS[(number * 5 + int(rng.integers(2))) % len(SHIRTS)],
        wall=WALLS[(number + seed) % len(WALLS)],
        hairline=rng.uniform(-0.06, 0.06),
        long_hair=not deep,
        pitch_hz=rng.uniform(105, 130) if deep else rng.uniform(185, 225),
        tract=rng.uniform(0.92, 0.98) if deep else rng.uniform(1.08, 1.16),
    )


def surface(longitude: np.ndarray, latitude: np.ndarray, nose: float = 1.0) -> np.ndarray:
    """Reference skin at rest, lips and eyes closed: [..., 3]."""
    x = AXES[0] * np.sin(longitude) * _breadth(latitude)
    y = AXES[1] * np.sin(latitude)
    facing = np.cos(longitude)
    z = CENTRE_Z + AXES[2] * facing * _ring(latitude, 0.6) + _relief(x, y, nose) * _smooth((facing - 0.05) / 0.5)
    z = z + 0.030 * _smooth(-(y + 0.05) / 0.05) * (facing < 0) * -facing  # the skull ends above the neck
    return np.stack([x, y, z], -1)


def front(x: np.ndarray, y: np.ndarray, nose: float = 1.0) -> np.ndarray:
    """The reference face's surface point seen at (x, y) from the front: [..., 3]."""
    latitude = np.arcsin(np.clip(y / AXES[1], -1, 1))
    return surface(np.arcsin(np.clip(x / (AXES[0] * _breadth(latitude)), -0.999, 0.999)), latitude, nose)


def _relief(x: np.ndarray, y: np.ndarray, nose: float) -> np.ndarray:
    """What nose, sockets, lips and chin add to the ellipsoid, metres outwards."""
    ridge = np.interp(y, [-0.060, -0.054, -0.045, -0.005, 0.008], [0, 0.008, 0.0225, 0.006, 0])
    sides = np.interp(y, [-0.056, -0.042, 0.0], [0.011, 0.012, 0.007])
    out = nose * ridge * np.exp(-((x / sides) ** 2))
    for side in (-1, 1):
        out = out + nose * 0.006 * _bump(x - side * 0.011, y + 0.050, 0.006, 0.006)  # wings of the nose
        out = out - 0.007 * _bump(x - side * EYE_X, y - EYE_Y - 0.002, 0.020, 0.012)
        out = out + 0.003 * _bump(x - side * EYE_X, y - EYE_Y, 0.011, 0.008)
        out = out + 0.003 * _bump(x - side * 0.030, y - 0.012, 0.025, 0.008)
        out = out + 0.004 * _bump(x - side * 0.040, y + 0.040, 0.018, 0.018)
    out = out + 0.018 * _smooth(-(y + 0.035) / 0.075)
    out = out + 0.006 * _bump(x, y - MOUTH_Y, 0.028, 0.016) - 0.0022 * _bump(x, y - MOUTH_Y, 0.024, 0.0022)
    return out + 0.007 * _bump(x, y + 0.112, 0.022, 0.014)


def warp(points: np.ndarray, person: Person) -> np.ndarray:
    """Reference points [..., 3] with the person's proportions."""
    x, y, z = np.moveaxis(points, -1, 0)
    below = _smooth(-(y + 0.02) / 0.09)
    ahead = _smooth((z - 0.0) / 0.03)
    wide = person.width * (1 + person.jaw * below)
    around_mouth = _bump(x, y - MOUTH_Y, 0.040, 0.016) * ahead
    tall = y + (person.lips - 1) * 0.7 * (y - MOUTH_Y) * around_mouth
    shift = 0
    for side in (-1, 1):
        near = _bump(x - side * EYE_X, y - EYE_Y, 0.022, 0.016) * ahead
        tall = tall + (person.eyes - 1) * (y - EYE_Y) * near
        tall = tall + 0.0030 * _bump(x - side * 0.027, y - MOUTH_Y, 0.011, 0.012) * ahead  # a friendly mouth
        shift = shift + side * person.eye_distance * near
    return np.stack([x * wide + shift, tall * person.height, z], -1)


def basis(points: np.ndarray, above_mouth: np.ndarray, above_eyes: np.ndarray) -> np.ndarray:
    """Displacement [motions, n, 3] of skin points [n, 3] (reference) for one unit of each motion; the flags tell the sides of the cuts."""
    x, y, z = points.T
    ahead = _smooth((z - 0.005) / 0.02)
    out = np.zeros((len(MOTIONS), len(points), 3))
    s, dy = x / MOUTH_HALF, y - MOUTH_Y
    profile = np.clip(1 - s**2, 0, 1) ** 0.7 * ahead
    lower = (
        -0.62 * profile * np.exp(-((dy / 0.020) ** 2))
        - 0.50 * _smooth(-dy / 0.032) * np.exp(-((x / 0.050) ** 2)) * ahead
    )
    upper = 0.22 * profile * np.exp(-((dy / 0.011) ** 2))
    out[0, :, 1] = MAX_GAP_M / 0.84 * np.where(above_mouth, upper, lower)
    around = np.exp(-((dy / 0.018) ** 2)) * ahead
    out[1, :, 0] = 0.0042 * s * np.exp(0.5 - 0.5 * s**2) * around
    out[1, :, 2] = -0.0030 * np.exp(-(s**2)) * around
    for side in (-1, 1):
        s, dy = (x - side * EYE_X) / EYE_HALF, y - EYE_Y
        profile = np.clip(1 - s**2, 0, 1) ** 0.75 * ahead
        up, down = LID_UPPER_M * np.exp(-((dy / 0.0105) ** 2)), -LID_LOWER_M * np.exp(-((dy / 0.009) ** 2))
        out[2, :, 1] += profile * np.where(above_eyes, up, down)
        brow = np.where(above_eyes, _bump(x - side * 0.031, y - 0.013, 0.026, 0.013), 0) * _smooth(dy / 0.010) * ahead
        out[3, :, 1] += 0.0065 * brow
        out[4, :, 1] -= 0.0040 * brow
        out[4, :, 0] -= side * 0.0020 * brow
        cheek = _bump(x - side * 0.035, y + 0.030, 0.020, 0.012) * ahead
        out[5, :, 1] += 0.0035 * cheek
        out[5, :, 2] += 0.0020 * cheek
    return out


@lru_cache(maxsize=1)
def layout() -> np.ndarray:
    """Where the 478 landmarks lie on the reference face, seen from the front: [478, 2], metres."""
    return np.loadtxt(Path(__file__).with_name("demo_landmarks.csv"), delimiter=",", skiprows=2) / 1000


class Landmarks:
    """The 478 landmarks of a person under any motion, with MediaPipe's numbering."""

    def __init__(self, person: Person) -> None:
        place = layout()
        points = front(place[:, 0], place[:, 1], person.nose)
        points[IRISES] = front(place[IRISES, 0], place[IRISES, 1], person.nose) - [0, 0, 0.001]
        numbers = np.arange(len(place))
        above_mouth = (place[:, 1] > MOUTH_Y) & ~np.isin(numbers, LIPS_INNER_LOWER) | np.isin(numbers, LIPS_INNER_UPPER)
        above_eyes = (place[:, 1] > EYE_Y) | np.isin(numbers, LIDS_UPPER)
        self._rest = warp(points, person)
        self._basis = basis(points, above_mouth, above_eyes)
        self._basis[:, IRISES] = 0

    def __call__(self, motion: np.ndarray) -> np.ndarray:
        """Head frame, metres [478, 3]; `motion` [motions]."""
        return self._rest + np.tensordot(motion, self._basis, 1)


def mouth_open(landmarks: np.ndarray) -> float:
    """Gap between the inner lips over the distance between the outer eye corners."""
    gap = np.linalg.norm(landmarks[13] - landmarks[14])
    return float(gap / np.linalg.norm(landmarks[EYE_CORNERS[0]] - landmarks[EYE_CORNERS[1]]))


def _ring(latitude: np.ndarray, power: float) -> np.ndarray:
    """Share of an axis at a latitude; powers below 1 make chin and crown fuller than an ellipsoid's."""
    return np.clip(np.cos(latitude), 1e-6, 1) ** power


def _breadth(latitude: np.ndarray) -> np.ndarray:
    return np.where(latitude > 0, _ring(latitude, 0.6), _ring(latitude, 0.85))


def _bump(x: np.ndarray, y: np.ndarray, wide: float, tall: float) -> np.ndarray:
    return np.exp(-((x / wide) ** 2) - (y / tall) ** 2)


def _smooth(t: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)
