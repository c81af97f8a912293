"""The optimiser of the shared model behind one small interface: plain torch in one process, or DeepSpeed ZeRO over many ranks.

Both engines follow the same rules, so that one is the other's reference:
- a step with a non-finite loss or gradient on any rank is refused on all: parameters and moments stay, gradients are cleared;
- a group with rate 0 stands still: parameters, moments and step counter;
- in a group that moves, a parameter without a gradient has gradient 0 (its moments decay).
"""

import logging
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fiag_dist.dist import process
from fiag_dist.dist.adam import Group, Piece, PiecewiseAdamW
from fiag_dist.dist.state import MOMENTS, RowEdit, State, check_fits, flatten, unflatten
from fiag_dist.dist.stopwatch import Stopwatch
from fiag_dist.errors import ConfigError

__all__ = ["Engine", "Group", "LocalEngine", "StepReport", "ZeroEngine"]


@dataclass(frozen=True)
class StepReport:
    """What became of one step, the same on all ranks."""

    finite: bool
    """False: the step was refused."""
    grad_norm: float
    """Norm of the gradient, averaged over ranks, before clipping; nan when refused."""


class Engine(ABC):
    """Moves the parameters of `module`. Every method is called by all ranks, in the same order."""

    module: nn.Module
    refused: int = 0
    """Steps refused so far."""

    def __init__(self, module: nn.Module, groups: Sequence[Group]) -> None:
        self.module = module
        self._known = [group["name"] for group in groups]
        self._names = _group_of_each_parameter(module, groups)
        self._params = dict(module.named_parameters())
        self._trained = [self._params[name] for name in self._names]
        self.talk = Stopwatch(self._trained[0].device)
        """Time spent on agreeing and on adding up gradients; what stage 0 and gathering after a step take is not told apart."""
        # Spherical harmonics of degree 0, say, leave a parameter, or a whole group, without elements.
        filled: list[Group] = [{**group, "params": [p for p in group["params"] if p.numel()]} for group in groups]
        self._optimizer = PiecewiseAdamW([group for group in filled if group["params"]])

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module; a step's losses come from this."""

    @abstractmethod
    def backward_and_step(self, loss: Tensor) -> StepReport:
        """Backward from `loss` (0-dim), averages over the ranks, and updates, or refuses on every rank.

        Gradients of tensors outside the engine stay in their `.grad` (not averaged), also when the step is refused.
        """

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Sets learning rates by group name; groups not named keep theirs. Raises ConfigError for an unknown group."""
        for name in rates:
            if name not in self._known:
                raise ConfigError(f"learning rate for group {name!r}: no such group; known: {', '.join(self._known)}")
        for name in self._optimizer.rates:
            self._optimizer.rates[name] = rates.get(name, self._optimizer.rates[name])

    @process.talking()
    @torch.no_grad()
    def gather(self) -> State:
        """Parameters and optimiser state, free of ranks."""
        state: State = {}
        for name, group in self._names.items():
            param = self._params[name]
            state[name] = {"param": _host(param), "step": torch.tensor(self._optimizer.steps[group])}
            state[name] |= {key: _host(self._read(param, key)) for key in MOMENTS}
        return state

    @torch.no_grad()
    def scatter(self, state: State) -> None:
        """Takes over what `gather` returned, from any number of ranks; going on is bit-identical at the same world size.

        Raises CheckpointError when names, shapes or step counters don't fit; then nothing is changed.
        """
        steps = check_fits(state, self._params, self._names)
        for name in self._names:
            for key in ("param", *MOMENTS):
                self._write(self._params[name], key, state[name][key])
        self._optimizer.steps |= steps

    @process.talking()
    @torch.no_grad()
    def remap(self, edits: Mapping[str, RowEdit]) -> None:
        """Replaces rows of parameters and moves their moments along. `edits`, by parameter name, is the same on all ranks."""
        for name, edit in edits.items():
            param = self._params[name]
            assert edit.values.shape == param.shape, (name, edit.values.shape, param.shape)
            for key in MOMENTS:
                moment = self._read(param, key)[edit.source.to(param.device)]
                moment[edit.fresh.to(param.device)] = 0
                self._write(param, key, moment)
            self._write(param, "param", edit.values)

    def _read(self, param: nn.Parameter, key: str) -> Tensor:
        """The full `exp_avg` or `exp_avg_sq` of a parameter."""
        return self._optimizer.state[param][key]

    def _write(self, param: nn.Parameter, key: str, value: Tensor) -> None:
        """Sets the full parameter (`param`) or one of its moments."""
        (param if key == "param" else self._optimizer.state[param][key]).copy_(value)

    def _whole_pieces(self) -> list[Piece]:
        """All parameters as they are."""
        state = self._optimizer.state
        return [
            Piece(group, param, *(state[param][key] for key in MOMENTS), whole=param)
            for param, group in zip(self._trained, self._names.values(), strict=True)
        ]

    def _refuse(self) -> StepReport:
        self.refused += 1
        for param in self._trained:
            param.grad = None
        return StepReport(finite=False, grad_norm=math.nan)


class LocalEngine(Engine):
    """One process, torch alone."""

    def __init__(self, module: nn.Module, groups: Sequence[Group], grad_clip: float = 0.0) -> None:
        super().__init__(module, groups)
        self._grad_clip = grad_clip
        self._optimizer.make_state()
        self._optimizer.cut(self._whole_pieces())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward_and_step(self, loss: Tensor) -> StepReport:
        if not torch.isfinite(loss):
            return self._refuse()
        loss.backward()
        _fill_missing(self._trained)
        norm = _norm(self._trained)
        if not math.isfinite(norm):
            return self._refuse()
        if self._grad_clip > 0:
            nn.utils.clip_grads_with_norm_(self._trained, self._grad_clip, torch.tensor(norm))
        self._optimizer.step()
        self._optimizer.zero_grad()
        return StepReport(finite=True, grad_norm=norm)


class ZeroEngine(Engine):
    """All ranks of a run: DeepSpeed data parallelism, the optimiser's state sharded over the ranks in stages 1 and 2."""

    def __init__(self, module: nn.Module, groups: Sequence[Group], zero_stage: int = 1, grad_clip: float = 0.0) -> None:
        """Needs a started process group. Raises ConfigError for a stage other than 0, 1 or 2."""
        if zero_stage not in (0, 1, 2):
            raise ConfigError(
                f"zero_stage {zero_stage}: the choices are 0, 1 and 2; 3 would take the parameters apart too, which losses, growth and "
                "pictures read outside the forward pass, to save memory that the personal nets, not the shared model, fill"
            )
        super().__init__(module, groups)
        deepspeed = _deepspeed()
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": grad_clip,
            "zero_optimization": {
                "stage": zero_stage,
                # DeepSpeed takes a bucket of this many elements at every backward pass, however small the model is.
                "reduce_bucket_size": max(2, sum(param.numel() for param in self._trained)),
                "overlap_comm": False,
            },
            "zero_allow_untested_optimizer": True,
            "steps_per_print": None,
        }
        self._zero = zero_stage > 0
        with _without_compiler():
            self._engine, self._sharded, _, _ = deepspeed.initialize(
                model=module, optimizer=self._optimizer, config=config, dist_init_required=False
            )
        # Moments exist from the start and are linked to their parameters: they can be read and set before the first step.
        self._optimizer.make_state()
        if self._zero:
            self._sharded._lazy_init_hp_params_optimizer_state()
        self._optimizer.cut(self._sharded_pieces() if self._zero else self._whole_pieces())
        self._tensor_api = deepspeed.utils

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

    def backward_and_step(self, loss: Tensor) -> StepReport:
        # Agreed before the backward pass: a rank that left it out would leave the others waiting in a collective.
        with self.talk.watch(), process.talking():
            finite = process.all_reduce(torch.isfinite(loss.detach()).float(), "min").item()
        if not finite:
            return self._refuse()
        if self._zero:
            # One reduction in the parameters' order, after zeros stand in for missing gradients: ranks may differ in their graphs.
            with self.talk.watch_end_of(self._engine.coalesce_grad_reduction()):
                try:
                    self._engine.backward(loss)
                finally:
                    _fill_missing(self._trained)
            with process.talking():
                self._engine.step()
                norm = float(self._engine.get_global_grad_norm())
            finite = self._engine.was_step_applied()
        else:
            self._engine.backward(loss)
            with process.talking():
                norm = _norm(self._trained)
            finite = math.isfinite(norm)
            if finite:
                self._engine.step()
        return StepReport(finite=True, grad_norm=norm) if finite else self._refuse()

    def _sharded_pieces(self) -> list[Piece]:
        """What this rank updates: fragments of parameters, one after the other in DeepSpeed's flat partition."""
        flat = self._optimizer.param_groups[0]["params"][0]
        pieces = []
        for param, group in zip(self._trained, self._names.values(), strict=True):
            mapping = param._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:
                moments = (mapping.get_hp_fragment(key) for key in MOMENTS)
                start = mapping.get_hp_fragment_address().start
                pieces.append(Piece(group, mapping.get_hp_fragment(), *moments, whole=flat, start=start))
        return pieces

    def _read(self, param: nn.Parameter, key: str) -> Tensor:
        if not self._zero:
            return super()._read(param, key)
        return self._tensor_api.safe_get_full_optimizer_state(param, key)

    def _write(self, param: nn.Parameter, key: str, value: Tensor) -> None:
        value = value.to(param.device)
        if key == "param":
            param.copy_(value)
            if self._zero:
                self._tensor_api.safe_set_full_fp32_param(param, value)
        elif self._zero:
            self._tensor_api.safe_set_full_optimizer_state(param, value, key)
        else:
            super()._write(param, key, value)


