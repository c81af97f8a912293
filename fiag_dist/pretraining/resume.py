"""What a pretraining says of itself in its checkpoints, and with what it may go on from one."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fiag_dist import __version__
from fiag_dist.config import PretrainConfig
from fiag_dist.configfile import changes, to_dict
from fiag_dist.dist.checkpoint import Checkpoint
from fiag_dist.errors import CheckpointError
from fiag_dist.shards.manifest import Manifest
from fiag_dist.stages import total_steps
from fiag_dist.training.formats import check_formats

BEGINS_WITH = (
    "init_identities",
    "train.model.field.init",
    "train.model.field.num_face",
    "train.model.field.num_mouth",
    "train.model.identity.grid.init",
    "train.model.motion.universal_grid.init",
    "train.model.motion.personal_grid.init",
    "train.model.motion.mouth_grid.init",
    "train.model.motion.audio.silence",
)
"""Settings that only a run's first step asks for."""


def info(
    config: PretrainConfig, manifest: Manifest, people: Collection[str], before: Mapping[str, Any]
) -> dict[str, Any]:
    """What checkpoints say of the run. before: what the one says that it goes on from.

    `footage` is the SHA-256 of the shards that each person was learnt from, and of each, joined by +, where they were packed anew on the way.
    """
    known = before.get("footage", {})
    return {
        "config": to_dict(config),
        "version": __version__,
        "footage": {name: _footage(known.get(name, ""), manifest.entry(name).sha256) for name in people},
        "formats": {
            "id_dim": manifest.id_embedding.dim,
            "expression": manifest.expression,
            "id_model": manifest.id_embedding.model,
            "audio_dim": manifest.audio.dim,
            "audio_window": manifest.audio.window,
            "extractor": manifest.audio.extractor,
            "size": manifest.size,
            "fps": manifest.fps,
        },
    }


def check(stored: Checkpoint, config: PretrainConfig, manifest: Manifest, people: Collection[str]) -> list[str]:
    """What the user should know of how a run goes on, a line each. Raises CheckpointError where it can't.

    A run goes on with the people that it began with, or with some of them if these are named: who came later would have no part in what is learnt already,
    who is left out is lost with the last checkpoint that knew them, and shards may lack somebody only while they are packed anew.
    """
    run = stored.storage.url
    check_formats(manifest, stored.info["formats"], f"run {run}")
    new = sorted(name for name in people if name not in stored.identities)
    if new:
        raise CheckpointError(
            f"{run} was begun without {_some(new)}; go on without them (--identities), give another --name, or adapt them to it: fiag-dist adapt"
        )
    if stored.step >= total_steps(config.train):
        return []  # nothing more is trained
    gone = sorted(name for name in stored.identities if name not in people)
    if gone and not config.identities:
        raise CheckpointError(
            f"{run} was begun with {_some(gone)}, not in {config.data} now; wait until they are packed, pack them again, "
            "or go on without them by naming the others: --identities NAME ..."
        )
    found = []
    settings = _other_settings(stored.info["config"], config, run)
    if settings:
        found.append(f"{run}: goes on with other settings: {settings}")
    known = stored.info.get("footage", {})
    anew = sorted(name for name in people if known.get(name) not in (None, manifest.entry(name).sha256))
    if anew:
        found.append(
            f"{run}: {config.data} holds other footage of {_some(anew)}, or packed otherwise, than was learnt from until now: "
            "some of their test frames may have been trained on"
        )
    return found


def _footage(known: str, now: str) -> str:
    return known if now in known.split("+") else f"{known}+{now}".lstrip("+")


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:6])}{' ...' if len(names) > 6 else ''}"


def _other_settings(before: dict, config: PretrainConfig, run: str) -> str:
    """The settings that are not as they were, in words. Raises CheckpointError where a run can't go on with them."""
    found = {
        name: f"{name} {now}, before {old}"
        for name, (old, now) in changes(before, to_dict(config)).items()
        if name not in ("data", "runs", "name")  # where things lie
    }
    late = [text for name, text in found.items() if name in BEGINS_WITH]
    if late:
        raise CheckpointError(
            f"{run}: {'; '.join(late)}: only a run's first step asks for that; give another --name, or go on with the run's config.yaml"
        )
    return "; ".join(found.values())
