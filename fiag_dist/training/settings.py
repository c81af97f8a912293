"""Settings of a training that can't be meant are refused before anything starts."""

from collections.abc import Mapping
from typing import Any

from fiag_dist.config import TrainConfig
from fiag_dist.errors import ConfigError
from fiag_dist.stages import FIELD_GROUPS

LEAST = {"steps": 0, "frames_per_step": 1, "seed": 0, "keep": 0, "keep_every": 0, "watched": 0, "refused_at_most": 0}
"""What numbers of `train` may be at least."""


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
