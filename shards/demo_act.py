"""What the demo's people do: they speak, blink, raise their brows and turn their heads."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from demo_head import MOTIONS, Person
from demo_voice import Speech, speak

DISTANCE_M = 1.7
PIVOT = np.array([0.0, -0.08, -0.03])
"""Where the neck turns the head, head frame at rest."""


@dataclass(frozen=True, eq=False)
class Performance:
    """What a person does in a clip; one row a frame."""

    speech: Speech
    expressions: np.ndarray
    """In the order of EXPRESSION_NAMES; nobody looks aside."""
    motions: np.ndarray
    viewmats: np.ndarray


def perform(person: Person, rng: np.random.Generator, num_frames: int, fps: float) -> Performance:
    """Speech, blinks, brows and head turns of one clip."""
    times = np.arange(num_frames) / fps
    speech = speak(rng, num_frames, fps, person.pitch_hz, person.tract)
    blink = _blinks(rng, times)
    raised, frowned, widened, squinted, cheeks = (_waves(rng, times, p) for p in (0.45, 0.25, 0.3, 0.3, 0.35))
    expressions = np.stack([raised, raised * 0.8, frowned, widened, cheeks, squinted, 0 * blink, 0 * blink, blink], 1)
    lids = (1 - blink) * (1 + 0.22 * widened - 0.28 * squinted)
    tracks = {
        "open": speech.opening,
        "width": speech.width,
        "lids": lids,
        "brow": raised,
        "frown": frowned,
        "cheek": cheeks,
    }
    motions = np.stack([tracks[name] for name in MOTIONS], 1)
    return Performance(speech, expressions.astype(np.float32), motions, _poses(rng, times))


def _blinks(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """0 open .. 1 closed: a quarter of a second each, every two to three seconds, the first within the first second."""
    out, at = np.zeros(len(times)), rng.uniform(0.4, 0.8)
    while at < times[-1]:
        out = np.maximum(out, np.clip(1.25 * np.cos(np.clip((times - at) / 0.14, -1, 1) * np.pi / 2) ** 2, 0, 1))
        at += rng.uniform(1.6, 2.8)
    return out


def _waves(rng: np.random.Generator, times: np.ndarray, height: float) -> np.ndarray:
    """A unit that comes and goes, 0..height."""
    waves = [np.sin(2 * np.pi * rng.uniform(0.15, 0.6) * times + rng.uniform(0, 6.3)) for _ in range(3)]
    return height * (np.sum(waves, 0) / 2).clip(0, 1)


def _poses(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """World-to-camera of the turning head [frames, 4, 4]: about ten degrees to each side, half of that up and down."""

    def sway(height: float) -> np.ndarray:
        slow, fast = (np.sin(2 * np.pi * f * times + rng.uniform(0, 6.3)) for f in (0.17, 0.31))
        return height * (0.6 * slow + 0.4 * fast)

    yaw, pitch, roll = (np.radians(sway(degrees)) for degrees in (11.0, 5.0, 3.0))
    offsets = np.stack([sway(0.006), sway(0.004), sway(0.004)], 1)
    turns = zip(yaw, pitch, roll, offsets, strict=True)
    return np.stack([still() @ _head_turn(y, p, r, offset) for y, p, r, offset in turns])


def _head_turn(yaw: float, pitch: float, roll: float, offset: np.ndarray) -> np.ndarray:
    """Turns the head about the neck, then shifts it: 4x4."""
    vectors: list[Any] = [(0, yaw, 0), (pitch, 0, 0), (0, 0, roll)]
    turn, nod, tilt = (cv2.Rodrigues(np.array(v, np.float64))[0] for v in vectors)
    pose = np.eye(4)
    pose[:3, :3] = turn @ nod @ tilt
    pose[:3, 3] = PIVOT - pose[:3, :3] @ PIVOT + offset
    return pose


def still() -> np.ndarray:
    """World-to-camera of a head that looks straight into the camera."""
    viewmat = np.diag([1.0, -1.0, -1.0, 1.0])
    viewmat[2, 3] = DISTANCE_M
    return viewmat
