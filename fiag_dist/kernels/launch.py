"""What all kernels share: how tensors come in, how loops become parallel, and that one kernel runs at a time."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

PARALLEL: Any = dict.fromkeys(
    ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"), False
)
PARALLEL["prange"] = True
"""numba's `parallel`: explicit prange alone. Turning array expressions inside it into loops of their own gains nothing and takes compile time."""

_one_at_a_time = threading.Lock()


def launch(kernel: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a compiled kernel. Threads of this process take turns: numba's simplest threading layer ends the process when two enter it at once."""
    with _one_at_a_time:
        return kernel(*arguments)


def array(tensor: Tensor) -> np.ndarray:
    """The tensor's values as C-contiguous float32, without a copy where they are that already: one type, so that each kernel is compiled once."""
    return tensor.detach().to(torch.float32).contiguous().numpy()
