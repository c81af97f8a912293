"""The IM-Pool of one rank: the personal nets it owns, each with an optimiser of its own."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fiag_dist.config import IdentityConfig
from fiag_dist.dist.checkpoint import EMBEDDING
from fiag_dist.errors import CheckpointError
from fiag_dist.model.layers import kind_of
from fiag_dist.model.motion import PersonalNet

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class PersonalPool:
    """Personal nets by identity, and their embeddings where these are learnt. They never leave their owner, so neither memory nor traffic grows with the ranks.

    embeddings: where learnt embeddings start, [dim] each; empty when a recogniser says who is who.
    """

    def __init__(self, nets: Mapping[str, PersonalNet], embeddings: Mapping[str, Tensor] | None = None):
        self.nets = dict(nets)
        self._learnt = {name: nn.Parameter(start.clone()) for name, start in (embeddings or {}).items()}
        self._optimizers = {name: _optimizer(self._parameters(name)) for name in self.nets}

    def __getitem__(self, name: str) -> PersonalNet:
        return self.nets[name]

    def embedding(self, name: str, recognised: Tensor) -> Tensor:
        """The embedding that an identity has learnt, else what a recogniser says."""
        return self._learnt.get(name, recognised)

    def _parameters(self, name: str) -> dict[str, nn.Parameter]:
        """All that is learnt of one identity alone."""
        learnt = {EMBEDDING: self._learnt[name]} if name in self._learnt else {}
        return dict(self.nets[name].named_parameters()) | learnt

    def step(self, names: Iterable[str], rates: Mapping[str, float], share: float) -> int:
        """Updates the nets that this step used. `share` turns their gradient of the rank's loss into that of one frame's.

        Returns how many stayed as they were, because their gradient was not finite.
        """
        refused = 0
        for name in names:
            for group in self._optimizers[name].param_groups:
                group["lr"] = rates[group["name"]]
            gradients = [p.grad for p in self._parameters(name).values() if p.grad is not None]
            if gradients and any(rates.values()):
                if math.isfinite(nn.utils.get_total_norm(gradients).item()):
                    torch._foreach_mul_(gradients, share)
                    self._optimizers[name].step()
                else:
                    refused += 1
            self._optimizers[name].zero_grad()
        return refused

    def clear(self) -> None:
        """Forgets the gradients of a refused step."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()

    @property
    def bytes(self) -> int:
        """Held at this moment by parameters, gradients and moments."""
        held = 0
        for name in self.nets:
            for parameter in self._parameters(name).values():
                state = self._optimizers[name].state[parameter].values()
                held += sum(t.nbytes for t in (parameter, parameter.grad, *state) if t is not None)
        return held

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Everything of one identity for a checkpoint: parameters by name, moments as `name:exp_avg` and so on."""
        out: dict[str, Tensor] = {}
        for key, parameter in self._parameters(name).items():
            out[key] = parameter.detach().cpu()
            state = self._optimizers[name].state[parameter]
            out |= {f"{key}:{moment}": state[moment].detach().cpu() for moment in MOMENTS if moment in state}
        return out

    @torch.no_grad()
    def load(self, name: str, tensors: Mapping[str, Tensor], moments: bool = True) -> None:
        """The inverse of `tensors`; without `moments` only the net, as another person's it is. Raises CheckpointError when shapes differ."""
        for key, parameter in self._parameters(name).items() if moments else self.nets[name].named_parameters():
            if key not in tensors or tensors[key].shape != parameter.shape:
                found = list(tensors[key].shape) if key in tensors else "missing"
                raise CheckpointError(
                    f"identity {name}: {key} is {found}, the model has {list(parameter.shape)}; use the run's config.yaml"
                )
            parameter.copy_(tensors[key])
            stored = {m: tensors[f"{key}:{m}"].to(parameter.device).clone() for m in MOMENTS if f"{key}:{m}" in tensors}
            if moments and stored:
                self._optimizers[name].state[parameter] = stored


def first_embeddings(config: IdentityConfig, names: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Where learnt embeddings start: in a random direction, the same for a name whoever owns it. Empty when none are learnt."""
    if config.embedding != "table":
        return {}
    drawn = {name: np.random.default_rng((seed, *name.encode())).normal(size=config.table_dim) for name in names}
    return {name: F.normalize(torch.from_numpy(vector).float(), dim=0) for name, vector in drawn.items()}


def _optimizer(parameters: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
    kinds: dict[str, list[nn.Parameter]] = {"personal_grids": [], "personal_nets": [], "personal_audio": []}
    for name, parameter in parameters.items():
        kinds[f"personal_{kind_of(name)}"].append(parameter)
    groups = [
        {"name": k, "params": p, "weight_decay": 1e-4 if k == "personal_audio" else 0.0} for k, p in kinds.items()
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)
