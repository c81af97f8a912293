"""A look at people in training: how near their test frames are, and pictures of truth, render, coverage and what moves."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fiag_dist.dist.heartbeat import alive
from fiag_dist.model.head import Act, Performance, act, film
from fiag_dist.monitoring.board import gif, png
from fiag_dist.stages import Stage, moving
from fiag_dist.training.step import Training
from fiag_dist.types import Shot

FRAMES = 4
"""Test frames of each person that are scored, evenly spread."""
PICTURED = 2
"""Of these are in the picture."""
FILM_FRAMES = 24
FILM_PX = 192
MOTION_MM = 4.0
"""Motion of this length is shown at full brightness (form `direct`)."""
COLUMNS = ("truth", "render", "coverage", "motion")


@dataclass(frozen=True, eq=False)
class Looks:
    """What one rank saw of its people."""

    scores: Mapping[str, float]
    pictures: Mapping[str, bytes]
    """PNG or GIF by tag."""


def look(training: Training, fps: int = 0) -> Looks:
    """Scores and pictures of this rank's share of the people that are watched; with `fps`, films of them, too."""
    scores, pictures = {}, {}
    for name in training.feed.watched(training.config.watched):
        score, shown = training.compare(name, training.feed.test_shots(name, FRAMES))
        scores[f"eval/psnr_db/{name}"] = score
        rows = [_row(training, name, *seen) for seen in shown[:PICTURED]]
        pictures[f"identities/{name}"] = png(np.concatenate([_heading(rows[0].shape[1]), *rows]))
        if fps:
            pictures[f"films/{name}"] = gif(_film(training, name), fps)
        alive()
    scores["memory/personal_mib"] = training.pool.bytes / 2**20
    return Looks(scores, pictures)


def _film(training: Training, name: str) -> list[UInt8[np.ndarray, "height width 3"]]:
    """The first test frames in a row, truth beside render."""
    _, shown = training.compare(name, training.feed.first_test_shots(name, FILM_FRAMES))
    frames = [np.concatenate([_bytes(shot.image), _bytes(image)], 1) for shot, _, image in shown]
    height = min(FILM_PX, len(frames[0]))
    return [cv2.resize(frame, (2 * height, height), interpolation=cv2.INTER_AREA) for frame in frames]


def _row(training: Training, name: str, shot: Shot, performance: Performance, image: Tensor) -> np.ndarray:
    """One frame in all columns [size, 4 size, 3]."""
    coverage = performance.alpha.expand(3, -1, -1)
    columns = (shot.image, image, coverage, _drives(training, name, shot))
    return np.concatenate([_bytes(column) for column in columns], 1)


@torch.no_grad()
def _drives(training: Training, name: str, shot: Shot) -> Float[Tensor, "3 size size"]:
    """Where speech (red) and expression (blue) have a say over a dim face: attention in the form of that name, else the length of the motion."""
    head = training.head
    if not moving(max(training.stage, Stage.MOTION), training.config):
        return torch.zeros_like(shot.image)
    head.eval()
    acted = act(head.person(shot.embedding), head.universal, training.pool[name], head.drive(shot))
    (rendered,) = film([_with_drives(training, acted)], [shot.camera], head.raster)
    head.train()
    red, blue = rendered.face.image[3:5].clamp(0, 1)
    dim = rendered.face.image[:3].mean(0) * 0.3
    return torch.stack([dim + red, dim, dim + blue]).clamp(0, 1)


def _with_drives(training: Training, acted: Act) -> Act:
    """The act with two numbers for each Gaussian that are drawn with it: how much speech and how much expression moves it."""
    motion = acted.motion
    assert motion is not None
    if motion.attention is None:
        upper_N1 = training.head.universal.upper(acted.person.face.means)
        length_N1 = motion.means.norm(dim=1, keepdim=True) * (1e3 / MOTION_MM)
        motion = replace(motion, attention=torch.cat([length_N1 * (1 - upper_N1), length_N1 * upper_N1], 1))
    return replace(acted, motion=motion)


def _heading(width: int) -> np.ndarray:
    """What the columns are [height, width, 3]."""
    strip = np.full((width // 24, width, 3), 255, np.uint8)
    for column, text in enumerate(COLUMNS):
        place = (column * width // len(COLUMNS) + 3, round(0.75 * len(strip)))
        cv2.putText(
            strip, text, place, cv2.FONT_HERSHEY_SIMPLEX, width / 1000, (0, 0, 0), max(1, width // 500), cv2.LINE_AA
        )
    return strip


def _bytes(image: Float[Tensor, "channels size size"]) -> UInt8[np.ndarray, "size size channels"]:
    return (image.detach().permute(1, 2, 0) * 255).round().byte().cpu().numpy()
