"""The one training loop: pretraining over many ranks and adaptation in one process differ only in what they pass in."""

import math
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fiag_dist import weights
from fiag_dist.acting.backdrop import Filled
from fiag_dist.config import TrainConfig
from fiag_dist.dist import process
from fiag_dist.dist.engine import Engine, Group, StepReport
from fiag_dist.dist.heartbeat import alive
from fiag_dist.dist.neighbours import Neighbours
from fiag_dist.dist.pool import PersonalPool
from fiag_dist.dist.state import RowEdit, flatten, unflatten
from fiag_dist.errors import DistributedError
from fiag_dist.images.lpips import Lpips
from fiag_dist.model.head import Head, Performance
from fiag_dist.stages import (
    FIELD_GROUPS,
    Stage,
    due,
    landmark_weight,
    learnt_degree,
    moving,
    progress,
    prune_threshold,
    rates,
    sh_degree,
    stage_at,
    total_steps,
)
from fiag_dist.training import density, losses
from fiag_dist.training.feed import Feed, Lesson
from fiag_dist.training.losses import Rival
from fiag_dist.types import Shot

PERSONAL_GROUPS = ["personal_grids", "personal_nets", "personal_audio"]
AVERAGED = ("face_identity.", "mouth_identity.", "universal.face.", "universal.mouth.")
"""Whose moving average adaptation starts from: IE-Net and UM-Net."""


def optimizer_groups(head: Head) -> list[Group]:
    """AdamW's settings of each group of shared parameters (model.md 4); the rates come with each step."""
    groups: list[Group] = []
    for name, params in head.groups().items():
        of_field = name in FIELD_GROUPS
        groups.append(
            Group(
                name=name,
                params=params,
                lr=0.0,
                betas=(0.9, 0.999) if of_field else (0.9, 0.99),
                eps=1e-15,
                weight_decay=1e-4 if name.endswith("_audio") else 0.0,
            )
        )
    return groups


def perceptual_loss(config: TrainConfig, device: torch.device | str) -> Lpips | None:
    """LPIPS when the configuration asks for it and every rank has its weights: all train on one loss. Who has none says so in a line."""
    if not config.loss.lpips:
        return None
    there = weights.present("lpips-alex")
    if not there:
        print(
            f"training without LPIPS: its weights are not there on {socket.gethostname()}; to use it: fiag-dist weights fetch",
            flush=True,
        )
    if not process.all_true(there, torch.device(device)):
        return None
    return Lpips(weights.path("lpips-alex")).to(device)