def _group_of_each_parameter(module: nn.Module, groups: Sequence[Group]) -> dict[str, str]:
    """Name of each trained parameter (with elements) -> name of its group. Raises ConfigError when one is in no group or in two."""
    owners: dict[int, list[str]] = {}
    for group in groups:
        for param in (p for p in group["params"] if p.numel()):
            owners.setdefault(id(param), []).append(group["name"])
    named = {name: param for name, param in module.named_parameters() if param.requires_grad and param.numel()}
    for name, param in named.items():
        if len(owners.get(id(param), [])) != 1:
            raise ConfigError(
                f"parameter {name} is in the groups {owners.get(id(param), [])}: each trained parameter is in one"
            )
    if len(owners) != len(named):
        raise ConfigError(
            f"{len(owners) - len(named)} parameters in the groups are not trained parameters of the module"
        )
    return {name: owners[id(param)][0] for name, param in named.items()}


def _fill_missing(params: Sequence[nn.Parameter]) -> None:
    for param in params:
        if param.grad is None and param.requires_grad:
            param.grad = torch.zeros_like(param)


def _norm(params: Sequence[nn.Parameter]) -> float:
    """Euclidean norm of all gradients together; inf or nan when one is not finite."""
    return nn.utils.get_total_norm([param.grad for param in params if param.grad is not None]).item()


def _host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _deepspeed() -> Any:
    """Imports DeepSpeed, quietly, and only where it is used: it takes seconds, and adaptation never needs it."""
    import deepspeed

    warnings.filterwarnings("ignore", "`torch.distributed.all_gather_into_tensor` is deprecated", FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # A shared-memory op for inference, built with g++ when ranks meet: never called in training.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it; only a world of one lacks it
    assert dist.is_initialized(), "process.start() comes before the engine"
    return deepspeed


@contextmanager
def _without_compiler() -> Iterator[None]:
    """torch.compile compiles nothing here. To look at an optimiser DeepSpeed imports one of its own, whose functions are never called but are decorated
    for the compiler: 1.4 s and 44 MiB of every rank."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before
