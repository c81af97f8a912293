"""The motion fields: one universal UM-Net, one small IM-Net per person, and the hook between face and mouth (paper Eq. 5 to 8)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fiag_dist.config import EncoderBackend, GridConfig, MotionConfig
from fiag_dist.errors import ConfigError
from fiag_dist.model.audio import CODE_DIM, AudioCode
from fiag_dist.model.grid import TriPlane
from fiag_dist.model.layers import ask, beside, first_weight, mlp
from fiag_dist.types import EXPRESSION_NAMES

NUM_EXPRESSION = len(EXPRESSION_NAMES)
METRES = 1e-2
"""One unit of a motion network's position output."""
SPLIT_M = 0.004
"""Softness of the border between what audio and what expression drives."""


@dataclass(frozen=True, eq=False)
class Motion:
    """What moves each Gaussian: added to its raw parameters."""

    means: Float[Tensor, "n 3"]
    """Metres, head frame."""
    quats: Float[Tensor, "n 4"]
    log_scales: Float[Tensor, "n 3"]
    attention: Float[Tensor, "n 2"] | None = None
    """Norms of the audio and the expression attention (form `attention` only)."""
    own: Float[Tensor, "n 3"] | None = None
    """The part of `means` that the personal net asked for, before the gate."""
    gate: Float[Tensor, "n 1"] | None = None
    """How far the gate is open: 1 on the face, 0 beyond it."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where the universal motion is looked up for a point of this person, and how strongly it applies."""

    offset: Float[Tensor, "n 3"]
    """Metres."""
    factor: Float[Tensor, "n 3"]


@dataclass(frozen=True, eq=False)
class Drive:
    """What a frame says and shows: the input of all motion networks."""

    heard: Tensor
    """The listener's output."""
    expression: Float[Tensor, " channels"]
    swing: Float[Tensor, "3 4"] | None = None
    """Of hair, as in Frame; None: it moves with the face."""


class FaceMotionNet(nn.Module):
    """Motion of face points from their features, the audio code and the expression: UM-Net's and IM-Net's common shape."""

    def __init__(
        self,
        config: MotionConfig,
        grid: GridConfig,
        hidden: int,
        audio_dim: int,
        audio_window: int,
        encoder: EncoderBackend = "auto",
    ):
        super().__init__()
        self.config = config
        self.grid: nn.Module = TriPlane(grid, encoder)
        self.audio = AudioCode(config.audio, audio_dim, audio_window)
        dim = grid.dim
        if config.form == "direct":
            self.net = mlp(dim + CODE_DIM + NUM_EXPRESSION, hidden, hidden, 10)
        else:
            self.audio_attention = mlp(dim, 32, CODE_DIM)
            self.expression_attention = mlp(dim, 16, NUM_EXPRESSION)
            self.expression_code = mlp(NUM_EXPRESSION - 1, 16, NUM_EXPRESSION - 1)
            self.net = mlp(dim + CODE_DIM + NUM_EXPRESSION, hidden, hidden, 10)

    def forward(self, points_N3: Float[Tensor, "n 3"], drive: Drive, upper_N1: Float[Tensor, "n 1"]) -> Motion:
        """points_N3: metres, head frame. upper_N1: 1 where expression drives, 0 where audio does."""
        return self.from_features(self.grid(points_N3), drive, upper_N1)

    def from_features(self, features: Float[Tensor, "n dim"], drive: Drive, upper_N1: Float[Tensor, "n 1"]) -> Motion:
        """The motion of points whose grid features are known."""
        audio, expression = self.audio(drive.heard), drive.expression
        if self.config.form == "direct":
            # The first layer of [features, audio * its share, expression * its share]; both are the same for all points.
            by_features, by_audio, by_expression = first_weight(self.net).split(
                [features.shape[1], CODE_DIM, NUM_EXPRESSION], 1
            )
            shares_N2 = (
                torch.cat([1 - upper_N1, upper_N1], 1) if self.config.drive_split else torch.ones_like(features[:, :2])
            )
            driven_2H = torch.stack([by_audio @ audio, by_expression @ expression])
            entered, first = beside(features, shares_N2), torch.cat([by_features, driven_2H.T], 1)
            out, attention = ask(self.net, entered, first) * self.config.output_scale, None
        else:
            weights_a, weights_e = self.audio_attention(features), F.relu(self.expression_attention(features))
            coded = torch.cat([self.expression_code(expression[:-1]), expression[-1:]])  # the blink goes in as it is
            out = self.net(torch.cat([features, audio * weights_a, coded * weights_e], 1))
            attention = torch.stack([weights_a.norm(dim=1), weights_e.norm(dim=1)], 1)
        return Motion(out[:, :3] * METRES, out[:, 3:7], out[:, 7:10], attention)


