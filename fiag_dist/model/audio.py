"""From windows of speech features to the code that moves a face (model.md 2.4)."""

from collections.abc import Iterable
from itertools import chain, pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from fiag_dist.config import AudioConfig
from fiag_dist.model.lipreader import MOTIONS, LipReader

Speech = tuple[Float[Tensor, "_ 8 dim window"], Float[Tensor, "_ 8"]]
"""Windows [frames, 8, dim, window], and presence of a voice in each [frames, 8], 0..1."""
TAPS = (1, 3, 4, 5, 7)
"""Of the eight windows t-4 .. t+3, those at -3, -1, 0, 1 and 3."""
CODE_DIM = 32


def taps(
    audio_8CW: Float[Tensor, "*batch 8 dim window"], which_5: Int64[Tensor, "5"]
) -> Float[Tensor, "*batch five_dims"]:
    """Five windows, each averaged over its steps, one after the other: what the principal components are taken of.

    which_5: TAPS, where the windows are: as a tuple they would be brought to a GPU each time, which the host would wait for.
    """
    return audio_8CW.index_select(-3, which_5).mean(-1).flatten(-2)


def held(audio_8CW: Float[Tensor, "8 dim window"]) -> Float[Tensor, "8 dim window"]:
    """Windows beyond a clip's ends are zeros, which no speech sounds like: they hear what its first or last frame hears instead."""
    there_8 = (
        (audio_8CW != 0).flatten(1).any(1).byte()
    )  # a size that depends on values would make the host wait for a GPU
    first, last = there_8.argmax(), len(there_8) - 1 - there_8.flip(0).argmax()  # 0 and 7 where nothing is there
    return audio_8CW[torch.arange(len(there_8), device=audio_8CW.device).clamp(first, last)]


Gate = tuple[float, float]
"""Estimated presence of a voice below which a window is silence, and above which it is heard as it is."""
WIDE: Gate = (0.1, 0.4)
"""Of a listener that was shown digital silence: its estimates there stay below 0.1."""
NARROW: Gate = (0.45, 0.6)
"""Of one that was not: they may reach 0.45."""
RIDGE = 300.0


