"""Where Gaussians go before the first step: onto the face, into the hull of the head, behind the lips, in the colours that frames show there."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from fiag_dist.landmarks import LIPS_INNER
from fiag_dist.model.field import GaussianField, cube_points, spacing
from fiag_dist.model.head import Head
from fiag_dist.model.surface import FaceSurface
from fiag_dist.shards.manifest import Manifest
from fiag_dist.shards.reader import FrameReader
from fiag_dist.storage import Storage
from fiag_dist.training.feed import shot_of
from fiag_dist.types import BOUND_M, SH_DC, IdentityMeta, Label, Shot

FRAMES_LOOKED_AT = 6
"""Frames of each identity that place and colour the first Gaussians."""
SURFACE_SHARE = 0.55
FIRST_OPACITY = 0.3
UNSEEN = 0.05
"""Opacity below which a shared Gaussian is somebody else's."""
MOUTH_HALF_M = np.array([0.022, 0.010, 0.012])
"""Half the box behind the lips in which the mouth's first Gaussians lie, metres."""
MOUTH_REACH = np.array([1.4, 3.0, 4.0])
"""A Gaussian of the mouth farther from the middle of that box than so many halves has strayed: beside a cheek it shows, pale."""


def look(storage: Storage, manifest: Manifest, meta: IdentityMeta) -> list[Shot]:
    """FRAMES_LOOKED_AT training frames of an identity, spread over all that it has."""
    reader = FrameReader(storage, manifest.entry(meta.name))
    chosen = reader.train[np.linspace(0, len(reader.train) - 1, FRAMES_LOOKED_AT).round().astype(int)]
    return [shot_of(reader.frame(int(p)), meta) for p in chosen]


def plant(head: Head, shots: Sequence[Sequence[Shot]], rng: np.random.Generator) -> None:
    """Places and colours the first Gaussians of both branches (model.md 2.2). shots: what some frames of each identity show (`look`)."""
    rest = head.universal.rest_landmarks.cpu().numpy()
    config = head.config.field
    if config.init == "cube":
        face = cube_points(config.num_face, rng)
        mouth = cube_points(config.num_mouth, rng, side_m=0.1, center_y_m=-0.05)
        head.face_field.fill(face, np.full((len(face), 3), 0.5), opacity=0.1)
        head.mouth_field.fill(mouth, np.full((len(mouth), 3), 0.5), opacity=0.1)
        return
    on_surface = int(config.num_face * SURFACE_SHARE)
    face = np.concatenate([FaceSurface(rest).sample(on_surface, rng), _hull(config.num_face - on_surface, shots, rng)])
    head.face_field.fill(face, _colors(face, shots, None), opacity=FIRST_OPACITY)
    mouth = _in_mouth(config.num_mouth, _middle_of_mouth(rest), rng)
    head.mouth_field.fill(mouth, _colors(mouth, shots, Label.MOUTH), opacity=FIRST_OPACITY)


@torch.no_grad()
def settle(head: Head, storage: Storage, manifest: Manifest, meta: IdentityMeta, seed: int = 0) -> None:
    """Brings Gaussians that one person is baked into onto this person before the first step, as some of `meta`'s training frames show.

    Face Gaussians beside the head, and those that only others show, go into its hull as first ones, those of the mouth that strayed go behind the lips;
    all of both branches take the colours that the frames show there.
    """
    rng = np.random.default_rng(seed)
    shots = [look(storage, manifest, meta)]
    face, mouth = head.face_field, head.mouth_field
    rows = np.flatnonzero(_unseen(face) | ~_inside(_points(face), shots))
    _strew(face, rows, _hull(len(rows), shots, rng))
    middle = _middle_of_mouth(head.universal.rest_landmarks.cpu().numpy())
    rows = np.flatnonzero((np.abs(_points(mouth) - middle) > MOUTH_REACH * MOUTH_HALF_M).any(1))
    _strew(mouth, rows, _in_mouth(len(rows), middle, rng))
    shown: list[tuple[GaussianField, Label | None]] = [(face, None)]
    if any(bool((shot.labels == Label.MOUTH).any()) for shot in shots[0]):  # else it stays as others' are
        shown.append((mouth, Label.MOUTH))
    for field, label in shown:
        colors = torch.from_numpy(_colors(_points(field), shots, label)).to(field.sh_dc)
        field.sh_dc[: len(field)] = (colors - 0.5) / SH_DC


