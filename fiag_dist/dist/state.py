"""An optimiser's state free of ranks and engines: what a checkpoint holds and what growth edits."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fiag_dist.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")
State = dict[str, dict[str, Tensor]]
"""By parameter name: `param`, `exp_avg`, `exp_avg_sq`, full size, and the 0-dim `step` counter; float32, host, the same on all ranks."""


@dataclass(frozen=True, eq=False)
class RowEdit:
    """New rows for a parameter of fixed capacity, as growth and pruning make them."""

    values: Tensor
    """The parameter's new content, its own shape [capacity, ...]."""
    fresh: Tensor
    """bool [capacity]: rows that start with zero moments."""
    source: Tensor
    """long [capacity]: the row whose moments each row takes over, where it isn't fresh."""


def flatten(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A gathered state as a checkpoint's two flat files: parameters by name, and moments and counters as `name:exp_avg` etc."""
    optim = {f"{name}:{key}": entry[key] for name, entry in state.items() for key in ("step", *MOMENTS)}
    return {name: entry["param"] for name, entry in state.items()}, optim


def unflatten(shared: Mapping[str, Tensor], optim: Mapping[str, Tensor]) -> State:
    """The inverse of `flatten`. Raises CheckpointError when a parameter's optimiser state is missing."""
    state: State = {}
    for name, param in shared.items():
        keys = {key: f"{name}:{key}" for key in ("step", *MOMENTS)}
        absent = [key for key in keys.values() if key not in optim]
        if absent:
            raise CheckpointError(
                f"optimiser state {absent[0]} is not in the checkpoint: its two shared files don't belong together"
            )
        state[name] = {"param": param} | {key: optim[at] for key, at in keys.items()}
    return state


def check_fits(state: State, params: Mapping[str, Tensor], groups: Mapping[str, str]) -> dict[str, float]:
    """The step counter of each group in `state`, after checking that all of it fits."""
    steps: dict[str, float] = {}
    if set(state) != set(groups):
        absent, extra = sorted(set(groups) - set(state)), sorted(set(state) - set(groups))
        raise CheckpointError(
            f"the checkpoint lacks parameters {absent} and has unknown {extra}: "
            "it was made with another model; use the config.yaml beside it"
        )
    for name, group in groups.items():
        shape = params[name].shape
        for key in ("param", *MOMENTS):
            if state[name][key].shape != shape:
                raise CheckpointError(
                    f"parameter {name}: {key} is {list(state[name][key].shape)} in the checkpoint, {list(shape)} in the "
                    "model; use the config.yaml beside the checkpoint"
                )
        if steps.setdefault(group, state[name]["step"].item()) != state[name]["step"].item():
            raise CheckpointError(
                f"group {group}: parameter {name} was stepped {state[name]['step'].item():g} times, others "
                f"{steps[group]:g}: a group has one counter; the checkpoint was made with other groups"
            )
    return steps
