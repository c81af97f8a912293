"""IE-Net: what makes the shared field one person (paper Eq. 2 and 3; model.md 2.3)."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fiag_dist.config import EncoderBackend, IdentityConfig
from fiag_dist.model.grid import TriPlane
from fiag_dist.model.layers import ask, first_weight, mlp
from fiag_dist.types import Gaussians


class IdentityNet(nn.Module):
    """Offsets of every raw parameter of every Gaussian, from where the Gaussian is and whose face it shall be.

    One network per branch. Which Gaussians belong to an identity is said by its offsets of opacity, before the sigmoid; nothing is hard-selected.
    """

    def __init__(self, config: IdentityConfig, id_dim: int, num_sh: int, encoder: EncoderBackend = "auto"):
        super().__init__()
        self.config = config
        if not config.enabled:
            return
        self.grid = TriPlane(config.grid, encoder)
        self.project = nn.Linear(id_dim, config.grid.dim, bias=False)
        self.net = mlp(2 * config.grid.dim, config.hidden, config.hidden, 11 + 3 * num_sh)

    @torch.no_grad()
    def restart(self) -> None:
        """Starts anew, with offsets of 0 everywhere; what is drawn comes from torch's generator."""
        if not self.config.enabled:
            return
        for part in (self.grid, self.project, *list(self.net)[::2]):
            cast(nn.Linear, part).reset_parameters()
        cast(nn.Linear, self.net[-1]).weight.zero_()

    def raw(self, means_N3: Float[Tensor, "n 3"], embedding: Float[Tensor, " id_dim"]) -> Float[Tensor, "n outputs"]:
        """The network's unscaled outputs: means 3, quats 4, log scales 3, opacity 1, spherical harmonics."""
        # A unit vector's components are small: at their scale people would differ too little.
        person = self.project(embedding * len(embedding) ** 0.5)
        by_features, by_product = first_weight(self.net).chunk(2, 1)
        # The first layer of [features, features * person], at half the multiplications.
        return ask(self.net, self.grid(means_N3), by_features + by_product * person)

    def forward(self, canonical: Gaussians, embedding: Float[Tensor, " id_dim"]) -> Gaussians:
        """theta_i = theta_c + dtheta_i for the identity with this embedding."""
        if not self.config.enabled:
            return canonical
        out = self.raw(canonical.means.detach(), embedding)
        d_means, d_quats, d_scales, d_opacity, d_dc, d_rest = out.split([3, 4, 3, 1, 3, out.shape[1] - 14], 1)
        return Gaussians(
            means=canonical.means + self.config.means_scale * d_means,
            quats=canonical.quats + d_quats,
            log_scales=canonical.log_scales + d_scales,
            opacities=canonical.opacities + d_opacity[:, 0],
            sh_dc=canonical.sh_dc + d_dc,
            sh_rest=canonical.sh_rest + d_rest.reshape(canonical.sh_rest.shape),
        )
