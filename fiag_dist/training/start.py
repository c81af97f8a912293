"""How a shared model begins: from packed clips, from a checkpoint, or as an adaptation from what a pretraining knows of everybody."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fiag_dist.config import ModelConfig, TrainConfig
from fiag_dist.errors import CheckpointError
from fiag_dist.model.field import PARAMETERS
from fiag_dist.model.head import Head
from fiag_dist.shards.manifest import Manifest
from fiag_dist.shards.reader import read_meta
from fiag_dist.storage import Storage
from fiag_dist.training import hearing
from fiag_dist.training.formats import check_channels
from fiag_dist.training.planting import look, plant
from fiag_dist.training.settings import refuse_nonsense


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
    plant(head, [look(storage, manifest, meta) for meta in metas], rng)
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
            said = getattr(own, name)  # of the degrees of colour that take part
            getattr(field, name)[tuple(map(slice, said.shape))] = said
    forget(head)


def forget(head: Head) -> None:
    """Makes IE-Net say nothing of anybody: all its offsets are 0, and everybody is the canonical field, until it learns again."""
    head.face_identity.restart()
    head.mouth_identity.restart()


def _empty(config: TrainConfig, id_dim: int, audio_dim: int, audio_window: int, rest: Tensor) -> Head:
    return Head(config.model, id_dim, audio_dim, audio_window, rest, config.encoder, config.raster, config.precision)
