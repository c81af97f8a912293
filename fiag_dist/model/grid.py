"""The tri-plane encoder H: features of points from three multi-resolution 2-D grids (model.md 2.1)."""

import importlib.util
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fiag_dist.config import GridConfig
from fiag_dist.errors import ConfigError
from fiag_dist.kernels import grid as kernel
from fiag_dist.types import BOUND_M

Backend = Literal["auto", "cpu", "torch", "tcnn"]
PLANE_AXES = ((0, 1), (1, 2), (0, 2))


class TriPlane(nn.Module):
    """Learnable features on the xy, yz and xz planes of the head's cube.

    One parameter, `table` [3, rows, features], float32, is laid out as tiny-cuda-nn lays out its HashGrid, whatever the backend: a checkpoint
    moves between machines. `auto` takes the CPU kernel on the host and, on CUDA, tiny-cuda-nn where it is installed, else torch.
    """

    def __init__(self, config: GridConfig, backend: Backend = "auto") -> None:
        """Raises ConfigError for sizes that make no grid, or for backend `tcnn` where it can't run."""
        super().__init__()
        if min(config.levels, config.features, config.log2_table) < 1 or not 2 <= config.base <= config.finest:
            raise ConfigError(
                f"{config}: the rule is levels, features, log2_table >= 1 and 2 <= base <= finest; change the grid's settings"
            )
        if backend == "tcnn" and not tcnn_available():
            raise ConfigError(
                "encoder backend tcnn: no CUDA device, or tiny-cuda-nn is not installed; use backend auto or torch"
            )
        self.config = config
        self.backend: Backend = backend
        self.layout = kernel.layout(config.levels, config.base, config.finest, config.log2_table)
        self.table = nn.Parameter(torch.empty(3, self.layout.rows, config.features).uniform_(-config.init, config.init))
        self._tcnn: list[Any] = []  # in a list: its own parameters are not ours to save

    def forward(self, points_N3: Float[Tensor, "n 3"]) -> Float[Tensor, "n d"]:
        """points_N3: metres, head frame. Returns [N, config.dim]: plane by plane (xy, yz, xz), then level, then feature.

        Outside the cube |x| <= BOUND_M features and gradients are 0. Gradients go to the table and, where wanted, to the points.
        """
        unit_N3 = points_N3.float() / (2 * BOUND_M) + 0.5
        backend = self._backend(points_N3)
        if backend == "cpu":
            return kernel.encode(unit_N3, self.table, self.layout)
        inside_N1 = ((unit_N3 >= 0) & (unit_N3 <= 1)).all(-1, keepdim=True)
        unit_N3 = torch.where(inside_N1, unit_N3, 0.5)
        encode = self._encode_tcnn if backend == "tcnn" else self._encode_torch
        planes = [encode(unit_N3[:, axes], self.table[plane]) for plane, axes in enumerate(PLANE_AXES)]
        return torch.where(inside_N1, torch.cat(planes, -1), 0.0)

    def _backend(self, points: Tensor) -> Literal["cpu", "torch", "tcnn"]:
        if self.backend == "auto":
            return "cpu" if points.device.type == "cpu" else "tcnn" if points.is_cuda and tcnn_available() else "torch"
        wanted = {"cpu": "cpu", "tcnn": "cuda"}.get(self.backend, points.device.type)
        if points.device.type != wanted:
            raise ConfigError(
                f"encoder backend {self.backend}: points are on {points.device}, the rule is {wanted}; use backend auto or torch"
            )
        return self.backend

    def _encode_torch(self, uv_N2: Tensor, table_RF: Tensor) -> Tensor:
        """One plane, any device and float type."""
        grid, device = self.layout, uv_N2.device
        sides_L, offsets_L = torch.from_numpy(grid.sides).to(device), torch.from_numpy(grid.offsets[:-1]).to(device)
        sizes_L = torch.from_numpy(grid.offsets[1:] - grid.offsets[:-1]).to(device)
        scales_L = torch.from_numpy(grid.scales).to(uv_N2)
        pos_NL2 = uv_N2[:, None] * scales_L[:, None] + 0.5
        corner_NL2 = pos_NL2.detach().floor()
        fx_NL, fy_NL = (pos_NL2 - corner_NL2).unbind(-1)
        ix_NL, iy_NL = corner_NL2.long().unbind(-1)
        out_NLF = torch.zeros((), device=device)
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            x_NL, y_NL = ix_NL + dx, iy_NL + dy
            hash_NL = x_NL ^ (y_NL * kernel.PRIME & 0xFFFFFFFF)
            row_NL = (
                torch.where(torch.from_numpy(grid.hashed).to(device), hash_NL, x_NL + y_NL * sides_L) % sizes_L
                + offsets_L
            )
            weight_NL = (fx_NL if dx else 1 - fx_NL) * (fy_NL if dy else 1 - fy_NL)
            out_NLF = out_NLF + table_RF[row_NL] * weight_NL[..., None]
        return out_NLF.flatten(1)

    def _encode_tcnn(self, uv_N2: Tensor, table_RF: Tensor) -> Tensor:
        """One plane through tiny-cuda-nn, with our rows in the place of its own parameters."""
        if not self._tcnn:
            self._tcnn.append(_tcnn_encoding(self.config, self.layout))
        return torch.func.functional_call(self._tcnn[0], {"params": table_RF.reshape(-1)}, (uv_N2,))


def tcnn_available() -> bool:
    """Whether tiny-cuda-nn is installed and torch sees a CUDA device (its import fails without one)."""
    return torch.cuda.is_available() and importlib.util.find_spec("tinycudann") is not None


def _tcnn_encoding(config: GridConfig, layout: kernel.Layout) -> nn.Module:
    import tinycudann  # type: ignore[import-not-found]  # no package index has it, and its import needs a CUDA device

    settings = {
        "otype": "HashGrid",
        "n_levels": config.levels,
        "n_features_per_level": config.features,
        "log2_hashmap_size": config.log2_table,
        "base_resolution": config.base,
        "per_level_scale": layout.growth,
    }
    encoding = tinycudann.Encoding(2, settings, dtype=torch.float32)
    if encoding.params.numel() != layout.rows * config.features:
        raise ConfigError(
            f"encoder backend tcnn: tiny-cuda-nn makes {encoding.params.numel()} numbers of {config}, the layout has "
            f"{layout.rows * config.features}; use backend torch"
        )
    return encoding
