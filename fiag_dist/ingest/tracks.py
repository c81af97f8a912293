"""Dense optical-flow tracks of rigid parts of the head (hair, forehead, nose): what landmarks alone don't hold still enough for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

from fiag_dist.ingest.masks import head_mask
from fiag_dist.landmarks import (
    ALIGNED,
    CHIN,
    FOREHEAD_TOP,
    LEFT_BROW,
    LEFT_EYE,
    NOSE_TIP,
    NUM_VERTICES,
    RIGHT_BROW,
    RIGHT_EYE,
)

POSE_SIZE = 256
"""Poses are solved on crops of this side whatever the sample's size; all pixel settings here and in pose.py mean it."""
KEYFRAME_STEP, REACH = 50, 100
"""A keyframe every so many frames; its points are followed this far to both sides, so that the cost grows with the clip's length only."""
ANCHOR_STEP = 10
"""The first keyframe is looked for in every so many frames beyond that."""
GRID_PX, MAX_POINTS = 6, 160
FLOW_TOLERANCE_PX = 0.5
"""Forward-backward error at which a track's weight has fallen to 1/e."""

_MOVING = (RIGHT_EYE, LEFT_EYE, RIGHT_BROW, LEFT_BROW)
_MIN_TEXTURE = 3.0


@runtime_checkable
class Frames(Protocol):
    """Pictures by frame number: an array of them, or a file."""

    def __getitem__(self, index: int, /) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Tracks:
    """Points of one keyframe followed through the frames first .. first + len(observed) - 1."""

    keyframe: int
    first: int
    points: Float64[np.ndarray, "points 2"]
    """In the keyframe, pixels."""
    observed: Float[np.ndarray, "frames points 2"]
    weights: Float[np.ndarray, "frames points"]
    """0..1, by forward-backward error; up to ANCHOR_STEP in a frame that stands for so many."""
    on_face: Bool[np.ndarray, " points"]
    """Whether a point lies inside the outline of the face; the others are hair, ears and neck, which move by themselves."""

    @property
    def frames(self) -> range:
        """Through which the points were followed."""
        return range(self.first, self.first + len(self.observed))


