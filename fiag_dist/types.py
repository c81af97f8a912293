"""The vocabulary between stages. Two conventions hold everywhere:

- numpy images are uint8 [height, width, 3] RGB; torch images are float32 [3, height, width] in 0..1.
- metres, head frame: origin inside the head, x to the person's left, y up, z out of the face; |x|, |y|, |z| <= BOUND_M holds all of the head.
  Cameras are OpenCV (x right, y down, z forward), given as world-to-camera with the head as the world. Quaternions are wxyz.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

BOUND_M = 0.15
"""Half the side of the cube that holds a head, metres (model.md 0)."""

HEAD_ORIGIN_M = 0.033
"""How far our origin lies above that of MediaPipe's canonical face, metres: with its own origin the hair's top is outside the cube."""

NUM_LANDMARKS = 478
AUDIO_FRAMES = 8
"""Windows of speech features that one video frame sees: t-4 .. t+3."""

ACTION_UNITS = ("AU01", "AU02", "AU04", "AU05", "AU06", "AU07", "AU45")
"""Of the upper face, 0..1.2. The mouth must be driven by audio, so no lower-face channel is ever an input."""
GAZE = ("gaze_left", "gaze_up")
"""Where the eyes look, -2..2, against where they look in the middle of the clip: 1 is an iris a twentieth of the eye's width to the person's left, or
three hundredths up."""
EXPRESSION_NAMES = (*ACTION_UNITS[:-1], *GAZE, ACTION_UNITS[-1])
"""The channels that drive the upper face; the last one is the blink."""
LIDS_MEET = 0.4
"""The blink from which on an iris is guessed more than seen."""

STILL = np.eye(3, 4, dtype=np.float32)
"""The `swing` of hair that moves with the face."""

Split = Literal["train", "test"]


class Label(IntEnum):
    """Pixel classes of a sample's label map."""

    BACKGROUND = 0
    TORSO = 1
    HAIR = 2
    FACE = 3
    LIPS = 4
    MOUTH = 5


@dataclass(frozen=True, eq=False)
class Frame:
    """One packed video frame with everything the model needs of it, as it lies in a shard (numpy, host)."""

    identity: str
    index: int
    time_s: float
    split: Split
    image: UInt8[np.ndarray, "size size 3"]
    alpha: UInt8[np.ndarray, "size size"]
    """Person matte x head mask, soft: 255 where the head is."""
    labels: UInt8[np.ndarray, "size size"]
    audio: Float16[np.ndarray, "8 dim window"]
    """Speech features around frames t-4..t+3, zero padded at the clip's ends."""
    embedding: Float32[np.ndarray, " id_dim"]
    """L2-normalised face-recogniser embedding of this frame."""
    viewmat: Float32[np.ndarray, "4 4"]
    K: Float32[np.ndarray, "3 3"]
    swing: Float32[np.ndarray, "3 4"]
    """Where what lies beyond the face (hair, ears, neck) is: x of the head frame is at swing[:, :3] x + swing[:, 3]."""
    expression: Float32[np.ndarray, " channels"]
    landmarks: Float16[np.ndarray, "478 3"]
    """Tracked landmarks brought into the head frame at the depth of the clip's rest shape, metres."""
    lips_rect: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels around the lips, half open."""
    mouth_open: float
    """Gap between the inner lips over the distance between the outer eye corners."""
    blink: float
    """0 open .. 1 closed, mean of both eyes."""


@dataclass(frozen=True, eq=False)
class IdentityMeta:
    """What is stored once for each identity, beside its frames."""

    name: str
    wav: Float32[np.ndarray, " samples"]
    """Mono at the manifest's sample rate, -1..1."""
    plate: UInt8[np.ndarray, "size size 3"]
    """Clean background: the clip without the person, holes filled in."""
    embedding: Float32[np.ndarray, " id_dim"]
    """Mean over the training frames, L2-normalised."""
    rest_landmarks: Float32[np.ndarray, "478 3"]
    """The clip's rest shape: per-landmark median over the training frames, head frame, metres."""
    viewmats: Float32[np.ndarray, "frames 4 4"]
    K: Float32[np.ndarray, "3 3"]
    swing: Float32[np.ndarray, "frames 3 4"]
    expressions: Float32[np.ndarray, "frames channels"]
    speech: Float16[np.ndarray, "frames dim window"]
    """One window of speech features a frame; a sample's `audio` is eight of these."""
    silence: Float16[np.ndarray, "silent dim window"]
    """Windows of what is heard when the clip's sound has ended; none where features were read from files."""
    split: list[Split]
    thumbnail: UInt8[np.ndarray, "size size 3"]
    report: dict = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera looking at the head."""

    viewmat: Float[Tensor, "4 4"]
    """World (head) to camera, OpenCV axes, metres."""
    K: Float[Tensor, "3 3"]
    """Intrinsics in pixels; pixel centres lie at +0.5."""
    width: int
    height: int
    zoom: float = 1.0
    """Side of a pixel that Gaussians learnt from, in pixels of this picture: what blurs them as they are drawn must be as large in both."""

    @property
    def center(self) -> Float[Tensor, "3"]:
        """Where it stands: world, metres."""
        return -self.viewmat[:3, :3].T @ self.viewmat[:3, 3]

    def project(self, points_N3: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Points of the world in pixels."""
        seen = points_N3 @ self.viewmat[:3, :3].T + self.viewmat[:3, 3]
        return (seen @ self.K.T)[:, :2] / seen[:, 2:]


