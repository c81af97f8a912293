"""What is trained when (model.md 4): tracked landmarks, warm-up, identity embedding, motion learning, fusion."""

from enum import IntEnum

from fiag_dist.config import TrainConfig

FIELD_GROUPS = ("means", "quats", "log_scales", "opacities", "sh_dc", "sh_rest")
FUSION_GROUPS = ("opacities", "sh_dc", "sh_rest")
"""All that still changes in the fusion stage: geometry and motion are frozen."""
MOST_HASTE = 4.0
"""By how much Gaussians' rates rise in a short run, at most: from about there on colours swing more than they settle."""


class Stage(IntEnum):
    """The five stages, in order."""

    LANDMARKS = 0
    """Motion networks alone learn from tracked landmarks; nothing is rendered."""
    WARM_UP = 1
    IDENTITY = 2
    MOTION = 3
    FUSION = 4


def total_steps(config: TrainConfig) -> int:
    """Optimiser steps of a whole run: landmark steps, then `config.steps` with images."""
    return config.stages.landmark_steps + config.steps


def progress(step: int, config: TrainConfig) -> float:
    """How far the part with images is, 0..1."""
    return min(max(step - config.stages.landmark_steps, 0) / max(config.steps, 1), 1.0)


def due(step: int, every: int) -> bool:
    """Whether it is time for what happens each so many steps; 0: never."""
    return every > 0 and step % every == 0


def stage_at(step: int, config: TrainConfig) -> Stage:
    """The stage of the step that comes after `step` finished ones."""
    if step < config.stages.landmark_steps:
        return Stage.LANDMARKS
    done = progress(step, config)
    ends = (config.stages.warm_up, config.stages.identity, config.stages.motion)
    return Stage(Stage.WARM_UP + sum(done >= end for end in ends))


def first_of_fusion(config: TrainConfig) -> int:
    """Steps after which the fusion stage begins."""
    return next(step for step in range(total_steps(config) + 1) if progress(step, config) >= config.stages.motion)


def moving(stage: Stage, config: TrainConfig) -> bool:
    """Whether heads move in this stage: from the first image when landmarks taught them how, else after warm-up."""
    return stage > Stage.WARM_UP or config.stages.landmark_steps > 0


def rates(step: int, config: TrainConfig, groups: list[str]) -> dict[str, float]:
    """Learning rate of each parameter group at this step; 0 freezes a group."""
    stage, done, optim = stage_at(step, config), progress(step, config), config.optim
    batch = config.frames_per_step**0.5  # rates grow with the square root of the batch
    net_decay = optim.decay**done
    named: dict[str, float] = {}
    for group in groups:
        owner, _, kind = group.partition("_")
        if group in FIELD_GROUPS:
            first, last = getattr(optim, group)
            first *= _haste(config)
            rate = first * (last / first) ** done if first else 0.0
            trains = group in FUSION_GROUPS if stage is Stage.FUSION else stage > Stage.LANDMARKS
        elif owner == "identity":
            rate = {"grids": optim.grids, "nets": optim.identity_nets}[kind] * net_decay
            trains = Stage.LANDMARKS < stage < Stage.FUSION
        elif owner == "universal":
            start = {"grids": optim.grids, "nets": optim.nets, "audio": optim.audio}[kind]
            rate = start * _universal_decay(done, config) * optim.universal
            trains = stage < Stage.FUSION
        else:
            rate = {"grids": optim.personal_grids, "nets": optim.personal_nets, "audio": optim.audio}[kind] * net_decay
            trains = stage < Stage.FUSION
        named[group] = rate * batch if trains else 0.0
    return named


def landmark_weight(step: int, config: TrainConfig) -> float:
    """Weight of the landmark term: constant to 30 % of the steps, then linear to a tenth."""
    done = progress(step, config)
    return config.loss.landmarks * (1 - 0.9 * max(0.0, (done - 0.3) / 0.7))


def sh_degree(step: int, config: TrainConfig) -> int:
    """How many degrees of the spherical harmonics take part above 0 in the step that comes after `step` finished ones."""
    every, most = config.stages.sh_every, config.model.field.sh_degree
    return min(max(step - config.stages.landmark_steps, 0) // every, most) if every else most


def learnt_degree(step: int, config: TrainConfig) -> int:
    """How many degrees took part in the last of `step` finished steps: of those above, IE-Net says what nobody has taught it."""
    return sh_degree(max(step - 1, 0), config)


def _haste(config: TrainConfig) -> float:
    """Gaussians' rates at the start against those that are configured."""
    return min(max(config.optim.paced_for / max(config.steps, 1), 1.0), MOST_HASTE)


def _universal_decay(done: float, config: TrainConfig) -> float:
    """UM-Net's rates against those at the start."""
    schedule = config.optim.universal_schedule
    if schedule == "pretraining":
        return 0.5 ** (1.5 * done) if done < 2 / 3 else 0.1**done
    if schedule == "adaptation":
        return 0.1 if done < config.stages.warm_up else 0.5**done
    return config.optim.decay**done


def prune_threshold(step: int, config: TrainConfig) -> float:
    """Opacity below which a Gaussian that no identity uses is removed."""
    low, high = config.density.prune_from, config.density.prune_to
    return low + (high - low) * progress(step, config)
