"""Whether shards, and this version, are what a checkpoint or an identity was trained on."""

from collections.abc import Mapping
from typing import Any

from fiag_dist.errors import CheckpointError
from fiag_dist.shards.manifest import Manifest
from fiag_dist.types import ACTION_UNITS, EXPRESSION_NAMES


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
