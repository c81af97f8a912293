"""How a person is shown while speaking: how large, over what, and whose head movements and upper face they borrow."""

import re
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor

from fiag_dist.acting.backdrop import Loop, bounce, longest_take
from fiag_dist.acting.rehearsal import Layer
from fiag_dist.errors import ConfigError
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.shards.reader import read_meta
from fiag_dist.storage import open_storage
from fiag_dist.types import Camera

COLOURS = {"green": "#00ff00", "blue": "#0000ff", "black": "#000000", "white": "#ffffff", "grey": "#808080"}
SIZES = (64, 2048)
"""Smallest and largest side of a rendered image, pixels."""
NECK_M = np.array([0.0, -0.11, -0.03])
"""Where a head turns on its neck, metres, head frame."""


@dataclass(frozen=True, kw_only=True)
class Staging:
    """How a person is shown."""

    size: int = 0
    """Side of the images, an even number of pixels, 64 to 2048; 0: the identity's own."""
    background: str = "clip"
    """`clip`: the clip's own torso and background; `green` (blue, black, white, grey) or `#rrggbb`: the head alone on that colour; `alpha`: the head
    alone, transparent elsewhere (frames as PNG)."""
    pose: str = ""
    """SHARDS/IDENTITY: the head turns and nods as another packed clip's does, about its own mean pose; torso and background then stand still."""
    expression: str = ""
    """SHARDS/IDENTITY: brows, lids, blinks and gaze of another packed clip."""
    mark: bool = False
    """Write AI-GENERATED in the lower right corner."""

    def __post_init__(self) -> None:
        if self.size and (self.size % 2 or not SIZES[0] <= self.size <= SIZES[1]):
            raise ConfigError(
                f"size {self.size}: the rule is an even number of pixels, {SIZES[0]} to {SIZES[1]}; for example --size 512"
            )
        if self.background not in ("clip", "alpha"):
            colour(self.background)

    @property
    def channels(self) -> int:
        """3 for RGB, 4 with alpha."""
        return 4 if self.background == "alpha" else 3


@dataclass(frozen=True, eq=False)
class Cue:
    """What one frame shows beside the speech."""

    camera: Camera
    expression: Float[Tensor, " channels"]
    swing: Float[Tensor, "3 4"] | None
    backdrop: UInt8[np.ndarray, "size size 3"] | None
    """None: transparent."""


class Stage:
    """The cues of one rendering, in any order. Everything on it runs back and forth, so that neighbours in time are neighbours in a clip."""

    def __init__(self, loop: Loop, size: int, fps: int, staging: Staging, device: torch.device):
        """size, fps: of the identity. Raises ConfigError for an address that is no SHARDS/IDENTITY, DataError for shards that can't be read."""
        self._loop, self._device = loop, device
        self.size = staging.size or size
        self._zoom = self.size / size
        self._K = torch.from_numpy(loop.K * np.array([[self.size / size], [self.size / size], [1]], np.float32)).to(
            device
        )
        self._viewmats, self._expressions = loop.viewmats, loop.expressions
        self._swing: np.ndarray | None = loop.swing
        self._pose_rate = self._expression_rate = 1.0
        self._still: int | None = None
        if staging.pose:
            self._still = nearest_to_mean(loop.viewmats)
            viewmats, rate = _borrowed(staging.pose, "pose", "viewmats")
            viewmats = viewmats[longest_take(viewmats)]
            self._viewmats, self._pose_rate = retargeted(viewmats, loop.viewmats[self._still]), rate / fps
            self._swing = None  # the other head's hair is not this one's
        if staging.expression:
            self._expressions, rate = _borrowed(staging.expression, "expression", "expressions")
            self._expression_rate = rate / fps
        self._colour: np.ndarray | None = None
        self._clip = staging.background == "clip"
        if staging.background not in ("clip", "alpha"):
            self._colour = np.broadcast_to(np.array(colour(staging.background), np.uint8), (self.size, self.size, 3))

    def cue(self, t: int) -> Cue:
        """Frame t's."""
        pose = bounce(round(t * self._pose_rate), len(self._viewmats))
        expression = bounce(round(t * self._expression_rate), len(self._expressions))
        viewmat = torch.from_numpy(self._viewmats[pose]).to(self._device)
        return Cue(
            Camera(viewmat, self._K, self.size, self.size, self._zoom),
            torch.from_numpy(self._expressions[expression]).to(self._device),
            None if self._swing is None else torch.from_numpy(self._swing[pose]).to(self._device),
            self._backdrop(t) if self._clip else self._colour,
        )

    def _backdrop(self, t: int) -> UInt8[np.ndarray, "size size 3"]:
        image = self._loop.images[self._loop.at(t) if self._still is None else self._still]
        if len(image) == self.size:
            return image
        how = cv2.INTER_AREA if self.size < len(image) else cv2.INTER_CUBIC
        return cv2.resize(image, (self.size, self.size), interpolation=how).astype(np.uint8, copy=False)


