"""Settings that are tried for one identity: samples compete with those of the same person alone, by PSNR on the training frames that are held out."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fiag_dist.adaptation.job import Job, Search, stored_json
from fiag_dist.config import TrainConfig
from fiag_dist.errors import ConfigError
from fiag_dist.storage import open_storage

CHOICE, SAMPLES = "search.json", "samples"
RATES = ("grids", "nets", "identity_nets", "audio", "personal_grids", "personal_nets")
LR_FACTORS, STEPS_FACTORS = (0.5, 2.0), (0.5, 1.5)
"""Between what the rates of all networks, and the steps with images, are multiplied by."""
UNIVERSAL = (0.1, 1.0)
"""Of train.optim.universal itself."""


def _lr(train: TrainConfig, rng: np.random.Generator) -> TrainConfig:
    factor = _between(LR_FACTORS, rng)
    return replace(train, optim=replace(train.optim, **{name: getattr(train.optim, name) * factor for name in RATES}))


def _steps(train: TrainConfig, rng: np.random.Generator) -> TrainConfig:
    return replace(train, steps=max(1, round(train.steps * _between(STEPS_FACTORS, rng))))


def _universal(train: TrainConfig, rng: np.random.Generator) -> TrainConfig:
    return replace(train, optim=replace(train.optim, universal=_between(UNIVERSAL, rng)))


SPACE: Mapping[str, Callable[[TrainConfig, np.random.Generator], TrainConfig]] = {
    "lr": _lr,
    "steps": _steps,
    "universal": _universal,
}
"""What `--search` may name -> a sample of it, drawn evenly on a logarithmic scale."""


def parse(names: str, num_samples: int) -> Search:
    """`lr,steps` as a search; empty: none. Raises ConfigError for an unknown name, or for less than two samples."""
    settings = tuple(name.strip() for name in names.split(",") if name.strip())
    for name in settings:
        if name not in SPACE:
            raise ConfigError(f"--search {name}: no such setting to search; known: {', '.join(SPACE)}")
    if settings and num_samples < 2:
        raise ConfigError(f"--samples {num_samples}: a search compares at least 2; give more, or leave --search out")
    return Search(settings, num_samples)


def samples(job: Job) -> list[Job]:
    """The same identity under several settings, the given ones first: the same each time."""
    rng = np.random.default_rng((job.config.train.seed, *job.name.encode()))
    jobs = []
    for number in range(job.search.samples):
        train = job.config.train
        for setting in job.search.settings if number else ():
            train = SPACE[setting](train, rng)
        config = replace(job.config, train=train)
        jobs.append(
            replace(job, folder=f"{job.folder}/{SAMPLES}/{number}", config=config, scratch=False, search=Search())
        )
    return jobs


def is_chosen(job: Job) -> bool:
    """Whether the search for exactly this job has ended."""
    return stored_json(job.folder, CHOICE).get("job") == job.key


def write_choice(job: Job, scores_db: Mapping[int, float]) -> None:
    """Keeps which sample was best of those that trained to their end, by number, and what all were."""
    rows: list[dict[str, Any]] = [
        {
            "steps": sample.config.train.steps,
            "rate_nets": sample.config.train.optim.nets,
            "universal": sample.config.train.optim.universal,
            "validation_psnr_db": scores_db.get(number),
        }
        for number, sample in enumerate(samples(job))
    ]
    best = max(scores_db, key=lambda number: scores_db[number])
    choice = {"job": job.key, "chosen": best, "samples": rows}
    open_storage(job.folder).write(CHOICE, json.dumps(choice, indent=1).encode())


def chosen_sample(job: Job) -> Job:
    """The sample that was chosen."""
    assert is_chosen(job)
    return samples(job)[stored_json(job.folder, CHOICE)["chosen"]]


def _between(ends: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(ends))))