def _middle_of_mouth(rest: np.ndarray) -> np.ndarray:
    """Of the box in which the mouth's first Gaussians lie; rest: [478, 3]."""
    return rest[list(LIPS_INNER)].mean(0) - np.array([0, 0, MOUTH_HALF_M[2]])


def _in_mouth(num: int, middle: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return middle + (rng.random((num, 3)) * 2 - 1) * MOUTH_HALF_M


def _points(field: GaussianField) -> np.ndarray:
    return field.means[: len(field)].double().cpu().numpy()


def _unseen(field: GaussianField) -> np.ndarray:
    return torch.sigmoid(field.opacities[: len(field)]).cpu().numpy() < UNSEEN


def _strew(field: GaussianField, rows: np.ndarray, places: np.ndarray) -> None:
    """Makes these Gaussians first ones, at these places."""
    if not len(rows):
        return
    device, points = field.means.device, _points(field)
    points[rows] = places
    where = torch.from_numpy(rows).to(device)
    sizes = torch.from_numpy(np.log(spacing(points))[rows]).float().to(device)
    field.means[where] = torch.from_numpy(places).float().to(device)
    field.log_scales[where] = sizes[:, None].expand(-1, 3)
    field.quats[where] = torch.tensor([1.0, 0, 0, 0], device=device)
    field.opacities[where] = math.log(FIRST_OPACITY / (1 - FIRST_OPACITY))
    field.sh_rest[where] = 0.0


def _hull(num: int, shots: Sequence[Sequence[Shot]], rng: np.random.Generator) -> np.ndarray:
    """Points that lie within the head masks of at least half of the identities, in all looked-at frames of each: [num, 3]."""
    found = [np.zeros((0, 3))]
    while sum(map(len, found)) < num:
        points = (rng.random((20000, 3)) * 2 - 1) * np.array([0.13, BOUND_M, 0.10])
        found.append(points[_inside(points, shots)])
        if not len(found[-1]):
            return cube_points(num, rng)
    return np.concatenate(found)[:num]


def _inside(points: np.ndarray, shots: Sequence[Sequence[Shot]]) -> Bool[np.ndarray, " num"]:
    """Which points lie within the head masks of at least half of the identities, in all looked-at frames of each."""
    heads = [np.all([_sample(s.alpha, points, s)[:, 0] > 0.5 for s in person], 0) for person in shots]
    return np.mean(heads, 0) >= 0.5


def _colors(points: np.ndarray, shots: Sequence[Sequence[Shot]], label: Label | None) -> np.ndarray:
    """Mean colour at each point over all looked-at frames where `label` (None: the head) is seen there; grey where it never is."""
    total, weight = np.zeros((len(points), 3)), np.zeros((len(points), 1))
    for shot in (s for person in shots for s in person):
        mask = shot.alpha if label is None else (shot.labels == label)[None].float()
        seen = _sample(mask, points, shot)
        total += _sample(shot.image, points, shot) * seen
        weight += seen
    mean = total.sum(0) / max(float(weight.sum()), 1e-6) if weight.sum() else np.full(3, 0.5)
    return np.where(weight > 0, total / np.maximum(weight, 1e-6), mean)


def _sample(image: Tensor, points: np.ndarray, shot: Shot) -> np.ndarray:
    """Values [N, channels] of the pixels that points fall on."""
    size = image.shape[-1]
    pixels = shot.camera.project(torch.from_numpy(points).float()).long().clamp(0, size - 1)
    return image[:, pixels[:, 1], pixels[:, 0]].T.numpy()
