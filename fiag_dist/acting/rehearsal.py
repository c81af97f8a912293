"""An actor that has rehearsed: what is the same in every frame is worked out once, and face and mouth are blended in one pass.

The baked Gaussians lie still until motion comes: how far the gate is open for each, what the grids of IM-Net and of the mouth say there, and where
UM-Net is looked up are known before the first word. The images are `Actor`'s up to rounding, but for single pixels that the face fills to the limit
of blending, where nothing of the mouth shows then.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fiag_dist.acting.actor import Actor
from fiag_dist.images.raster import rasterize
from fiag_dist.kernels.projection import project
from fiag_dist.kernels.raster import blend
from fiag_dist.model.head import Person, shown_colors
from fiag_dist.model.motion import NUM_EXPRESSION, Drive, swung
from fiag_dist.types import AUDIO_FRAMES, Camera, Gaussians


@dataclass(frozen=True, eq=False)
class Layer:
    """A rendered head with nothing behind it, premultiplied: add (1 - alpha) * backdrop."""

    image: Float[Tensor, "3 height width"]
    alpha: Float[Tensor, "height width"]
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels, half open: alpha is 0 outside."""


class Rehearsal:
    """Performs an actor frame by frame, on the device that the actor is on.

    Of the N face Gaussians those M where the gate is open, and which alone can move, come first; otherwise the order is the actor's.
    """

    @torch.inference_mode()
    def __init__(self, actor: Actor):
        universal, personal, rest = actor.universal, actor.personal, actor.person
        gate_N = universal.gate(rest.face.means)[:, 0]
        order_N = torch.argsort((gate_N <= 0).byte(), stable=True)
        num_open = int((gate_N > 0).sum())
        self.rest = Person(_chosen(rest.face, order_N), rest.mouth)
        self._universal, self._personal = universal, personal
        self._gate_N1 = gate_N[order_N, None]
        self._gate_M1 = self._gate_N1[:num_open]
        points_M3 = self.rest.face.means[:num_open]
        self._upper_M1, self._own_features = universal.upper(points_M3), personal.grid(points_M3)
        quiet = points_M3.new_zeros(AUDIO_FRAMES, universal.audio_dim, universal.audio_window)
        anything = Drive(universal.listener(quiet), points_M3.new_zeros(NUM_EXPRESSION))
        alignment = personal.aligned(points_M3, anything, self._upper_M1)[1]  # the same whatever drives
        self._where_M3, self._factor_M3 = points_M3 + alignment.offset, alignment.factor
        self._mouth_features = universal.mouth.grid(rest.mouth.means)
        self._opacities, self._sh_dc, self._sh_rest = (
            torch.cat([getattr(self.rest.face, name), getattr(self.rest.mouth, name)])
            for name in ("opacities", "sh_dc", "sh_rest")
        )
        self._opacities = torch.sigmoid(self._opacities)

    @torch.inference_mode()
    def move(
        self,
        audio_8CW: Float[Tensor, "8 dim window"],
        expression: Float[Tensor, " channels"],
        swing: Float[Tensor, "3 4"] | None = None,
    ) -> Person:
        """Everything in its place for one frame. audio_8CW: windows t-4 .. t+3; expression: EXPRESSION_NAMES; swing: of hair, as in Frame."""
        universal, face, mouth = self._universal, self.rest.face, self.rest.mouth
        drive = Drive(universal.listener(audio_8CW), expression)
        own = self._personal.from_features(self._own_features, drive, self._upper_M1)
        where_M3 = self._where_M3 + own.means if universal.config.order == "sequential" else self._where_M3
        shared = universal.face.from_features(universal.face.grid(where_M3), drive, self._upper_M1)
        motion_N3, turn_N4, growth_N3 = (
            F.pad(moving * self._gate_M1, (0, 0, 0, len(face) - len(where_M3)))
            for moving in (
                torch.addcmul(own.means, self._factor_M3, shared.means),
                own.quats + shared.quats,
                own.log_scales + shared.log_scales,
            )
        )
        chewed = universal.mouth.from_features(self._mouth_features, drive.heard, universal.hook(motion_N3))
        means_N3 = face.means + motion_N3
        face = replace(
            face,
            means=means_N3 if swing is None else swung(means_N3, self._gate_N1, swing),
            quats=face.quats + turn_N4,
            log_scales=face.log_scales + growth_N3,
        )
        return Person(face, replace(mouth, means=mouth.means + chewed))

    @torch.inference_mode()
    def perform(
        self,
        audio_8CW: Float[Tensor, "8 dim window"],
        expression: Float[Tensor, " channels"],
        camera: Camera,
        swing: Float[Tensor, "3 4"] | None = None,
    ) -> Layer:
        """One frame, face over mouth; the arguments are `move`'s."""
        person = self.move(audio_8CW, expression, swing)
        n, width, height = len(person.face), camera.width, camera.height
        means, quats, log_scales = (
            torch.cat([getattr(person.face, name), getattr(person.mouth, name)])
            for name in ("means", "quats", "log_scales")
        )
        scales, colors = torch.exp(log_scales), shown_colors(self._sh_dc, self._sh_rest, means, camera)
        black = colors.new_zeros(3)
        if means.is_cuda:
            face, mouth = (
                rasterize(means[part], quats[part], scales[part], self._opacities[part], colors[part], camera, black)
                for part in (slice(n), slice(n, None))
            )
            image = face.image + (1 - face.alpha) * mouth.image
            alpha = 1 - (1 - face.alpha) * (1 - mouth.alpha)
            return Layer(image, alpha[0], (0, 0, width, height))
        means2d, conics, depths, radii = project(
            means, quats, scales, self._opacities, camera.viewmat, camera.K, width, height, camera.zoom
        )
        if 0 < n < len(means):  # a mouth that lies behind all of the face is a mouth with the face over it
            depths[n:] += depths[:n].max() - depths[n:].min() + 0.1
        image, alpha = blend(means2d, conics, colors, self._opacities, radii, depths, black, width, height)
        return Layer(image, alpha, _box(means2d, radii, width, height))


def _chosen(gaussians: Gaussians, order_N: Tensor) -> Gaussians:
    return Gaussians(**{name: value[order_N] for name, value in vars(gaussians).items()})


def _box(means2d: Tensor, radii: Tensor, width: int, height: int) -> tuple[int, int, int, int]:
    """The pixels that projected Gaussians can reach."""
    seen_N1 = radii[:, :1] > 0
    low = torch.where(seen_N1, means2d - radii, torch.inf).amin(0)
    high = torch.where(seen_N1, means2d + radii, -torch.inf).amax(0)
    size = torch.tensor([width, height])
    (x0, y0), (x1, y1) = (edge.clamp(min=0).minimum(size).int().tolist() for edge in (low.floor(), high.ceil()))
    return x0, y0, max(x0, x1), max(y0, y1)