def follow(
    grey: Iterable[UInt8[np.ndarray, "256 256"]],
    landmarks: Float32[np.ndarray, "frames 478 coordinates"],
    mattes: Frames,
) -> Iterator[Tracks]:
    """Tracks of each keyframe, in order, as soon as its frames have come: 2 REACH of them are held, however long the clip.

    Between them, what of the first keyframe is seen again in every ANCHOR_STEP-th frame far from it: without that, poses would drift.
    grey: the frames in order; landmarks: in pixels of them; mattes[k]: the person's matte of frame k, 0..255.
    """
    # DIS keeps scratch buffers, so one object serves all pairs.
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    num_frames, anchor = len(landmarks), None
    waiting = deque(range(min(KEYFRAME_STEP, num_frames) // 2, num_frames, KEYFRAME_STEP))
    held: dict[int, np.ndarray] = {}
    for i, frame in enumerate(grey):
        held[i] = frame
        held.pop(i - 2 * REACH, None)
        while waiting and i == min(waiting[0] + REACH, num_frames) - 1:
            number = waiting.popleft()
            keyframe = _cut_out(held[number], landmarks[number], mattes[number], number)
            if keyframe is not None:
                anchor = anchor or keyframe
                around = range(max(0, number - REACH), min(num_frames, number + REACH))
                yield _followed(flow, keyframe, held, landmarks, around)
        if anchor and i >= 2 * REACH and i % ANCHOR_STEP == 0:
            again = _followed(flow, anchor, held, landmarks, range(i, i + 1))
            yield replace(again, weights=again.weights * ANCHOR_STEP)


@dataclass(frozen=True, eq=False)
class _Keyframe:
    """The head of a frame, cut out, and points on it."""

    number: int
    grey: UInt8[np.ndarray, "height width"]
    corner: np.ndarray
    """Centre of the cut-out's first pixel in the frame, x, y; pixel centres lie at +0.5 in our coordinates, at whole numbers in OpenCV's."""
    points: np.ndarray
    """Columns and rows of the cut-out [N 2]."""
    on_face: np.ndarray
    landmarks: np.ndarray
    """Of the frame [478 2]."""


def _cut_out(grey: np.ndarray, landmarks: np.ndarray, matte: np.ndarray, number: int) -> _Keyframe | None:
    """None where too little of a head can be followed."""
    head = (head_mask(landmarks, POSE_SIZE) * (matte > 127)) > 0.5
    if not head.any():
        return None
    rows, columns = np.nonzero(head)
    x0, y0 = max(columns.min() - 12, 0), max(rows.min() - 12, 0)
    x1, y1 = min(columns.max() + 13, POSE_SIZE), min(rows.max() + 13, POSE_SIZE)
    base = np.ascontiguousarray(grey[y0:y1, x0:x1])
    points = _choose_points(base, head[y0:y1, x0:x1], landmarks[:, :2] - (x0, y0))
    if len(points) < 8:
        return None
    outline = cv2.convexHull(np.round(landmarks[:NUM_VERTICES, :2] - (x0, y0)).astype(np.int32))
    face = cv2.fillConvexPoly(np.zeros(base.shape, np.uint8), outline, 1)
    on_face = face[points[:, 1], points[:, 0]] > 0
    return _Keyframe(number, base, np.array([x0, y0]) + 0.5, points, on_face, landmarks[:, :2])


def _followed(
    flow: cv2.DISOpticalFlow, keyframe: _Keyframe, grey: dict[int, np.ndarray], landmarks: np.ndarray, frames: range
) -> Tracks:
    """The keyframe's points in these frames."""
    base, points, corner = keyframe.grey, keyframe.points, keyframe.corner
    column, row = points.T
    observed = np.zeros((len(frames), len(points), 2), np.float32)
    weights = np.zeros((len(frames), len(points)), np.float32)
    for i, t in enumerate(frames):
        if t == keyframe.number:
            observed[i], weights[i] = points + corner, 1.0
            continue
        warp, _ = cv2.estimateAffinePartial2D(keyframe.landmarks[ALIGNED, :], landmarks[t, ALIGNED, :2])
        if warp is None:
            continue
        shift = warp[:, :2] @ corner + warp[:, 2] - 0.5
        warped = cv2.warpAffine(
            grey[t],
            np.column_stack([warp[:, :2], shift]),
            (base.shape[1], base.shape[0]),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        there = flow.calc(base, warped, np.zeros((*base.shape, 2), np.float32))
        back = flow.calc(warped, base, np.zeros((*base.shape, 2), np.float32))
        ends = points + there[row, column]
        nearest = np.clip(ends.round().astype(int), 0, (base.shape[1] - 1, base.shape[0] - 1))
        error = np.linalg.norm(there[row, column] + back[nearest[:, 1], nearest[:, 0]], axis=1)
        observed[i] = (ends + corner) @ warp[:, :2].T + warp[:, 2]
        weights[i] = np.exp(-np.square(error / FLOW_TOLERANCE_PX))
    return Tracks(keyframe.number, frames.start, points + corner, observed, weights, keyframe.on_face)


def _choose_points(base: np.ndarray, head: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Textured grid points on the head above the nose tip, without eyes and brows: whole-number columns and rows, at most MAX_POINTS."""
    kernel = np.ones((5, 5), np.uint8)
    rigid = cv2.erode(head.astype(np.uint8), kernel)
    for part in _MOVING:
        hole = cv2.fillPoly(np.zeros_like(rigid), [np.round(landmarks[list(part)]).astype(np.int32)], 1)
        rigid[cv2.dilate(hole, kernel) > 0] = 0
    up = landmarks[FOREHEAD_TOP] - landmarks[CHIN]
    height = np.linalg.norm(up)
    texture = cv2.GaussianBlur(np.abs(cv2.Laplacian(base, cv2.CV_32F)), (9, 9), 0)
    rows, columns = (index.ravel() for index in np.mgrid[2 : base.shape[0] : GRID_PX, 2 : base.shape[1] : GRID_PX])
    above = (np.column_stack([columns, rows]) - landmarks[NOSE_TIP]) @ (up / height) > -0.05 * height
    good = np.flatnonzero(above & (rigid[rows, columns] > 0) & (texture[rows, columns] > _MIN_TEXTURE))
    if len(good) > MAX_POINTS:
        good = good[np.linspace(0, len(good) - 1, MAX_POINTS).round().astype(int)]
    return np.column_stack([columns[good], rows[good]])
