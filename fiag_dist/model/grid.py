"""The tri-plane encoder H: features of points from three multi-resolution 2-D grids (model.md 2.1)."""

import importlib.util
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fiag_dist.config import EncoderBackend, GridConfig
from fiag_dist.errors import ConfigError
from fiag_dist.images.backend import Choice, fault_of, must_agree
from fiag_dist.kernels import grid as kernel
from fiag_dist.types import BOUND_M

INSTALL_TCNN = (
    "pip install --no-build-isolation 'git+https://github.com/NVlabs/tiny-cuda-nn#subdirectory=bindings/torch'"
)


class TriPlane(nn.Module):
    """Learnable features on the xy, yz and xz planes of the head's cube.

    One parameter, `table` [3, rows, features], float32, is laid out as tiny-cuda-nn lays out its HashGrid, whatever the backend: a checkpoint
    moves between machines.
    """

    def __init__(self, config: GridConfig, backend: EncoderBackend = "auto") -> None:
        """Raises ConfigError for sizes that make no grid, or for backend `tcnn` where it can't run."""
        super().__init__()
        if min(config.levels, config.features, config.log2_table) < 1 or not 2 <= config.base <= config.finest:
            raise ConfigError(
                f"{config}: the rule is levels, features, log2_table >= 1 and 2 <= base <= finest; change the grid's settings"
            )
        if backend == "tcnn":
            choose("tcnn", torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None)
        self.config = config
        self.backend: EncoderBackend = backend
        self.layout = kernel.layout(config.levels, config.base, config.finest, config.log2_table)
        self.table = nn.Parameter(torch.empty(3, self.layout.rows, config.features))
        self.reset_parameters()
        self.torch_grid = TorchGrid(self.layout, config.features)
        self._tcnn: list[nn.Module] = []  # in a list: its own parameters are not ours to save

    def reset_parameters(self) -> None:
        """Draws the table anew from torch's generator."""
        nn.init.uniform_(self.table, -self.config.init, self.config.init)

    def forward(self, points_N3: Float[Tensor, "n 3"]) -> Float[Tensor, "n d"]:
        """points_N3: metres, head frame. Returns [N, config.dim]: plane by plane (xy, yz, xz), then level, then feature.

        Outside the cube |x| <= BOUND_M features and gradients are 0. Gradients go to the table and, where wanted, to the points. Raises ConfigError
        for a backend that can't run where the points are (`choose`).
        """
        unit_N3 = points_N3.float() / (2 * BOUND_M) + 0.5
        backend = choose(self.backend, points_N3.device).name
        if backend == "cpu":
            return kernel.encode(unit_N3, self.table, self.layout)
        inside_N1 = ((unit_N3 >= 0) & (unit_N3 <= 1)).all(-1, keepdim=True)
        unit_N3 = torch.where(inside_N1, unit_N3, 0.5)
        if backend == "tcnn":
            if not self._tcnn:
                self._tcnn.append(_tcnn_encoding(self.config, self.layout))
            return torch.where(inside_N1, _encode_tcnn(self._tcnn[0], unit_N3, self.table), 0.0)
        return torch.where(inside_N1, self.torch_grid(unit_N3, self.table), 0.0)


def choose(wanted: EncoderBackend, device: torch.device | None) -> Choice:
    """The backend for points on `device` (None: no device can be had): the CPU kernel for host memory; on CUDA tiny-cuda-nn where it agrees with torch.

    tiny-cuda-nn is tried once for each device. Raises ConfigError where `wanted` can't run.
    """
    kind = device.type if device else "absent"
    if wanted == "torch":
        return Choice("torch", "it was asked for")
    if device and kind == "cuda" and wanted in ("auto", "tcnn"):
        fault = _tcnn_fault(device)
        if not fault:
            return Choice("tcnn", "tiny-cuda-nn agrees with torch on a small grid")
        if wanted == "auto":
            return Choice("torch", f"tiny-cuda-nn: {fault}")
        raise ConfigError(
            f"encoder backend tcnn on {device}: {fault}; run: {INSTALL_TCNN}, or use backend auto or torch"
        )
    if wanted == "tcnn":
        found = f"points are on {device}" if device else "torch sees no CUDA device"
        raise ConfigError(f"encoder backend tcnn: {found}, the rule is a CUDA device; use backend auto or torch")
    if wanted == "cpu" and kind != "cpu":
        raise ConfigError(f"encoder backend cpu: points are on {device}, the rule is cpu; use backend auto or torch")
    return Choice("cpu", "points in host memory") if kind == "cpu" else Choice("torch", f"points on {device}")


