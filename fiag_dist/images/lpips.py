"""LPIPS, the perceptual distance of two images (AlexNet, version 0.1), in plain torch; differentiable in both."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fiag_dist.errors import WeightsError

_LAYERS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
"""Stride and padding of AlexNet's convolutions; a 3x3 max pooling of stride 2 goes before the second and the third."""
_POOLED = (1, 2)
SMALLEST_PX = 35
"""Below this side nothing is left after the second pooling."""


class Lpips(nn.Module):
    """Distance of images in 0..1; all parameters are frozen. file: `weights.path("lpips-alex")`. Raises WeightsError when it can't be read."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        tree = _read_tree(file)
        try:
            backbone_name = next(name for name in tree if name.lower().startswith("alex"))
            backbone = tree[backbone_name]
            kernels = [backbone[f"Conv_{i}"]["kernel"] for i in range(len(_LAYERS))]
            biases = [backbone[f"Conv_{i}"]["bias"] for i in range(len(_LAYERS))]
            heads = [next(iter(tree[name].values()))["kernel"] for name in sorted(tree) if name != backbone_name]
        except (KeyError, StopIteration, AttributeError) as error:
            raise WeightsError(
                f"weights lpips-alex: not the expected tree of arrays ({error!r}); run: fiag-dist weights fetch"
            ) from error
        for name, arrays in (("kernel", kernels), ("bias", biases), ("head", heads)):
            for i, array in enumerate(arrays):
                value = torch.from_numpy(np.array(array, np.float32))
                # Stored as height, width, in, out.
                self.register_buffer(f"{name}{i}", value.permute(3, 2, 0, 1).contiguous() if value.ndim == 4 else value)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def forward(
        self, a: Float[Tensor, "batch 3 height width"], b: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, " batch"]:
        """One distance an image pair, 0 for equal images. Sides must be at least SMALLEST_PX."""
        assert min(a.shape[-2:]) >= SMALLEST_PX, f"LPIPS needs images of {SMALLEST_PX} px or more, got {tuple(a.shape)}"
        total = torch.zeros(len(a), dtype=a.dtype, device=a.device)
        for i, (x, y) in enumerate(zip(self._features(a), self._features(b), strict=True)):
            apart = (_unit(x) - _unit(y)).square()
            total = total + F.conv2d(apart, self.get_buffer(f"head{i}")).mean((1, 2, 3))
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        """Activations after each of the five convolutions."""
        x = (images * 2 - 1 - self.get_buffer("shift")) / self.get_buffer("scale")
        features = []
        for i, (stride, padding) in enumerate(_LAYERS):
            if i in _POOLED:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, self.get_buffer(f"kernel{i}"), self.get_buffer(f"bias{i}"), stride, padding))
            features.append(x)
        return features


def _unit(x: Tensor) -> Tensor:
    """Channel vectors at length 1; the epsilon under the root keeps the gradient finite where all channels are 0."""
    return x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt()


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and dicts and nothing else: a pickle could otherwise run any code."""

    _ALLOWED = frozenset({("multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and (module.split(".")[-1], name) in self._ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def _read_tree(path: Path) -> dict:
    try:
        with path.open("rb") as stream:
            return _ArraysOnly(stream).load()
    except (pickle.UnpicklingError, OSError, EOFError, AttributeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"weights lpips-alex: {path} can't be read ({error}); run: fiag-dist weights fetch"
        ) from error