class Listener(nn.Module):
    """What all networks of a model hear: whitened principal components, what lips do to them, or standardised features. Fitted, never trained.

    Where there is no voice it hears one and the same silence (`AudioConfig.silence`): a lip must not move with the noise of a room.
    """

    center: Tensor
    voice: Tensor
    gate: Tensor
    mean: Tensor
    basis: Tensor
    taps: Tensor

    def __init__(self, config: AudioConfig, dim: int, window: int):
        super().__init__()
        self.config, self.dim, self.window = config, dim, window
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("voice", torch.cat([torch.zeros(dim), torch.ones(1)]))
        self.register_buffer("gate", torch.tensor(NARROW))
        self.register_buffer("taps", torch.tensor(TAPS), persistent=False)
        by_components = config.code != "net"
        self.register_buffer("mean", torch.zeros(len(TAPS) * dim if by_components else 0))
        self.register_buffer("basis", torch.zeros(len(TAPS) * dim, config.dim) if by_components else torch.ones(dim))
        self.lips = LipReader(config.dim + 1) if config.code == "lips" else None

    @torch.no_grad()
    def fit(self, speech: Iterable[Speech], silence: Iterable[Speech] = ()) -> None:
        """Takes mean and spread of the training frames of many clips, and learns to tell a voice. Batches of speech are asked for several times over.

        silence: what is heard where sound has ended: clips themselves seldom show it.
        """
        windows = 0
        total_C, presence = torch.zeros(self.dim, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for audio_T8CW, voiced_T8 in speech:
            windows += voiced_T8.numel()
            total_C += audio_T8CW.mean(-1).sum((0, 1), dtype=torch.float64)
            presence += voiced_T8.sum(dtype=torch.float64)
        self.center.copy_(total_C / windows)
        if self.config.silence:
            ended = [batch for batch in silence if len(batch[0])]
            self.gate.copy_(torch.tensor(WIDE if ended else NARROW))
            self._learn_voice(chain(speech, ended), presence / windows)
        if self.config.code == "net":
            self._learn_spread(speech, windows)
        else:
            self._learn_components(speech, windows // 8)

    def _learn_voice(self, speech: Iterable[Speech], mean: Tensor) -> None:
        """A linear estimate of how much of a voice a window has, by ridge regression."""
        scatter_CC = RIDGE * torch.eye(self.dim, dtype=torch.float64)
        product_C = torch.zeros(self.dim, dtype=torch.float64)
        for audio_T8CW, voiced_T8 in speech:
            x_MC = (audio_T8CW.mean(-1) - self.center).flatten(0, 1).double()
            scatter_CC.addmm_(x_MC.T, x_MC)
            product_C += x_MC.T @ (voiced_T8.flatten().double() - mean)
        self.voice.copy_(torch.cat([torch.linalg.solve(scatter_CC, product_C), mean[None]]))

    def _learn_spread(self, speech: Iterable[Speech], windows: int) -> None:
        """One over the standard deviation of each feature."""
        sums_2C = torch.zeros(2, self.dim, dtype=torch.float64)
        for audio_T8CW, _ in speech:
            clean = self._clean(audio_T8CW).double()
            sums_2C += torch.stack([clean.mean(-1).sum((0, 1)), clean.square().mean(-1).sum((0, 1))])
        mean_C, square_C = sums_2C / windows
        self.basis.copy_(1 / ((square_C - mean_C.square()).clamp(min=0).sqrt() + 1e-3))

    def _learn_components(self, speech: Iterable[Speech], frames: int) -> None:
        """Principal components, each over its standard deviation."""
        total_D = torch.zeros(len(self.mean), dtype=torch.float64)
        scatter_DD = torch.zeros(len(total_D), len(total_D), dtype=torch.float64)
        for audio_T8CW, _ in speech:
            x_TD = taps(self._clean(audio_T8CW), self.taps).double()
            total_D += x_TD.sum(0)
            scatter_DD.addmm_(x_TD.T, x_TD)
        self.mean.copy_(total_D / frames)
        scatter_DD.addr_(total_D, total_D, alpha=-1 / frames)
        variances, directions = torch.linalg.eigh(scatter_DD)
        spread = variances.flip(0).clamp(min=0).sqrt()[: self.config.dim]
        count = int((spread > 1e-3 * spread[0]).sum())  # with few frames the last components are noise: left at 0
        deviation = spread[:count] / max(frames - 1, 1) ** 0.5
        self.basis[:, :count] = (directions.flip(1)[:, :count] / deviation).float()

    @torch.no_grad()
    def watch(
        self,
        audio_T8CW: Float[Tensor, "frames 8 dim window"],
        motions_TM: Float[Tensor, "frames motions"],
        weight: float,
    ) -> None:
        """Learns what lips do (`lipreader.motions`) from frames of which each counts as `weight`; for code `lips`, once it is fitted."""
        assert self.lips is not None
        self.lips.add(self._known(audio_T8CW), motions_TM, weight)

    def forward(self, audio_8CW: Float[Tensor, "8 dim window"]) -> Tensor:
        """[pca dim] for code `pca`, in training with noise; for `lips` [1 + motions]: how much of a voice, and what lips do; [8, dim, window] for `net`."""
        windows_8CW = held(audio_8CW)
        if self.lips is not None:
            return self._read(self._known(windows_8CW))
        code = self._code(self._clean(windows_8CW))
        noisy = self.training and self.config.code == "pca"
        return code + self.config.noise * torch.randn_like(code) if noisy else code

    def hush(self) -> Float[Tensor, " dim"] | None:
        """The features nearest to the mean window in which the estimate of a voice is 0; None for a listener that takes everything for a voice."""
        way_C, most = self.voice[:-1], self.voice[-1]
        steep = way_C @ way_C
        return self.center - most / steep * way_C if steep > 0 else None

    def silence(self) -> Tensor:
        """What is heard where nobody speaks, always without noise: every silence is the same."""
        code = self._code(self.center.new_zeros(8, self.dim, self.window))
        return code if self.lips is None else self._read(torch.cat([code, code.new_zeros(1)]))

    def _read(self, known: Float[Tensor, " known"]) -> Float[Tensor, " heard"]:
        """Silence is the code of an average window, in the midst of speech: what tells it apart is that no voice is there."""
        assert self.lips is not None
        return torch.cat([known[-1:], self.lips(known)])

    def _known(self, audio_8CW: Float[Tensor, "*batch 8 dim window"]) -> Float[Tensor, "*batch known"]:
        """What lips are read from: the code, and how much of a voice there is."""
        deviation_8CW = audio_8CW - self.center[:, None]
        presence_8 = self._presence(deviation_8CW)
        code = self._code(deviation_8CW * presence_8[..., None, None])
        return torch.cat([code, presence_8.index_select(-1, self.taps).mean(-1, keepdim=True)], -1)

    def _code(self, clean_8CW: Float[Tensor, "*batch 8 dim window"]) -> Tensor:
        if self.config.code == "net":
            return clean_8CW * self.basis[:, None]
        return (taps(clean_8CW, self.taps) - self.mean) @ self.basis

    def _clean(self, audio_8CW: Float[Tensor, "*batch 8 dim window"]) -> Float[Tensor, "*batch 8 dim window"]:
        """Deviations from the mean window, 0 where nobody speaks."""
        deviation_8CW = audio_8CW - self.center[:, None]
        return deviation_8CW * self._presence(deviation_8CW)[..., None, None]

    def _presence(self, deviation_8CW: Float[Tensor, "*batch 8 dim window"]) -> Float[Tensor, "*batch 8"]:
        """How much of a voice is in each window, 0..1."""
        estimate_8 = deviation_8CW.mean(-1) @ self.voice[:-1] + self.voice[-1]
        quiet, clear = self.gate
        return ((estimate_8 - quiet) / (clear - quiet)).clamp(0, 1)


class AudioCode(nn.Module):
    """One network's own reading of what the listener heard: [32]."""

    def __init__(self, config: AudioConfig, dim: int, window: int):
        super().__init__()
        widths = {"pca": config.dim, "lips": 1 + MOTIONS}
        self.net = AudioNet(dim, window) if config.code == "net" else nn.Linear(widths[config.code], CODE_DIM)

    def forward(self, heard: Tensor) -> Float[Tensor, "32"]:
        return self.net(heard)


class AudioNet(nn.Module):
    """Four strided convolutions over each window, then attention over the eight (the relatives' AudioNet and AudioAtt)."""

    def __init__(self, dim: int, window: int):
        super().__init__()
        wide = 128 if dim >= 128 else 32
        widths = [dim, wide, wide, 64, 64]
        steps: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            steps += [nn.Conv1d(width_in, width_out, 3, stride=2, padding=1), nn.LeakyReLU(0.02)]
        self.windows = nn.Sequential(*steps)
        self.project = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.02), nn.Linear(64, CODE_DIM))
        halving: list[nn.Module] = []
        for width in (32, 16, 8, 4, 2):
            halving += [nn.Conv1d(width, width // 2, 3, padding=1), nn.LeakyReLU(0.02)]
        self.attention = nn.Sequential(*halving)
        self.weigh = nn.Linear(8, 8)

    def forward(self, heard_8CW: Float[Tensor, "8 dim window"]) -> Float[Tensor, "32"]:
        codes_8D = self.project(self.windows(heard_8CW).mean(-1))
        scores = self.weigh(self.attention(codes_8D.T[None])[0, 0])
        return F.softmax(scores, -1) @ codes_8D
