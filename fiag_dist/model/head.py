"""A talking head: Gaussians of face and mouth, moved by speech and expression, and looked at through a camera."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fiag_dist.config import EncoderBackend, ModelConfig, Precision, RasterBackend
from fiag_dist.images.raster import Splats, checked_degree, rasterize_frames, view_colors
from fiag_dist.kernels import colors as kernel
from fiag_dist.model.field import GaussianField
from fiag_dist.model.identity import IdentityNet
from fiag_dist.model.layers import kind_of
from fiag_dist.model.motion import Drive, Motion, PersonalNet, swung
from fiag_dist.model.universal import UniversalMotion
from fiag_dist.types import Camera, Gaussians, Rendering, Shot

MOUTH_SCALE_M = 0.006
"""Largest standard deviation of the mouth's Gaussians: behind the face nothing keeps them short, and needles came out beside the cheeks."""
FACE_SCALE_M = 0.030
"""The same of the face's: nothing on a head is as wide and smooth as what went beyond it, up to 81 mm."""


@dataclass(frozen=True, eq=False)
class Person:
    """One identity's Gaussians at rest (theta_i)."""

    face: Gaussians
    mouth: Gaussians


@dataclass(frozen=True, eq=False)
class Performance:
    """One frame, performed. Images are premultiplied over black: add (1 - alpha) * backdrop."""

    person: Person
    motion: Motion | None
    """Of the face's Gaussians; None while nothing moves yet."""
    mouth_motion: Float[Tensor, "m 3"] | None
    landmark_motion: Float[Tensor, "478 3"] | None
    """Of the shot's rest landmarks, metres; asked for in training."""
    face: Rendering
    mouth: Rendering

    def over(self, backdrop: Float[Tensor, "3 #height #width"]) -> Float[Tensor, "3 height width"]:
        """Face over mouth over backdrop."""
        behind = self.mouth.image + (1 - self.mouth.alpha) * backdrop
        return self.face.image[:3] + (1 - self.face.alpha) * behind

    @property
    def alpha(self) -> Float[Tensor, "1 height width"]:
        """Coverage of face and mouth together."""
        return 1 - (1 - self.face.alpha) * (1 - self.mouth.alpha)


@dataclass(frozen=True, eq=False)
class Act:
    """One frame before the camera: where everything has moved to, and by what."""

    person: Person
    face: Gaussians
    mouth: Gaussians
    motion: Motion | None = None
    mouth_motion: Float[Tensor, "m 3"] | None = None
    landmark_motion: Float[Tensor, "478 3"] | None = None


def act(
    person: Person,
    universal: UniversalMotion,
    personal: PersonalNet,
    drive: Drive | None,
    rest_landmarks: Float[Tensor, "478 3"] | None = None,
) -> Act:
    """Moves a person as `drive` says (None: at rest). `rest_landmarks` are moved along when given."""
    face, mouth, landmark_motion = person.face, person.mouth, None
    if drive is None:
        return Act(person, face, mouth)
    points = face.means.detach()
    if rest_landmarks is not None:
        points = torch.cat([points, rest_landmarks])
    motion = universal.move(points, personal, drive)
    if rest_landmarks is not None:
        landmark_motion, motion = motion.means[len(face) :], _first(motion, len(face))
    mouth_motion = universal.mouth(mouth.means.detach(), drive.heard, universal.hook(motion.means))
    means = face.means + motion.means
    if drive.swing is not None and motion.gate is not None:
        means = swung(means, motion.gate, drive.swing)
    moved = replace(
        face,
        means=means,
        quats=face.quats + motion.quats,
        log_scales=face.log_scales + motion.log_scales,
    )
    return Act(person, moved, replace(mouth, means=mouth.means + mouth_motion), motion, mouth_motion, landmark_motion)


def film(acts: Sequence[Act], cameras: Sequence[Camera], raster: RasterBackend = "auto") -> list[Performance]:
    """Renders both branches of all frames: one call of the rasteriser for the faces, one for the mouths."""
    faces = _render([a.face for a in acts], cameras, [a.motion.attention if a.motion else None for a in acts], raster)
    mouths = _render([a.mouth for a in acts], cameras, [None] * len(acts), raster)
    return [
        Performance(a.person, a.motion, a.mouth_motion, a.landmark_motion, face, mouth)
        for a, face, mouth in zip(acts, faces, mouths, strict=True)
    ]


def shown_colors(
    sh_dc: Float[Tensor, "n 3"], sh_rest: Float[Tensor, "n k 3"], means: Float[Tensor, "n 3"], camera: Camera
) -> Float[Tensor, "n 3"]:
    """Colours 0..1 of Gaussians, in training and rendering alike: of one that went far beyond white, a sliver shows as a speck."""
    if sh_dc.device.type == "cpu":
        checked_degree(sh_rest)
        return kernel.shown_colors(sh_dc, sh_rest, means, camera.center)
    return at_most(view_colors(sh_dc, sh_rest, means, camera), 1.0)


def at_most(values: Tensor, most: float) -> Tensor:
    """Values up to `most`. What is larger is pulled back by its gradient, and not pushed on: it would run away unseen."""
    return cast(Tensor, _AtMost.apply(values, most))


class _AtMost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, most: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.most = most
        return values.clamp(max=most)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (values,), (gradient,) = ctx.saved_tensors, gradients
        return gradient * ((values <= ctx.most) | (gradient > 0)), None


def _first(motion: Motion, n: int) -> Motion:
    head = {name: None if value is None else value[:n] for name, value in vars(motion).items()}
    return Motion(**head)  # type: ignore[arg-type]


