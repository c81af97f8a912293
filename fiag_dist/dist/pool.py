"""The IM-Pool of one rank: the personal nets it owns, each with an optimiser of its own."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fiag_dist.errors import CheckpointError
from fiag_dist.model.layers import kind_of
from fiag_dist.model.motion import PersonalNet

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class PersonalPool:
    """Personal nets by identity. They never leave their owner, so neither their memory nor their traffic grows with the ranks."""

    def __init__(self, nets: Mapping[str, PersonalNet]):
        self.nets = dict(nets)
        self._optimizers = {name: _optimizer(net) for name, net in self.nets.items()}

    def __getitem__(self, name: str) -> PersonalNet:
        return self.nets[name]

    def step(self, names: Iterable[str], rates: Mapping[str, float], share: float) -> None:
        """Updates the nets that this step used. `share` turns their gradient of the rank's loss into that of one frame's."""
        for name in names:
            for group in self._optimizers[name].param_groups:
                group["lr"] = rates[group["name"]]
            if any(rates.values()):
                for parameter in self.nets[name].parameters():
                    if parameter.grad is not None:
                        parameter.grad *= share
                self._optimizers[name].step()
            self._optimizers[name].zero_grad()

    def clear(self) -> None:
        """Forgets the gradients of a refused step."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()

    @property
    def bytes(self) -> int:
        """Held at this moment by parameters, gradients and moments."""
        held = 0
        for name, net in self.nets.items():
            for parameter in net.parameters():
                state = self._optimizers[name].state[parameter].values()
                held += sum(t.nbytes for t in (parameter, parameter.grad, *state) if t is not None)
        return held

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Everything of one identity for a checkpoint: parameters by name, moments as `name:exp_avg` and so on."""
        out: dict[str, Tensor] = {}
        for key, parameter in self.nets[name].named_parameters():
            out[key] = parameter.detach().cpu()
            state = self._optimizers[name].state[parameter]
            out |= {f"{key}:{moment}": state[moment].detach().cpu() for moment in MOMENTS if moment in state}
        return out

    @torch.no_grad()
    def load(self, name: str, tensors: Mapping[str, Tensor], moments: bool = True) -> None:
        """The inverse of `tensors`; without `moments` only the parameters. Raises CheckpointError when shapes differ."""
        for key, parameter in self.nets[name].named_parameters():
            if key not in tensors or tensors[key].shape != parameter.shape:
                found = list(tensors[key].shape) if key in tensors else "missing"
                raise CheckpointError(
                    f"identity {name}: {key} is {found}, the model has {list(parameter.shape)}; use the run's config.yaml"
                )
            parameter.copy_(tensors[key])
            stored = {m: tensors[f"{key}:{m}"].to(parameter.device).clone() for m in MOMENTS if f"{key}:{m}" in tensors}
            if moments and stored:
                self._optimizers[name].state[parameter] = stored


def _optimizer(net: PersonalNet) -> torch.optim.AdamW:
    kinds: dict[str, list[torch.nn.Parameter]] = {"personal_grids": [], "personal_nets": [], "personal_audio": []}
    for name, parameter in net.named_parameters():
        kinds[f"personal_{kind_of(name)}"].append(parameter)
    groups = [
        {"name": k, "params": p, "weight_decay": 1e-4 if k == "personal_audio" else 0.0} for k, p in kinds.items()
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)