@dataclass(eq=False)
class Training:
    """Everything a run changes as it goes, and how one step changes it."""

    config: TrainConfig
    head: Head
    engine: Engine
    pool: PersonalPool
    feed: Feed
    perceptual: Lpips | None = None
    """Compares patches in the second half of the fusion stage."""
    neighbours: Neighbours | None = None
    """Whom those are told from who are alone in a lane."""
    step: int = 0
    averages: dict[str, Tensor] = field(init=False)
    """Moving averages of the parameters in AVERAGED, by name."""
    statistics: dict[str, density.Statistics] = field(init=False)
    """What growth and pruning go by, by field."""

    def __post_init__(self) -> None:
        self._groups = list(self.head.groups())
        self._refused_in_a_row = 0
        self._filled = Filled()
        self._regrown = {"field/pruned": 0, "field/grown": 0}
        self._judged = 0
        """The step from which on a whole round of everybody is asked for before Gaussians are pruned: the last pruning, or the last refused step."""
        self.statistics = {name: density.Statistics(f.capacity, f.means.device) for name, f in self.head.fields.items()}
        averaged = {n: p for n, p in self.head.named_parameters() if n.startswith(AVERAGED)}
        self.averages = {name: parameter.detach().clone() for name, parameter in averaged.items()}
        self._averaged: list[Tensor] = list(averaged.values())

    @property
    def lanes(self) -> int:
        """Frames of the global batch."""
        return len(self.feed.ownership.lanes)

    @property
    def done(self) -> bool:
        return self.step >= total_steps(self.config)

    @property
    def stage(self) -> Stage:
        return stage_at(self.step, self.config)

    def learn(self, lessons: Sequence[Lesson]) -> dict[str, float]:
        """One step over this rank's lanes. Returns its numbers. Raises DistributedError when too many steps in a row had to be refused."""
        named = rates(self.step, self.config, [*self._groups, *PERSONAL_GROUPS])
        self.engine.set_rates({name: rate for name, rate in named.items() if name not in PERSONAL_GROUPS})
        share = (
            self.lanes / self.feed.ownership.world
        )  # a rank's loss is scaled so that the mean over ranks is the mean over lanes
        if self.neighbours:
            self.neighbours.renew(self.step)
        tried = self._perform(lessons)
        total = torch.stack([torch.stack(list(terms.values())).sum() for _, terms in tried]).sum() / share
        report = self.engine.backward_and_step(total)
        if report.finite:
            names = [lesson.shot.identity for lesson in lessons]
            refused = self.pool.step(names, {n: named[n] for n in PERSONAL_GROUPS}, share)
            self._observe(lessons, [performance for performance, _ in tried], share)
            self._average()
        else:
            refused = 0
            self.pool.clear()
            self._judged = self.step + 1  # somebody's turn was lost
        self._refused_in_a_row = 0 if report.finite else self._refused_in_a_row + 1
        if self._refused_in_a_row > self.config.refused_at_most:
            raise DistributedError(
                f"step {self.step + 1}: loss or gradient was not finite {self._refused_in_a_row} times in a row, train.refused_at_most is "
                f"{self.config.refused_at_most}; go on from the last checkpoint with lower rates under train.optim"
            )
        self.step += 1
        if self._regrowth_is_due():
            self._regrow()
        return self._tags(tried, report, named, share) | {"train/refused_nets": refused / len(lessons)}

    def _perform(self, lessons: Sequence[Lesson]) -> list[tuple[Performance | None, dict[str, Tensor]]]:
        """Each lesson's frame and its loss terms. The draws are the same at any number of ranks, and after a resume."""
        config, stage = self.config, self.stage
        self.head.sh_degree = sh_degree(self.step, config)
        shots = [self._known(lesson.shot) for lesson in lessons]
        personals = [self.pool[shot.identity] for shot in shots]
        seeds = [_seed(config.seed, self.step, lesson.lane) for lesson in lessons]
        if stage is Stage.LANDMARKS:
            moved = self.engine.forward(shots, personals, seeds, rendered=False)
            tried: list[tuple[Performance | None, dict[str, Tensor]]] = []
            for motion, shot, personal, lesson in zip(moved, shots, personals, lessons, strict=True):
                torch.manual_seed(_seed(config.seed, self.step, lesson.lane, 1))
                tried.append((None, losses.landmark_terms(self.head, personal, motion, shot, config.loss)))
            return tried
        with_landmarks = config.loss.landmarks > 0 and stage < Stage.FUSION
        performances = self.engine.forward(
            shots, personals, seeds, moving=moving(stage, config), landmarks=with_landmarks
        )
        fusing = (progress(self.step, config) - config.stages.motion) / max(1 - config.stages.motion, 1e-6) > 0.5
        critic = losses.Critic(
            config.loss, config.ssim, landmark_weight(self.step, config), self.perceptual if fusing else None
        )
        tried = []
        for performance, shot, personal, lesson in zip(performances, shots, personals, lessons, strict=True):
            torch.manual_seed(_seed(config.seed, self.step, lesson.lane, 1))
            rival = self._rival(lesson)
            tried.append((performance, losses.compute(self.head, personal, performance, shot, stage, critic, rival)))
        return tried

    def embedding(self, name: str) -> Tensor:
        """Of an identity of this rank: learnt, or the mean over its clip, [id_dim]."""
        return self.pool.embedding(name, self.feed.embedding(name)).detach()

    def _known(self, shot: Shot) -> Shot:
        """The shot with the embedding that its person is baked with: a learnt one, or the mean over the clip (docs/decisions.md, 43)."""
        return replace(shot, embedding=self.pool.embedding(shot.identity, self.feed.embedding(shot.identity)))

    def _rival(self, lesson: Lesson) -> Rival | None:
        """Whom the lesson's person is told from: another one of the lane, else a neighbour's frozen copy, if there is anybody."""
        positive = self.pool.embedding(lesson.shot.identity, lesson.positive)
        if lesson.rival is not None:
            return Rival(positive, self.embedding(lesson.rival), self.pool[lesson.rival])
        neighbour = self.neighbours.of(lesson.lane) if self.neighbours else None
        return Rival(positive, neighbour.embedding, neighbour.net) if neighbour else None

    def _observe(self, lessons: Sequence[Lesson], performances: Sequence[Performance | None], share: float) -> None:
        for performance in performances:
            if performance is None or self.stage is Stage.FUSION:
                continue
            for name, rendering in (("face", performance.face), ("mouth", performance.mouth)):
                canonical, person = self.head.fields[name].gaussians(), getattr(performance.person, name)
                self.statistics[name].observe(rendering, canonical, person, share)

    @torch.no_grad()
    def _average(self) -> None:
        torch._foreach_lerp_(list(self.averages.values()), self._averaged, 1 - self.config.optim.ema)

    def _regrowth_is_due(self) -> bool:
        images = self.step - self.config.stages.landmark_steps
        growth = self.config.density
        return images >= growth.start and due(images, growth.every) and self.stage < Stage.FUSION

    def _regrow(self) -> None:
        """Growth and pruning from what all ranks saw: the same rows everywhere."""
        thresholds = {"face": self.config.density.grad_face, "mouth": self.config.density.grad_mouth}
        generator = torch.Generator().manual_seed(_seed(self.config.seed, self.step))
        judged = max(self._judged, self.config.stages.landmark_steps)  # before it nothing is rendered
        pruned = density.everybody_had_a_turn(judged, self.step, map(len, self.feed.ownership.lanes))
        edits: dict[str, RowEdit] = {}
        for name, gaussians in self.head.fields.items():
            seen = self.statistics[name]
            process.all_reduce(seen.sums, "sum")
            process.all_reduce(seen.opacity, "max")
            own = density.regrow(
                gaussians,
                seen,
                self.config.density,
                thresholds[name],
                prune_threshold(self.step, self.config) if pruned else 0.0,
                generator,
            )
            regrowth = process.broadcast_object(own)  # another kind of CPU rounds differently
            edits |= _row_edits(f"{name}_field", gaussians.capacity, regrowth)
            gaussians.live.fill_(len(regrowth.source))
            self._regrown["field/pruned"] += regrowth.pruned
            self._regrown["field/grown"] += regrowth.grown
            seen.clear(None if pruned else regrowth.source)
        self._judged = self.step if pruned else self._judged
        known = {n for n, _ in self.head.named_parameters()}
        self.engine.remap({n: edit for n, edit in edits.items() if n in known and edit.values.numel()})

    def _tags(
        self,
        tried: Sequence[tuple[Performance | None, dict[str, Tensor]]],
        report: StepReport,
        named: Mapping[str, float],
        share: float,
    ) -> dict[str, float]:
        """Numbers of this step on this rank, by their name in the log; integers are states. The mean of losses over ranks is that over lanes."""
        names = [(k, term) for k, (_, terms) in enumerate(tried) for term in terms]
        values = torch.stack([tried[k][1][term].detach() for k, term in names]).tolist()  # waits for the device once
        tags: dict[str, float] = {}
        for term in sorted({term for _, term in names}):
            found = [value for (_, name), value in zip(names, values, strict=True) if name == term]
            tags[f"loss/{term}"] = sum(found) / share
        tags["loss/total"] = sum(values) / share
        tags |= {f"rate/{name}": rate for name, rate in named.items()}
        tags |= {f"field/num_gaussians_{name}": len(f) for name, f in self.head.fields.items()}
        tags |= {"field/num_gaussians": sum(len(f) for f in self.head.fields.values())}
        tags |= {"train/grad_norm": report.grad_norm, "train/stage": int(self.stage)}
        return tags | self._regrown | {"train/refused_steps": self.engine.refused}

    def validate(self, name: str) -> float:
        """PSNR of the head, dB, on the training frames of an identity of this rank that its feed holds out."""
        return self.compare(name, self.feed.held_out_shots(name))[0]

    @torch.no_grad()
    def compare(self, name: str, shots: Sequence[Shot]) -> tuple[float, list[tuple[Shot, Performance, Tensor]]]:
        """Mean PSNR of the head in `shots` of one identity of this rank, and each shot as performed, and put over its own backdrop [3, size, size]."""
        self.head.eval()
        shown, errors = [], []
        for shot in map(self._known, shots):
            performance = self.head.perform(
                shot, self.pool[name], moving=moving(max(self.stage, Stage.MOTION), self.config)
            )
            image = performance.over(self._behind(shot)).clamp(0, 1)
            on_head = shot.alpha > 0.5
            errors.append(float(((image - shot.image).square() * on_head).sum() / (3 * on_head.sum().clamp(min=1))))
            shown.append((shot, performance, image))
            alive()
        self.head.train()
        return float(np.mean([-10 * math.log10(max(error, 1e-10)) for error in errors])), shown

    def _behind(self, shot: Shot) -> Tensor:
        """The frame with its head taken out and filled in [3, size, size]: always the same frames are looked at."""
        image = (shot.image.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        alpha = (shot.alpha[0] * 255).round().byte().cpu().numpy()
        filled = self._filled.behind((shot.identity, shot.index), image, alpha)
        return torch.from_numpy(filled).to(shot.image.device).permute(2, 0, 1).float() / 255

    def shared(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The shared tensors of a checkpoint, and the optimiser's: the same on all ranks, which all call it."""
        process.broadcast(self.averages.values())  # each rank's own sums, which kinds of CPU round differently
        shared, optim = flatten(self.engine.gather())
        kept = self.head.state_dict()
        shared |= {name: buffer.detach().cpu() for name, buffer in self.head.named_buffers() if name in kept}
        shared |= {f"ema.{name}": average.cpu() for name, average in self.averages.items()}
        for name, seen in self.statistics.items():
            optim[f"statistics.{name}.sums"] = process.all_reduce(seen.sums.clone(), "sum").cpu()
            optim[f"statistics.{name}.opacity"] = process.all_reduce(seen.opacity.clone(), "max").cpu()
        optim["counts"] = torch.tensor([self.engine.refused, *self._regrown.values()])
        optim["judged"] = torch.tensor(self._judged)
        return shared, optim

    def restore(self, step: int, shared: Mapping[str, Tensor], optim: Mapping[str, Tensor], rank: int) -> None:
        """Goes on from a checkpoint, at any number of ranks."""
        parameters = {name for name, _ in self.head.named_parameters()}
        self.engine.scatter(unflatten({n: t for n, t in shared.items() if n in parameters}, optim))
        for name, buffer in self.head.named_buffers():
            if name in shared:
                buffer.copy_(shared[name])
        for name, average in self.averages.items():
            average.copy_(shared[f"ema.{name}"])
        for name, seen in self.statistics.items():
            seen.opacity.copy_(optim[f"statistics.{name}.opacity"])
            sums = optim[f"statistics.{name}.sums"]
            if rank == 0 and sums.shape == seen.sums.shape:  # added over ranks; those of an older layout begin anew
                seen.sums.copy_(sums)
        if "counts" in optim:  # older checkpoints have none
            self.engine.refused, *regrown = optim["counts"].tolist()
            self._regrown = dict(zip(self._regrown, regrown, strict=True))
        self._judged = int(optim.get("judged", step))  # older checkpoints do not say
        self.step, self.head.sh_degree = step, learnt_degree(step, self.config)


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def _row_edits(prefix: str, capacity: int, regrowth: density.Regrowth) -> dict[str, RowEdit]:
    """`regrowth` as edits of tensors of full capacity: rows beyond the living are zero and without moments."""
    live = len(regrowth.source)
    source = torch.zeros(capacity, dtype=torch.int64)
    fresh = torch.ones(capacity, dtype=torch.bool)
    source[:live], fresh[:live] = regrowth.source, regrowth.fresh
    edits = {}
    for name, rows in regrowth.values.items():
        values = torch.zeros(capacity, *rows.shape[1:])
        values[:live] = rows
        edits[f"{prefix}.{name}"] = RowEdit(values, fresh, source)
    return edits