SH_DC = 0.28209479177387814
"""Value of the degree-0 spherical harmonic: colour = SH_DC * sh_dc + 0.5."""


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Raw (pre-activation) parameters of N Gaussians; `opacity = sigmoid(opacities)`, `scale = exp(log_scales)`, rotation normalised when used."""

    means: Float[Tensor, "n 3"]
    quats: Float[Tensor, "n 4"]
    log_scales: Float[Tensor, "n 3"]
    opacities: Float[Tensor, " n"]
    sh_dc: Float[Tensor, "n 3"]
    sh_rest: Float[Tensor, "n k 3"]
    """Spherical-harmonic coefficients above degree 0: k = (degree + 1)^2 - 1."""

    def __len__(self) -> int:
        return len(self.means)


def rotations(quats: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 3"]:
    """Matrices of quaternions of any length."""
    w, x, y, z = F.normalize(quats, dim=1).unbind(1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, 1).reshape(-1, 3, 3)


def axes(log_scales: Float[Tensor, "n 3"], quats: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 3"]:
    """The columns are Gaussians' axes, each as long as its standard deviation, metres: what is drawn from N(0, 1) they bring into the Gaussian."""
    return rotations(quats) * torch.exp(log_scales)[:, None]


@dataclass(frozen=True, eq=False)
class Rendering:
    """What a rasteriser returns for one view."""

    image: Float[Tensor, "channels height width"]
    """Colours blended over the background."""
    alpha: Float[Tensor, "1 height width"]
    means2d: Float[Tensor, "n 2"]
    """Projected centres in pixels; their `.grad`, which training leaves in them, says where Gaussians are added."""
    radii: Float[Tensor, "n 2"]
    """Extent in pixels, 0 where the Gaussian is not seen."""


@dataclass(frozen=True, eq=False)
class Shot:
    """One training frame on the device: `Frame` as float tensors, with what its identity contributes."""

    identity: str
    index: int
    image: Float[Tensor, "3 size size"]
    alpha: Float[Tensor, "1 size size"]
    labels: UInt8[Tensor, "size size"]
    audio: Float[Tensor, "8 dim window"]
    embedding: Float[Tensor, " id_dim"]
    expression: Float[Tensor, " channels"]
    landmarks: Float[Tensor, "478 3"]
    rest_landmarks: Float[Tensor, "478 3"]
    camera: Camera
    lips_rect: tuple[int, int, int, int]
    blink: float
    mouth_seen: bool = True
    """Whether any pixel shows the inside of the mouth: known on the host, so that nobody waits for a device to find out."""
    shut_lips: Float[Tensor, "lips 3"] | None = None
    """Where this person's LIPS are when they meet, head frame, metres; known in training."""
    hushed: bool = False
    """Silence is heard instead of the frame's speech."""
    swing: Float[Tensor, "3 4"] | None = None
    """As in Frame; None: hair moves with the face."""
    surroundings: Float[Tensor, "3 size size"] | None = None
    """What the head is put over in this lesson: the frame without it. None: a random colour."""
