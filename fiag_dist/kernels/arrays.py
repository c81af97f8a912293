"""How tensors become what the kernels take."""

import numpy as np
import torch
from torch import Tensor


def array(tensor: Tensor) -> np.ndarray:
    """The tensor's values as C-contiguous float32, without a copy where they are that already: one type, so that each kernel is compiled once."""
    return tensor.detach().to(torch.float32).contiguous().numpy()