def _render(
    people: Sequence[Gaussians], cameras: Sequence[Camera], extras: Sequence[Tensor | None], raster: RasterBackend
) -> list[Rendering]:
    splats = []
    for g, camera, extra in zip(people, cameras, extras, strict=True):
        colors = shown_colors(g.sh_dc, g.sh_rest, g.means, camera)
        if extra is not None:
            colors = torch.cat([colors, extra], 1)
        splats.append(Splats(g.means, g.quats, torch.exp(g.log_scales), torch.sigmoid(g.opacities), colors))
    black = splats[0].colors.new_zeros(splats[0].colors.shape[1])
    return rasterize_frames(splats, cameras, black, backend=raster)


class Head(nn.Module):
    """Everything that all identities share: the Global Gaussian Field, the IE-Nets and UM-Net.

    id_dim, audio_dim, audio_window: shapes of the recogniser's embedding and of one window of speech features, as in the manifest.
    rest_landmarks: [478, 3], mean rest shape, metres.
    """

    def __init__(
        self,
        config: ModelConfig,
        id_dim: int,
        audio_dim: int,
        audio_window: int,
        rest_landmarks: Float[Tensor, "478 3"],
        encoder: EncoderBackend = "auto",
        raster: RasterBackend = "auto",
        precision: Precision = "fp32",
    ):
        super().__init__()
        self.config = config
        self.raster: RasterBackend = raster
        self.precision: Precision = precision
        self.sh_degree = config.field.sh_degree
        """Degrees of the spherical harmonics that take part; training raises it (`StageConfig.sh_every`)."""
        id_dim = config.identity.table_dim if config.identity.embedding == "table" else id_dim
        field, num_sh = config.field, (config.field.sh_degree + 1) ** 2
        self.face_field = GaussianField(field.capacity_face, field.sh_degree)
        self.mouth_field = GaussianField(field.capacity_mouth, field.sh_degree)
        self.face_identity = IdentityNet(config.identity, id_dim, num_sh, encoder)
        self.mouth_identity = IdentityNet(config.identity, id_dim, num_sh, encoder)
        self.universal = UniversalMotion(config.motion, audio_dim, audio_window, rest_landmarks, encoder)

    @property
    def fields(self) -> dict[str, GaussianField]:
        return {"face": self.face_field, "mouth": self.mouth_field}

    def person(self, embedding: Float[Tensor, " id_dim"]) -> Person:
        """theta_i of both branches for one identity embedding."""
        face = self.face_identity(self.face_field.gaussians(), embedding)
        mouth = self.mouth_identity(self.mouth_field.gaussians(), embedding)
        return Person(self._bounded(face, FACE_SCALE_M), self._bounded(mouth, MOUTH_SCALE_M))

    def _bounded(self, gaussians: Gaussians, scale_m: float) -> Gaussians:
        """With harmonics of the degrees that take part alone, and nothing larger than `scale_m`."""
        num_rest = (self.sh_degree + 1) ** 2 - 1
        return replace(
            gaussians,
            sh_rest=gaussians.sh_rest[:, :num_rest],
            log_scales=at_most(gaussians.log_scales, math.log(scale_m)),
        )

    def drive(self, shot: Shot) -> Drive:
        """What moves this frame."""
        if shot.hushed:
            return self.silence(shot)
        return Drive(self.universal.listener(shot.audio), shot.expression, shot.swing)

    def silence(self, shot: Shot) -> Drive:
        """What would move this frame if nobody spoke."""
        return Drive(self.universal.listener.silence(), shot.expression, shot.swing)

    def forward(
        self,
        shots: Sequence[Shot],
        personals: Sequence[PersonalNet],
        seeds: Sequence[int] = (),
        moving: bool = True,
        landmarks: bool = False,
        rendered: bool = True,
    ) -> list[Performance] | list[Float[Tensor, "478 3"]]:
        """Performs frames, each of its own person, at rest unless `moving`; `landmarks` are moved along. Not `rendered`: the rest landmarks' motion alone.

        seeds: torch's generator starts from these, frame by frame, so that a frame's noise depends on no other; none: it goes on.
        """
        acts, moved = [], []
        with torch.autocast(shots[0].image.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            for k, (shot, personal) in enumerate(zip(shots, personals, strict=True)):
                if seeds:
                    torch.manual_seed(seeds[k])
                if not rendered:
                    moved.append(self.universal.move(shot.rest_landmarks, personal, self.drive(shot)).means)
                    continue
                drive = self.drive(shot) if moving else None
                rest = shot.rest_landmarks if moving and landmarks else None
                acts.append(act(self.person(shot.embedding), self.universal, personal, drive, rest))
        return film(acts, [shot.camera for shot in shots], self.raster) if rendered else moved

    def perform(self, shot: Shot, personal: PersonalNet, moving: bool = True, landmarks: bool = False) -> Performance:
        """One frame."""
        return cast(Performance, self([shot], [personal], moving=moving, landmarks=landmarks)[0])

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by what their learning rate depends on (names are those of OptimConfig)."""
        fields = self.fields.values()
        groups = {
            name: [cast(nn.Parameter, getattr(f, name)) for f in fields]
            for name in ("means", "quats", "log_scales", "opacities", "sh_dc")
        }
        groups["sh_rest"] = [f.sh_rest for f in fields if f.sh_rest.shape[1]]
        nets = {
            "identity": [self.face_identity, self.mouth_identity],
            "universal": [self.universal.face, self.universal.mouth],
        }
        for owner, modules in nets.items():
            for module in modules:
                for name, parameter in module.named_parameters():
                    groups.setdefault(f"{owner}_{kind_of(name)}", []).append(parameter)
        return {name: parameters for name, parameters in groups.items() if parameters}
