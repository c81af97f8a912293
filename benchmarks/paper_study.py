"""What an experiment of the paper is made with: who is taught and who is tested, with how much of what, and which parts are left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from paper_cells import Lab, Numbers, Settings, people_of

from fiag_dist.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is asked of all experiments."""

    lab: Lab
    taught: tuple[str, ...]
    """Who is pretrained on."""
    tested: tuple[str, ...]
    """Who is adapted to, and was never pretrained on."""
    seconds: float
    seeds: int
    extractors: tuple[str, ...]
    prior_steps: tuple[int, ...]

    def reconstructed(self, seed: int, variant: Settings | None = None, adapting: Settings | None = None) -> Numbers:
        """Means over the people tested, adapted from a pretraining of this variant with some seconds of each."""
        run = self.lab.pretrained(self.lab.shards(), self.taught, seed, variant)["run"]
        return self.adapted(self.lab.shards(self.seconds), run, seed, adapting)

    def adapted(self, data: str, run: str, seed: int, settings: Settings | None = None) -> Numbers:
        """Means over the people tested, adapted from a run, or from scratch when there is none."""
        return means([self.lab.adapted(data, name, run, seed, settings) for name in self.tested])

    def made(self, adaptation: str) -> str:
        """Who was pretrained on and who was tested, and in how many steps. adaptation: how many of them are those of adaptation."""
        plan = self.lab.plan
        people = f"{len(self.taught)} pretrained on, tested: {', '.join(self.tested)}"
        return f"{people}. {plan.pretrain_steps} steps of pretraining, {adaptation} ({plan.pretrain_config}, {plan.adapt_config})"

    def made_together(self) -> str:
        """The same where everybody is pretrained on and tested, and nobody adapted."""
        plan, num = self.lab.plan, len(self.taught) + len(self.tested)
        return f"{num} pretrained on and tested, none adapted. {plan.pretrain_steps} steps of pretraining ({plan.pretrain_config})"

    def over_seeds(self, rows: Mapping[str, Callable[[int], Numbers]]) -> dict[str, list[Numbers]]:
        """Every row with every seed, all rows of one seed before those of the next."""
        found: dict[str, list[Numbers]] = {name: [] for name in rows}
        for seed in range(self.seeds):
            for name, make in rows.items():
                found[name].append(make(seed))
        return found


def parts(personal: bool = True, hook: bool = True, triplet: bool = True, contrast: bool = True) -> Settings:
    """A pretraining with some of its parts only. L_c needs IM-Nets."""
    motion = {} if hook else {"hook_k": 0}
    motion |= {} if personal else {"personal": False}
    loss = {} if triplet else {"triplet": 0.0}
    loss |= {} if contrast and personal else {"contrast": 0.0}
    return {"train": {"model": {"motion": motion}, "loss": loss}}


WITHOUT_IDENTITY: Settings = {"train": {"model": {"identity": {"enabled": False}}, "loss": {"triplet": 0.0}}}
CUBE: Settings = {"train": {"model": {"field": {"init": "cube"}}}}
OWN_FIELD: Settings = {"own_field": True}


def divided(
    lab: Lab, data: str, held_out: Sequence[str], num: int, tested: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who is pretrained on and who is tested: all others and the names held out, else the last `num` by name; `tested` names some of these.

    Raises ConfigError for a name that is not there, and when nobody would be left.
    """
    people = sorted(people_of(data))
    unknown = set(held_out) - set(people)
    if unknown:
        raise ConfigError(f"--held-out {' '.join(sorted(unknown))}: not in {data}; there: {', '.join(people)}")
    kept = tuple(sorted(held_out)) or tuple(people[-num:])
    taught = tuple(name for name in people if name not in kept)
    if len(taught) < 2:
        raise ConfigError(
            f"{data}: {len(people)} people, {len(kept)} of them to test: two or more must be left to pretrain on; give fewer with --held-out"
        )
    learnt = set(tested) - set(kept)
    if learnt:
        raise ConfigError(f"--tested {' '.join(sorted(learnt))}: not held out; there: {', '.join(kept)}")
    return taught, tuple(sorted(tested)) or kept


def means(each: Sequence[Numbers]) -> Numbers:
    """Means of what is a number for everybody."""
    keys = set.intersection(*(set(numbers) for numbers in each))
    values: dict[str, list[Any]] = {key: [numbers[key] for numbers in each] for key in keys}
    return {k: float(np.mean(v)) for k, v in values.items() if all(isinstance(x, int | float) for x in v)}
