"""A contact sheet of a packed clip: a look at it shows whether crop, landmarks, pose and masks are right."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from fiag_dist.ingest.rest import project
from fiag_dist.landmarks import FACE_OVAL, LEFT_EYE, LIPS_INNER, LIPS_OUTER, RIGHT_EYE
from fiag_dist.types import Frame, IdentityMeta, Label

COLOURS = {
    Label.TORSO: (60, 90, 220),
    Label.HAIR: (250, 190, 40),
    Label.FACE: (60, 200, 90),
    Label.LIPS: (230, 50, 60),
    Label.MOUTH: (230, 60, 220),
}
"""RGB of each class in the third row."""
_BEHIND = (255, 0, 255)
_CONTOURS = (FACE_OVAL, LIPS_OUTER, LIPS_INNER, RIGHT_EYE, LEFT_EYE)
_AXIS_M = 0.06


def contact_sheet(meta: IdentityMeta, frames: Sequence[Frame]) -> UInt8[np.ndarray, "height width 3"]:
    """One column a frame; rows: the crop; its landmarks, rest shape (yellow) and head axes; classes; the cut-out head; it over the plate."""
    columns = [
        np.concatenate([f.image, _tracked(meta, f), _classes(f), _cut_out(f, _BEHIND), _cut_out(f, meta.plate)])
        for f in frames
    ]
    return np.concatenate(columns, axis=1)


def _tracked(meta: IdentityMeta, frame: Frame) -> np.ndarray:
    scale = 2
    size = len(frame.image)
    picture = np.ascontiguousarray(cv2.resize(frame.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC))
    viewmat, K = frame.viewmat[None].astype(np.float64), frame.K.astype(np.float64)
    rest = project(meta.rest_landmarks[None], viewmat, K)[0] * scale
    points = project(frame.landmarks[None].astype(np.float32), viewmat, K)[0] * scale
    for contour in _CONTOURS:
        cv2.polylines(picture, [np.round(rest[list(contour)]).astype(np.int32)], True, (255, 230, 0), 1, cv2.LINE_AA)
    for x, y in points:
        cv2.circle(picture, (round(x), round(y)), 1, (0, 255, 120), -1)
    tips = (
        project(np.concatenate([np.zeros((1, 3)), np.eye(3) * _AXIS_M])[None].astype(np.float32), viewmat, K)[0] * scale
    )
    for tip, colour in zip(tips[1:], ((255, 0, 0), (0, 255, 0), (0, 80, 255)), strict=True):
        start, end = (tuple(int(v) for v in np.round(point)) for point in (tips[0], tip))
        cv2.line(picture, start, end, colour, 2, cv2.LINE_AA)
    x0, y0, x1, y1 = (v * scale for v in frame.lips_rect)
    cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), (255, 255, 255), 1)
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)


def _classes(frame: Frame) -> np.ndarray:
    tint = np.zeros_like(frame.image)
    for label, colour in COLOURS.items():
        tint[frame.labels == label] = colour
    blended = (frame.image * 0.5 + tint * 0.5).astype(np.uint8)
    return np.where((frame.labels > Label.BACKGROUND)[..., None], blended, frame.image)


def _cut_out(frame: Frame, behind: UInt8[np.ndarray, "size size 3"] | tuple[int, int, int]) -> np.ndarray:
    alpha = frame.alpha[..., None] / 255
    return np.round(frame.image * alpha + np.asarray(behind) * (1 - alpha)).astype(np.uint8)
