"""Which implementation does a piece of work on a device: candidates are tried small, once, and the choice can say why."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """The implementation that does the work, and in words why it was taken."""

    name: str
    why: str


def fault_of(trial: Callable[[], None]) -> str:
    """Runs a trial with gradients on. Returns "" when it ends well, else why not, in one line of at most 300 characters."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            trial()
    except (
        Exception
    ) as error:  # a library that does not fit the machine may raise anything, when it is imported or later
        return (" ".join(str(error).split()) or type(error).__name__)[:300]
    return ""


def must_agree(got: Tensor | None, wanted: Tensor | None, what: str, tolerance: float = 2e-3) -> None:
    """Raises RuntimeError when `got` is missing, not finite, or further from `wanted` than `tolerance` of its norm. Waits for the device."""
    assert wanted is not None, what
    if got is None:
        raise RuntimeError(f"{what}: there is none")
    error = float((got.detach().cpu() - wanted.detach().cpu()).norm() / wanted.detach().cpu().norm())
    if not error <= tolerance:  # nan too
        raise RuntimeError(f"{what} is off by {error:.1e} of its norm, {tolerance:.0e} is allowed")
