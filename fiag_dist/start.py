"""How a shared model begins: the first Gaussians and the listener from packed clips, or everything from a checkpoint."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fiag_dist import hearing
from fiag_dist.config import ModelConfig, TrainConfig
from fiag_dist.errors import CheckpointError, ConfigError
from fiag_dist.feed import shot_of
from fiag_dist.landmarks import LIPS_INNER
from fiag_dist.model.field import PARAMETERS, GaussianField, cube_points, spacing
from fiag_dist.model.head import Head
from fiag_dist.model.surface import FaceSurface
from fiag_dist.shards.manifest import Manifest
from fiag_dist.shards.reader import FrameReader, read_meta
from fiag_dist.stages import FIELD_GROUPS
from fiag_dist.storage import Storage
from fiag_dist.types import ACTION_UNITS, BOUND_M, EXPRESSION_NAMES, SH_DC, IdentityMeta, Label, Shot

LEAST = {"steps": 0, "frames_per_step": 1, "seed": 0, "keep": 0, "keep_every": 0, "watched": 0, "refused_at_most": 0}
"""What numbers of `train` may be at least."""
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


def fresh_head(
    config: TrainConfig,
    storage: Storage,
    manifest: Manifest,
    names: Sequence[str],
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Head:
    """A head whose field, listener and mean face come from the training frames of `names`. The same arguments give the same head."""
    refuse_nonsense(config)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    metas = [read_meta(storage, manifest.entry(name)) for name in names]
    rest = torch.from_numpy(np.mean([m.rest_landmarks for m in metas], 0).astype(np.float32))
    head = _empty(config, manifest.id_embedding.dim, manifest.audio.dim, manifest.audio.window, rest)
    hearing.fit(head.universal.listener, storage, manifest, metas, rng)
    shots = [_look(storage, manifest, meta) for meta in metas]
    _plant(head, rest.numpy(), shots, rng)
    return head.to(device)


def load_head(config: TrainConfig, formats: Mapping[str, Any], shared: Mapping[str, Tensor], averaged: bool) -> Head:
    """The head of a checkpoint's shared tensors; `averaged` takes the moving average of IE-Net and UM-Net where there is one.

    The fields of `config` have the checkpoint's capacity, or more.

    formats: as a checkpoint's info has them. Raises CheckpointError when `config` describes another model.
    """
    refuse_nonsense(config)
    check_channels(formats)
    rest = shared["universal.rest_landmarks"]
    head = _empty(config, formats["id_dim"], formats["audio_dim"], formats["audio_window"], rest)
    state = {name: value for name, value in shared.items() if not name.startswith("ema.")}
    if averaged:
        state |= {name.removeprefix("ema."): value for name, value in shared.items() if name.startswith("ema.")}
    for name, own in head.state_dict().items():
        if name not in state:
            continue
        stored = state[name]
        if "_field." in name and own.ndim and len(own) > len(stored):  # rows for what it has yet to learn
            state[name] = torch.cat([stored, stored.new_zeros(len(own) - len(stored), *stored.shape[1:])])
        if state[name].shape != own.shape:
            raise CheckpointError(
                f"checkpoint: {name} is {list(stored.shape)} in it, {list(own.shape)} in the model that train.model describes; "
                "use the config.yaml of the run that it is from"
            )
    head.load_state_dict(state, strict=False)
    return head


def check_channels(formats: Mapping[str, Any], where: str = "") -> None:
    """Raises CheckpointError unless a checkpoint was trained with EXPRESSION_NAMES; earlier ones had no gaze, and named no channels."""
    known = tuple(formats.get("expression", ACTION_UNITS))
    if known != EXPRESSION_NAMES:
        raise CheckpointError(
            f"{f'checkpoint {where}'.rstrip()}: trained with the expression channels {', '.join(known)}, this fiag_dist drives faces by "
            f"{', '.join(EXPRESSION_NAMES)}; pretrain again with it"
        )


def check_formats(manifest: Manifest, formats: Mapping[str, Any], who: str) -> None:
    """Raises CheckpointError unless shards hold what `who`, a checkpoint or an identity, was trained on, as far as `formats` says it."""
    found = {
        "size": manifest.size,
        "fps": manifest.fps,
        "extractor": manifest.audio.extractor,
        "audio_dim": manifest.audio.dim,
        "audio_window": manifest.audio.window,
        "id_model": manifest.id_embedding.model,
        "id_dim": manifest.id_embedding.dim,
    }
    for key, value in found.items():
        if formats.get(key, value) != value:
            raise CheckpointError(
                f"{who}: trained with {key} {formats[key]!r}, the shards have {value!r}; pack the clips with its settings"
            )


def roomier(config: ModelConfig, factor: float) -> ModelConfig:
    """The same model, whose fields may become larger by `factor`."""
    face, mouth = (round(factor * capacity) for capacity in (config.field.capacity_face, config.field.capacity_mouth))
    return replace(config, field=replace(config.field, capacity_face=face, capacity_mouth=mouth))


def take_field(head: Head, source: Head) -> None:
    """Gives a head the Gaussians and the IE-Nets of another one of the same shape, and leaves it its motion."""
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("universal.")}
    head.load_state_dict(state, strict=False)


@torch.no_grad()
def bake_in(head: Head, embedding: Float[Tensor, " id_dim"]) -> None:
    """Makes what IE-Net says of one person part of the Gaussians, from where IE-Net starts anew with offsets of 0: the head looks the same.

    Offsets of many people differ from one millimetre to the next: a Gaussian that goes elsewhere, or a child beside its parent, would get other ones. And
    features of places that tell many people apart let one person be learnt by heart (docs/decisions.md, 39).
    """
    person = head.person(embedding)
    for field, own in ((head.face_field, person.face), (head.mouth_field, person.mouth)):
        for name in PARAMETERS:
            getattr(field, name)[: len(own)] = getattr(own, name)
    forget(head)


def forget(head: Head) -> None:
    """Makes IE-Net say nothing of anybody: all its offsets are 0, and everybody is the canonical field, until it learns again."""
    head.face_identity.restart()
    head.mouth_identity.restart()


@torch.no_grad()
def settle(head: Head, storage: Storage, manifest: Manifest, meta: IdentityMeta, seed: int = 0) -> None:
    """Brings Gaussians that one person is baked into onto this person before the first step, as some of `meta`'s training frames show.

    Face Gaussians beside the head, and those that only others show, go into its hull as first ones, those of the mouth that strayed go behind the lips;
    all of both branches take the colours that the frames show there.
    """
    rng = np.random.default_rng(seed)
    shots = [_look(storage, manifest, meta)]
    face, mouth = head.face_field, head.mouth_field
    rows = np.flatnonzero(_unseen(face) | ~_inside(_points(face), shots))
    _strew(face, rows, _hull(len(rows), shots, rng))
    middle = _middle_of_mouth(head.universal.rest_landmarks.cpu().numpy())
    rows = np.flatnonzero((np.abs(_points(mouth) - middle) > MOUTH_REACH * MOUTH_HALF_M).any(1))
    _strew(mouth, rows, _in_mouth(len(rows), middle, rng))
    shown: list[tuple[GaussianField, Label | None]] = [(face, None)]
    if any(
        bool((shot.labels == Label.MOUTH).any()) for shot in shots[0]
    ):  # a mouth that nobody saw stays as others' are
        shown.append((mouth, Label.MOUTH))
    for field, label in shown:
        colors = torch.from_numpy(_colors(_points(field), shots, label)).to(field.sh_dc)
        field.sh_dc[: len(field)] = (colors - 0.5) / SH_DC


def refuse_below(least: Mapping[str, int], settings: Any, prefix: str = "") -> None:
    """Raises ConfigError for a number that is below what it can be. least: by name."""
    for name, number in least.items():
        if getattr(settings, name) < number:
            raise ConfigError(f"{prefix}{name} is {getattr(settings, name)}; give {number} or more")


def refuse_nonsense(config: TrainConfig) -> None:
    """Raises ConfigError when a number is below what it can be, or when settings, each fine by itself, make no sense together."""
    refuse_below(LEAST, config, "train.")
    identity, motion, loss, stages = config.model.identity, config.model.motion, config.loss, config.stages
    if not identity.enabled and loss.triplet:
        raise ConfigError(
            f"train.loss.triplet is {loss.triplet}, but train.model.identity.enabled is False: L_t compares what IE-Net says; set train.loss.triplet to 0"
        )
    if not identity.enabled and identity.embedding == "table":
        raise ConfigError(
            "train.model.identity.embedding is table, but identity.enabled is False: nothing reads the learnt embeddings; set embedding to recogniser"
        )
    if not motion.personal and loss.contrast:
        raise ConfigError(
            f"train.loss.contrast is {loss.contrast}, but train.model.motion.personal is False: L_c compares IM-Nets; set train.loss.contrast to 0"
        )
    if motion.hook_k_most and not 0 < motion.hook_k <= motion.hook_k_most:
        raise ConfigError(
            f"train.model.motion.hook_k_most is {motion.hook_k_most} and hook_k {motion.hook_k}: k is drawn between them; "
            "set hook_k to 1 or more and hook_k_most to at least that, or to 0"
        )
    for branch in ("face", "mouth"):
        num, capacity = (getattr(config.model.field, f"{what}_{branch}") for what in ("num", "capacity"))
        if num > capacity:
            raise ConfigError(
                f"train.model.field.num_{branch} is {num} and capacity_{branch} {capacity}: more Gaussians to begin with than there is room for; "
                f"set capacity_{branch} to {num} or more"
            )
    for name in FIELD_GROUPS:
        first, last = getattr(config.optim, name)
        if not (min(first, last) > 0 or first == last == 0):
            raise ConfigError(
                f"train.optim.{name} goes from {first} to {last}: its way is log-linear, which neither 0 nor less is part of; "
                "give two rates above 0, or 0 0 to freeze it"
            )
    if not 0 <= stages.warm_up <= stages.identity <= stages.motion <= 1:
        raise ConfigError(
            f"train.stages ends at warm_up {stages.warm_up}, identity {stages.identity}, motion {stages.motion}: "
            "they are shares of the steps that follow each other; let them rise within 0 .. 1"
        )


def _empty(config: TrainConfig, id_dim: int, audio_dim: int, audio_window: int, rest: Tensor) -> Head:
    return Head(config.model, id_dim, audio_dim, audio_window, rest, config.encoder, config.raster, config.precision)


def _look(storage: Storage, manifest: Manifest, meta: IdentityMeta) -> list[Shot]:
    reader = FrameReader(storage, manifest.entry(meta.name))
    chosen = reader.train[np.linspace(0, len(reader.train) - 1, FRAMES_LOOKED_AT).round().astype(int)]
    return [shot_of(reader.frame(int(p)), meta) for p in chosen]


def _plant(head: Head, rest: np.ndarray, shots: Sequence[Sequence[Shot]], rng: np.random.Generator) -> None:
    """Places and colours the first Gaussians of both branches (model.md 2.2)."""
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
