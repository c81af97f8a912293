"""Which frames of a clip can be used: the longest run of one face, seen from the front, without a cut.

Two kinds of breaks between frames are told apart. At a *cut* the picture behind the person changes, or the face is suddenly elsewhere or of another
size: the run ends. At a *splice* seconds were taken out of one take: the head jumps a little, what is behind it stays; frames on both sides are as
good as any, so the run goes on and the splice is only reported.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, UInt8

from fiag_dist.errors import DataError
from fiag_dist.ingest.face import Face
from fiag_dist.landmarks import CHIN, FOREHEAD_TOP

MOST_TURN_DEG = 60.0
"""A face that looks further away from the camera hides half of itself, degrees."""
MOST_MOTION, MOST_GROWTH = 0.4, 0.25
"""A face that moves further than this between frames, in face heights, or grows by more than this share, was cut to."""
CUT_DIFFERENCE, CUT_BEHIND = 40.0, 15.0
"""Mean absolute difference of neighbouring frames, of 255, from which there was a cut: of the whole picture, of what is behind the person."""
SPIKE, SPIKE_BEHIND = 4.0, 6.0
"""A splice or cut is one frame that differs from the one before by more than SPIKE times what its neighbours do (2.7 at most in continuous footage
of 19 people, 7.2 at least at their five splices); it is a cut when what is behind the person differs by more than SPIKE_BEHIND too."""
LEAST_SPIKE = 3.0
"""A smaller difference is no splice whatever the neighbours do: noise and coding in a still picture."""
AROUND = 4
"""Neighbours to each side, frames."""
_PERSON_ABOVE, _LEAST_BEHIND = 25, 30
"""A matte from which a pixel may show some of the person, of 255; pixels of background, of a quarter-size picture, that say something."""


@dataclass(frozen=True)
class Look:
    """What the choice of frames needs of one frame."""

    reason: str = ""
    """Why it can't be used; empty when it can."""
    x: float = 0.0
    y: float = 0.0
    """Middle of the face, in any unit."""
    height: float = 1.0
    """Forehead to chin, in the same unit."""
    changed: float = 0.0
    """Mean absolute difference to the frame before, of 255; 0 for the first."""
    behind: float = 0.0
    """The same over what is behind the person; 0 when hardly any of it is in the picture."""


@dataclass(frozen=True)
class Span:
    """Frames first .. stop - 1, why the others are left out (frames by reason), and the frames inside that begin after a splice or a cut."""

    first: int
    stop: int
    left_out: dict[str, int]
    splices: tuple[int, ...] = field(default=())

    def __len__(self) -> int:
        return self.stop - self.first


def longest(looks: list[Look]) -> Span:
    """The longest usable run."""
    reasons = [look.reason for look in looks]
    changed = np.array([look.changed for look in looks])
    jumps = spikes(changed)
    runs, since = [], 0
    for i in range(1, len(looks) + 1):
        ends = i == len(looks) or reasons[i] or reasons[i - 1] or _cut(looks[i - 1], looks[i], bool(jumps[i]))
        if ends:
            runs.append((since, i))
            since = i
    usable = [(low, high) for low, high in runs if not reasons[low]]
    first, stop = max(usable, key=lambda run: run[1] - run[0], default=(0, 0))
    left_out = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons) if reason}
    left_out["beyond a cut or a gap"] = len(looks) - sum(left_out.values()) - (stop - first)
    splices = tuple(int(i) for i in np.flatnonzero(jumps) if first < i < stop)
    return Span(first, stop, {reason: count for reason, count in left_out.items() if count}, splices)


def within(use: Span, first: int, stop: int, reason: str) -> Span:
    """What of a run lies in frames first .. stop - 1; the rest is left out for this reason."""
    low = max(use.first, first)
    high = max(low, min(use.stop, stop))
    lost = len(use) - (high - low)
    left_out = use.left_out | ({reason: lost} if lost else {})
    return Span(low, high, left_out, tuple(i for i in use.splices if low < i < high))


def check(use: Span, num_frames: int, fps: float, min_seconds: float, name: str) -> None:
    """Raises DataError, with the reasons, when less than min_seconds of a clip's num_frames can be used."""
    if len(use) / fps < min_seconds:
        reasons = ", ".join(f"{count / fps:.1f} s {reason}" for reason, count in use.left_out.items())
        raise DataError(
            f"{name}: {len(use) / fps:.1f} s usable, {min_seconds:g} s needed: of {num_frames / fps:.1f} s {reasons or 'that is all of it'}; "
            "give a longer clip of one face without cuts"
        )


def look(
    face: Face | None,
    image: UInt8[np.ndarray, "size size 3"],
    matte: UInt8[np.ndarray, "size size"],
    before: tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]] | None,
) -> Look:
    """A frame as it is and as it differs from `before`, the image and person matte of the frame before it, at a quarter of their size."""
    place = {}
    if face is not None:
        top, chin = face.landmarks[FOREHEAD_TOP, :2], face.landmarks[CHIN, :2]
        x, y = (float(v) for v in (top + chin) / 2)
        place = {"x": x, "y": y, "height": max(float(np.linalg.norm(top - chin)), 1e-6)}
    if before is None:
        return Look(_reason(face), **place)
    difference = np.abs(image[::4, ::4].astype(np.int16) - before[0][::4, ::4]).mean(-1)
    free = np.maximum(matte[::4, ::4], before[1][::4, ::4]) < _PERSON_ABOVE
    behind = float(difference[free].mean()) if free.sum() >= _LEAST_BEHIND else 0.0
    return Look(_reason(face), **place, changed=float(difference.mean()), behind=behind)


def _reason(face: Face | None) -> str:
    if face is None:
        return "no face"
    if face.second:
        return "a second face"
    return "turned away" if turn_deg(face.matrix) > MOST_TURN_DEG else ""


def turn_deg(matrix: Float64[np.ndarray, "4 4"]) -> float:
    """Angle between where the face looks and the way to the camera, degrees. matrix: of the landmark model."""
    forward, position = matrix[:3, 2], matrix[:3, 3]
    cosine = -forward @ position / max(float(np.linalg.norm(forward) * np.linalg.norm(position)), 1e-9)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def spikes(changed: np.ndarray, least: float = LEAST_SPIKE) -> np.ndarray:
    """Frames that differ from the one before far more than their neighbours do, and by more than `least`."""
    found = np.zeros(len(changed), bool)
    for i in np.flatnonzero(changed > least):
        neighbours = np.concatenate([changed[max(1, i - AROUND) : i], changed[i + 1 : i + 1 + AROUND]])
        found[i] = len(neighbours) > 0 and changed[i] > SPIKE * neighbours.max()
    return found


def _cut(before: Look, after: Look, spike: bool) -> bool:
    moved = float(np.hypot(after.x - before.x, after.y - before.y)) / before.height
    elsewhere = moved > MOST_MOTION or abs(after.height / before.height - 1) > MOST_GROWTH
    return elsewhere or after.changed > CUT_DIFFERENCE or after.behind > (SPIKE_BEHIND if spike else CUT_BEHIND)