def try_out(backend: str, device: torch.device) -> None:
    """Encodes some points in a small grid, hashed in its finest levels, with gradients; raises RuntimeError unless all agree with torch on the CPU."""
    config = GridConfig(levels=4, features=2, base=4, finest=40.0, log2_table=8)
    layout = kernel.layout(config.levels, config.base, config.finest, config.log2_table)
    points_N3 = 0.5 + 0.49 * torch.sin(torch.arange(150.0)).reshape(-1, 3)
    table_3RF = torch.sin(3 * torch.arange(3.0 * layout.rows * config.features)).reshape(3, layout.rows, -1)
    results: list[list[Tensor | None]] = []
    for name, where in ((backend, device), ("torch", torch.device("cpu"))):
        points, table = (x.to(where, copy=True).requires_grad_() for x in (points_N3, table_3RF))
        if name == "tcnn":
            features = _encode_tcnn(_tcnn_encoding(config, layout), points, table)
        elif name == "cpu":
            features = kernel.encode(points, table, layout)
        else:
            features = TorchGrid(layout, config.features).to(where)(points, table)
        (features * torch.linspace(-1, 1, features.shape[1], device=where)).sum().backward()
        results.append([features, table.grad, points.grad])
    for what, got, wanted in zip(("features", "the table's gradient", "the points' gradient"), *results, strict=True):
        must_agree(got, wanted, what)


class TorchGrid(nn.Module):
    """The encoder in torch operations: any device and float type. The layout lies on the device with the module, so that a step brings nothing there."""

    sides: Tensor
    offsets: Tensor
    sizes: Tensor
    scales: Tensor
    hashed: Tensor
    features: Tensor

    def __init__(self, layout: kernel.Layout, features: int) -> None:
        super().__init__()
        ends = torch.from_numpy(layout.offsets)
        for name, values in {
            "sides": torch.from_numpy(layout.sides),
            "offsets": torch.arange(kernel.PLANES)[:, None, None] * layout.rows + ends[:-1],
            "sizes": ends.diff(),
            "scales": torch.from_numpy(layout.scales),
            "hashed": torch.from_numpy(layout.hashed),
            "features": torch.arange(features),
        }.items():
            self.register_buffer(name, values.clone(), persistent=False)

    def forward(self, unit_N3: Float[Tensor, "n 3"], table_3RF: Float[Tensor, "3 rows f"]) -> Float[Tensor, "n d"]:
        """unit_N3: 0..1. All planes (P) and levels (L) at once, the four corners one after the other."""
        x, y, z = unit_N3.unbind(-1)
        pos_APNL = torch.stack([torch.stack([x, y, x]), torch.stack([y, z, z])])[..., None] * self.scales + 0.5
        corner_APNL = pos_APNL.detach().floor()
        fu, fv = pos_APNL - corner_APNL
        iu, iv = corner_APNL.long()
        out_PNLF = torch.zeros((), device=unit_N3.device)
        for du, dv in ((0, 0), (1, 0), (0, 1), (1, 1)):
            u_PNL, v_PNL = iu + du, iv + dv
            dense_PNL = u_PNL + v_PNL * self.sides
            dense_PNL = torch.where(dense_PNL < self.sizes, dense_PNL, dense_PNL - self.sizes)
            hash_PNL = (u_PNL ^ v_PNL * kernel.PRIME) & (self.sizes - 1)  # of a hashed level, a power of two
            row_PNL = torch.where(self.hashed, hash_PNL, dense_PNL) + self.offsets
            place_PNLF = (row_PNL * len(self.features))[..., None] + self.features
            # A flat table: adding up its gradient entry by entry is much faster than row by row.
            value_PNLF = table_3RF.flatten().index_select(0, place_PNLF.flatten()).reshape(place_PNLF.shape)
            weight_PNL = (fu if du else 1 - fu) * (fv if dv else 1 - fv)
            out_PNLF = out_PNLF + value_PNLF * weight_PNL[..., None]
        return out_PNLF.permute(1, 0, 2, 3).flatten(1)


@lru_cache
def _tcnn_fault(device: torch.device) -> str:
    """Why tiny-cuda-nn can't be used on this device; "" when it can."""
    if importlib.util.find_spec("tinycudann") is None:
        return "not installed"
    return fault_of(lambda: try_out("tcnn", device))


def _encode_tcnn(encoding: nn.Module, unit_N3: Tensor, table_3RF: Tensor) -> Tensor:
    """tiny-cuda-nn, plane by plane, with our rows in the place of its own parameters."""
    x, y, z = unit_N3.unbind(-1)
    planes = [
        torch.func.functional_call(encoding, {"params": rows_RF.reshape(-1)}, (torch.stack(axes, -1),))
        for axes, rows_RF in zip(((x, y), (y, z), (x, z)), table_3RF, strict=True)
    ]
    return torch.cat(planes, -1)


def _tcnn_encoding(config: GridConfig, layout: kernel.Layout) -> Any:
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