def colour(text: str) -> tuple[int, int, int]:
    """Red, green, blue, 0..255, of a name or `#rrggbb`. Raises ConfigError."""
    code = COLOURS.get(text, text)
    if not re.fullmatch("#[0-9a-fA-F]{6}", code):
        raise ConfigError(
            f"background {text!r}: the rule is clip, alpha, {', '.join(COLOURS)} or #rrggbb; for example --background green"
        )
    red, green, blue = (int(code[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue


def nearest_to_mean(viewmats: Float32[np.ndarray, "frames 4 4"]) -> int:
    """The frame whose pose is nearest to the mean of all; a radian counts as much as a decimetre."""
    parts = np.concatenate([viewmats[:, :3, :3].reshape(-1, 9) / 2**0.5, viewmats[:, :3, 3] * 10], 1)
    return int(np.linalg.norm(parts - parts.mean(0), axis=1).argmin())


def retargeted(
    viewmats: Float32[np.ndarray, "frames 4 4"], home: Float32[np.ndarray, "4 4"]
) -> Float32[np.ndarray, "frames 4 4"]:
    """Another head's turns and nods, about its own mean pose and in its own axes, as turns about `home`.

    The head turns about the top of the neck. Where the other person leaned or walked is left out: the torso that the head is shown on stands still.
    """
    rest = viewmats[nearest_to_mean(viewmats), :3, :3].astype(np.float64)
    return (home.astype(np.float64) @ about_neck(rest.T @ viewmats[:, :3, :3])).astype(np.float32)


def about_neck(turns: Float64[np.ndarray, "*batch 3 3"]) -> Float64[np.ndarray, "*batch 4 4"]:
    """Turns of a head in its own axes as rigid motions that leave the top of its neck where it is."""
    moves = np.zeros((*turns.shape[:-2], 4, 4))
    moves[..., :3, :3] = turns
    moves[..., :3, 3] = NECK_M - turns @ NECK_M
    moves[..., 3, 3] = 1
    return moves


def composed(
    layer: Layer, backdrop: UInt8[np.ndarray, "height width 3"] | None
) -> UInt8[np.ndarray, "height width channels"]:
    """The head over a backdrop as RGB, or alone as RGBA whose colours are not premultiplied."""
    x0, y0, x1, y1 = layer.box
    image_3HW, alpha_HW = layer.image[:, y0:y1, x0:x1], layer.alpha[y0:y1, x0:x1]
    if backdrop is None:
        straight_3HW = image_3HW / alpha_HW.clamp(min=1e-6)
        out = np.zeros((*layer.alpha.shape, 4), np.uint8)
        part_4HW = torch.cat([straight_3HW, alpha_HW[None]])
        out[y0:y1, x0:x1] = _bytes(part_4HW * 255)
        return out
    out = np.array(backdrop)
    behind_HW3 = torch.from_numpy(out[y0:y1, x0:x1]).to(image_3HW.device)
    mixed_3HW = torch.addcmul(image_3HW * 255, 1 - alpha_HW, behind_HW3.permute(2, 0, 1).float())
    out[y0:y1, x0:x1] = _bytes(mixed_3HW)
    return out


def _bytes(image_CHW: Tensor) -> np.ndarray:
    return (image_CHW + 0.5).clamp_(0, 255.49).byte().permute(1, 2, 0).cpu().numpy()


def _borrowed(address: str, option: str, name: str) -> tuple[np.ndarray, int]:
    """One of a packed identity's tracks, and its frames a second."""
    shards, _, identity = address.rstrip("/").rpartition("/")
    if not shards or not identity:
        raise ConfigError(
            f"--{option} {address}: the rule is SHARDS/IDENTITY; for example --{option} shards/local/anna"
        )
    storage = open_storage(shards)
    manifest = read_manifest(storage, check=False)
    meta = read_meta(storage, manifest.entry(identity))
    return np.asarray(getattr(meta, name), np.float32), manifest.fps