class PersonalNet(FaceMotionNet):
    """IM-Net: how this one person moves, and where and how strongly the universal motion applies to this face."""

    def __init__(self, config: MotionConfig, audio_dim: int, audio_window: int, encoder: EncoderBackend = "auto"):
        super().__init__(config, config.personal_grid, config.personal_hidden, audio_dim, audio_window, encoder)
        if config.align:
            self.align = mlp(config.personal_grid.dim, config.personal_hidden, 6)

    def aligned(
        self, points_N3: Float[Tensor, "n 3"], drive: Drive, upper_N1: Float[Tensor, "n 1"]
    ) -> tuple[Motion, Alignment]:
        """This person's own motion, and how the universal motion fits this face."""
        features = self.grid(points_N3)
        own = self.from_features(features, drive, upper_N1)
        if not self.config.align:
            return own, Alignment(torch.zeros_like(points_N3), torch.ones_like(points_N3))
        out = ask(self.align, features, first_weight(self.align))
        return own, Alignment(out[:, :3] * METRES, torch.tanh(out[:, 3:] / 5) * 0.25 + 1)


class StillNet(PersonalNet):
    """An IM-Net that is left out (`MotionConfig.personal`): nothing to learn, and nothing moves but as UM-Net says."""

    def __init__(self, config: MotionConfig):
        nn.Module.__init__(self)
        self.config = config
        self.grid = nn.Identity()

    def from_features(self, features: Float[Tensor, "n dim"], drive: Drive, upper_N1: Float[Tensor, "n 1"]) -> Motion:
        n = len(features)
        return Motion(*(features.new_zeros(n, width) for width in (3, 4, 3)))

    def aligned(
        self, points_N3: Float[Tensor, "n 3"], drive: Drive, upper_N1: Float[Tensor, "n 1"]
    ) -> tuple[Motion, Alignment]:
        still = self.from_features(points_N3, drive, upper_N1)
        return still, Alignment(torch.zeros_like(points_N3), torch.ones_like(points_N3))


class MouthMotionNet(nn.Module):
    """Motion of the inside of the mouth from audio and the hook; mainly up and down."""

    axes: Tensor

    def __init__(self, config: MotionConfig, audio_dim: int, audio_window: int, encoder: EncoderBackend = "auto"):
        super().__init__()
        self.scale = config.output_scale if config.form == "direct" else 1.0
        self.grid = TriPlane(config.mouth_grid, encoder)
        self.audio = AudioCode(config.audio, audio_dim, audio_window)
        self.net = mlp(config.mouth_grid.dim + CODE_DIM + 3, 32, 32, 3)
        self.strength = mlp(config.mouth_grid.dim + 3, 16, 16, 1)
        self.register_buffer("axes", torch.tensor([0.2, 1.0, 0.2]), persistent=False)

    def forward(
        self, points_N3: Float[Tensor, "n 3"], heard: Tensor, hook_3: Float[Tensor, "3"]
    ) -> Float[Tensor, "n 3"]:
        """Displacement in metres, head frame."""
        return self.from_features(self.grid(points_N3), heard, hook_3)

    def from_features(
        self, features: Float[Tensor, "n dim"], heard: Tensor, hook_3: Float[Tensor, "3"]
    ) -> Float[Tensor, "n 3"]:
        """The motion of points whose grid features are known."""
        # What is the same for all points enters as one column of ones.
        entered = beside(features, torch.ones_like(features[:, :1]))
        out = ask(self.net, entered, _gathered(self.net, torch.cat([self.audio(heard), hook_3])))
        strength = 2 * torch.sigmoid(ask(self.strength, entered, _gathered(self.strength, hook_3)))
        return out * strength * self.axes * (METRES * self.scale)


def swung(
    points_N3: Float[Tensor, "n 3"], gate_N1: Float[Tensor, "n 1"], swing_34: Float[Tensor, "3 4"]
) -> Float[Tensor, "n 3"]:
    """Points of a head whose hair is a body of its own: moved as it moves where the gate is shut, not at all where it is open."""
    turn = swing_34[:, :3] - torch.eye(3, device=swing_34.device)
    return points_N3 + (1 - gate_N1) * (points_N3 @ turn.T + swing_34[:, 3])


def _gathered(net: nn.Sequential, shared: Tensor) -> Tensor:
    """First weights of a network whose last inputs are `shared` by all points: these act through one input, which is 1."""
    weight = first_weight(net)
    own = weight.shape[1] - len(shared)
    return torch.cat([weight[:, :own], (weight[:, own:] @ shared)[:, None]], 1)


def hook(d_means_N3: Float[Tensor, "n 3"], k: int = 10) -> Float[Tensor, "3"]:
    """Face-mouth hook E: how far the face's points move up and down (paper, III-C-2).

    d_means_N3: face motion in metres, head frame, y up. Returns [k-th largest, k-th smallest, difference] of y, in centimetres, without gradient.
    Raises ConfigError when k exceeds the number of points.
    """
    y_N = d_means_N3[:, 1].detach()
    if not 1 <= k <= len(y_N):
        raise ConfigError(
            f"hook_k is {k}, but there are {len(y_N)} face points; set train.model.motion.hook_k to at most that"
        )
    high, low = torch.topk(y_N, k).values[-1], torch.topk(y_N, k, largest=False).values[-1]
    return torch.stack([high, low, high - low]) * 100
