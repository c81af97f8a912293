"""The GPU check's whole model: one training step of demo heads on a device against the CPU, and a short training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import torch
from gpu_pairs import compared
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fiag_dist.config import FieldConfig, LossConfig, ModelConfig, StageConfig, TrainConfig
from fiag_dist.dist.engine import LocalEngine, StepReport
from fiag_dist.dist.ownership import assign
from fiag_dist.dist.pool import PersonalPool
from fiag_dist.model.head import Head
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.storage import open_storage
from fiag_dist.training.feed import Feed
from fiag_dist.training.start import fresh_head
from fiag_dist.training.step import Training, optimizer_groups

TEST_FRAMES = 4
STEP_NORM = 5e-2
"""Allowed error of a gradient's norm after a whole step: threshold flips of the rasteriser pass through every network."""


def config(num_gaussians: int, steps: int, frames: int) -> TrainConfig:
    """A training of demo heads: `num_gaussians` of the face, a tenth of them in the mouth. LPIPS, whose weights are elsewhere, is left out."""
    field = FieldConfig(
        num_face=num_gaussians,
        num_mouth=num_gaussians // 10,
        capacity_face=num_gaussians * 9 // 8,
        capacity_mouth=num_gaussians // 6,
    )
    return TrainConfig(
        steps=steps,
        frames_per_step=frames,
        model=ModelConfig(field=field),
        loss=LossConfig(lpips=0.0),
        stages=StageConfig(warm_up=0.02, identity=0.10, motion=0.92, landmark_steps=steps // 3),
    )


@contextmanager
def training(config: TrainConfig, shards: str, device: torch.device, step: int = 0) -> Iterator[Training]:
    """A fresh training of all people of a folder of shards in one process, at a step of its run. The same arguments give the same numbers."""
    data = open_storage(shards)
    manifest = read_manifest(data)
    names = manifest.names
    ownership = assign(names, {name: manifest.entry(name).split.train for name in names}, config.frames_per_step, 1)
    head = fresh_head(config, data, manifest, sorted(names), config.seed, device)
    pool = PersonalPool({name: head.universal.new_personal().to(device) for name in names})
    with closing(Feed(config, data, manifest, ownership, 0, device)) as feed:
        engine = LocalEngine(head, optimizer_groups(head), config.optim.grad_clip)
        made = Training(config, head, engine, pool, feed)
        made.step = step
        yield made


class Recorder(LocalEngine):
    """Keeps a step's gradients of the shared parameters by name, and changes nothing."""

    gradients: dict[str, Tensor]

    def __init__(self, head: Head):
        super().__init__(head, optimizer_groups(head))

    def backward_and_step(self, loss: Tensor) -> StepReport:
        loss.backward()
        named = self.module.named_parameters()
        self.gradients = {name: p.grad.detach().cpu() for name, p in named if p.grad is not None and p.numel()}
        self.module.zero_grad()
        return StepReport(finite=True, grad_norm=0.0)


class DrawnOnHost(TorchFunctionMode):
    """Random numbers come from the host's generator whatever their device: two devices see the same ones."""

    DRAWS = (torch.rand, torch.randn, torch.randint, torch.randperm)
    LIKE: Mapping[Callable, Callable] = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}

    def __torch_function__(self, func: Callable, types: Any, args: Sequence = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.LIKE:
            return self.LIKE[func](args[0].shape, dtype=args[0].dtype).to(args[0].device)
        if func in self.DRAWS and kwargs.get("device") is not None:
            return func(*args, **(kwargs | {"device": "cpu"})).to(kwargs["device"])
        return func(*args, **kwargs)


def step_pair(shards: str, device: torch.device, num_gaussians: int, frames: int) -> dict[str, Any]:
    """Loss terms and gradients of the shared parameters of one step of the motion stage: the device's backends against the CPU kernels."""
    settings = config(num_gaussians, 1000, frames)
    middle = round(settings.steps * (settings.stages.identity + settings.stages.motion) / 2)
    where = {
        "got": (replace(settings, encoder="auto" if device.type == "cuda" else "torch", ssim="torch"), device),
        "wanted": (replace(settings, raster="cpu", encoder="cpu", ssim="cpu"), torch.device("cpu")),
    }
    found: dict[str, dict[str, Tensor]] = {}
    for name, (chosen, on) in where.items():
        with training(chosen, shards, on, settings.stages.landmark_steps + middle) as run, DrawnOnHost():
            run.engine = recorder = Recorder(run.head)
            tags = run.learn(run.feed.next(run.step))
        terms = {
            f"loss {tag.removeprefix('loss/')}": torch.tensor([tags[tag]]) for tag in tags if tag.startswith("loss/")
        }
        found[name] = terms | {f"gradient of {p}": g for p, g in recorder.gradients.items()}
    result = compared(found["got"], found["wanted"], STEP_NORM)
    norms = {name: row["norm"] for name, row in result["errors"].items() if "norm" in row}
    return result | {
        "worst": dict(sorted(norms.items(), key=lambda item: -item[1])[:5]),
        "num_gaussians": num_gaussians,
    }


def train(
    shards: str, device: torch.device, num_gaussians: int, frames: int, steps: int, left_s: Callable[[], float]
) -> dict[str, Any]:
    """Trains all people for `steps` steps, or until `left_s` says that little time is left. PSNR of the head on test frames before and after."""
    with training(config(num_gaussians, steps, frames), shards, device) as run:
        before = _scores(run)
        refused = 0
        while not run.done and left_s() > 0:
            refused = int(run.learn(run.feed.next(run.step))["train/refused_steps"])
        after = _scores(run)
    mean = [sum(scores.values()) / len(scores) for scores in (before, after)]
    return {
        "passed": run.done and refused == 0 and mean[1] > mean[0],
        "steps": run.step,
        "refused_steps": refused,
        "head_psnr_db": {"before": mean[0], "after": mean[1]},
        "of_each": {"before": before, "after": after},
    }


def _scores(run: Training) -> dict[str, float]:
    """PSNR of the head on a few test frames of each person."""
    return {name: run.compare(name, run.feed.test_shots(name, TEST_FRAMES))[0] for name in run.feed.names}
