"""What training asks of a performance (model.md 3): every term by name, weighted."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fiag_dist.config import LossConfig, SsimBackend
from fiag_dist.images.compositing import compare
from fiag_dist.images.lpips import Lpips
from fiag_dist.images.ssim import ssim
from fiag_dist.landmarks import IRISES, LIPS, LIPS_AND_LIDS
from fiag_dist.model.head import Head, Performance
from fiag_dist.model.motion import METRES, PersonalNet
from fiag_dist.stages import Stage
from fiag_dist.types import LIDS_MEET, NUM_LANDMARKS, Label, Shot

TRIPLET_POINTS = 2048
MOUTH_MARGIN_PX = 8
PATCH_PX = 80
"""Side of the patches that LPIPS compares."""


@dataclass(frozen=True, eq=False)
class Rival:
    """Another identity to tell this one from: what L_t and L_c compare with."""

    positive: Float[Tensor, " id_dim"]
    """Embedding of another frame of the same person."""
    negative: Float[Tensor, " id_dim"]
    """Embedding of the other person."""
    personal: PersonalNet | None
    """The other person's IM-Net."""


@dataclass(frozen=True, eq=False)
class Critic:
    """How frames of one step are judged."""

    config: LossConfig
    ssim: SsimBackend = "auto"
    landmark_weight: float = 0.0
    """Of this step; `config.landmarks` is the first step's."""
    perceptual: Lpips | None = None
    """Compares a patch of the composite, in the fusion stage."""

    def reconstruction(self, image: Float[Tensor, "3 h w"], target: Float[Tensor, "3 h w"]) -> Tensor:
        """L1 + weight * (1 - SSIM)."""
        return (image - target).abs().mean() + self.config.ssim * (1 - ssim(image, target, self.ssim))


def backdrop_of(shot: Shot, stage: Stage) -> Float[Tensor, "3 size size"]:
    """What both branches and their targets are put over: a random colour, from torch's generator, or the frame's surroundings.

    Until motion is learnt surroundings, too, have that colour inside the mouth: theirs is the same in every step there, and the face branch would learn to
    paint it in front of the teeth (docs/decisions.md, 51).
    """
    around = shot.surroundings
    if around is not None and stage >= Stage.MOTION:
        return around
    color = torch.rand(3, 1, 1, device=shot.image.device).expand_as(shot.image)
    return color if around is None else torch.where(shot.labels == Label.MOUTH, color, around)


def _shown(shot: Shot) -> Float[Tensor, "1 size size"]:
    """How much of the target is the frame: in its own surroundings all of it, so that what the matte cuts off a head can be learnt there."""
    return shot.alpha if shot.surroundings is None else torch.ones_like(shot.alpha)


def face_terms(
    performance: Performance, shot: Shot, backdrop: Float[Tensor, "3 size size"], critic: Critic
) -> dict[str, Tensor]:
    """The face branch against head pixels without the inside of the mouth, both over the same backdrop."""
    config, face = critic.config, performance.face
    not_mouth = (shot.labels != Label.MOUTH)[None]
    mask = shot.alpha * not_mouth
    found = compare(face.image[:3], face.alpha, shot.image, _shown(shot) * not_mouth, mask, backdrop)
    unlike = 1 - ssim(found.image, found.target, critic.ssim)
    terms = {"face": found.error + config.ssim * unlike, "face_coverage": config.coverage * found.uncovered}
    if config.mouth_region != 1.0:
        x0, y0, x1, y1 = shot.lips_rect
        share = (y1 - y0) * (x1 - x0) / mask.numel()
        region = (found.image - found.target)[:, y0:y1, x0:x1].abs().mean()
        terms["face_lips"] = (config.mouth_region - 1) * share * region
    return terms


def mouth_terms(
    performance: Performance, shot: Shot, backdrop: Float[Tensor, "3 size size"], critic: Critic
) -> dict[str, Tensor]:
    """The mouth branch against the inside of the mouth; lips hide it elsewhere in their square, and outside of that it must not be seen."""
    alpha = performance.mouth.alpha
    size = alpha.shape[-1]
    x0, y0 = (max(v - MOUTH_MARGIN_PX, 0) for v in shot.lips_rect[:2])
    x1, y1 = (min(v + MOUTH_MARGIN_PX, size) for v in shot.lips_rect[2:])
    inside = alpha[:, y0:y1, x0:x1]
    outside = torch.ones_like(alpha)
    outside[:, y0:y1, x0:x1] = 0
    coverage = (alpha * outside).mean()  # a difference of two sums would be rounding where nothing shows
    terms: dict[str, Tensor] = {}
    if shot.mouth_seen:
        seen = (shot.labels == Label.MOUTH)[None, y0:y1, x0:x1]
        image = performance.mouth.image[:, y0:y1, x0:x1] + (1 - inside) * backdrop[:, y0:y1, x0:x1]
        # What is hidden is the same on both sides, without gradient: SSIM would have it lighter or darker for the sake of its seen neighbours.
        hidden = image.detach()
        target = torch.where(seen, shot.image[:, y0:y1, x0:x1], hidden)
        terms["mouth"] = critic.reconstruction(torch.where(seen, image, hidden), target)
        coverage = coverage + ((1 - inside) * seen).mean()
    return terms | {"mouth_coverage": critic.config.coverage * coverage}


def fusion_terms(
    performance: Performance, shot: Shot, backdrop: Float[Tensor, "3 size size"], critic: Critic
) -> dict[str, Tensor]:
    """The composite of both branches against the whole head, and a random patch of it as LPIPS sees it."""
    image = performance.over(backdrop)
    shown = _shown(shot)
    target = shot.image * shown + backdrop * (1 - shown)
    terms = {"fusion": critic.reconstruction(image, target)}
    if critic.perceptual is not None:
        side = min(PATCH_PX, image.shape[-1])
        y, x = (int(torch.randint(image.shape[-1] - side + 1, ())) for _ in range(2))
        patches = (picture[None, :, y : y + side, x : x + side] for picture in (image, target))
        terms["lpips"] = critic.config.lpips * critic.perceptual(*patches).mean()
    return terms


def motion_terms(performance: Performance, config: LossConfig) -> dict[str, Tensor]:
    """Small motion is preferred: mean absolute value of every output."""
    motion = performance.motion
    if motion is None or performance.mouth_motion is None or not config.motion:
        return {}
    sizes = [motion.means / METRES, motion.quats, motion.log_scales, performance.mouth_motion / METRES]
    return {"motion": config.motion * torch.stack([x.abs().mean(0).sum() for x in sizes]).sum()}


def attention_terms(performance: Performance, shot: Shot, config: LossConfig) -> dict[str, Tensor]:
    """Expression must leave the lips alone, and hair is moved by nothing (form `attention`: its norms are rendered as channels)."""
    if performance.face.image.shape[0] < 5 or not (config.attention_lips or config.attention_hair):
        return {}
    audio, expression = performance.face.image[3:5]
    x0, y0, x1, y1 = shot.lips_rect
    hair = (shot.labels == Label.HAIR).float()
    on_hair = ((audio + expression) * hair).sum() / hair.sum().clamp(min=1)
    return {
        "attention_lips": config.attention_lips * expression[y0:y1, x0:x1].mean(),
        "attention_hair": config.attention_hair * on_hair,
    }


@lru_cache
def _weights(contours: float, irises: bool, device: torch.device) -> Tensor:
    """Of the 478 landmarks, with a mean of 1; brought to the device once. irises: whether they are seen."""
    weights = torch.ones(NUM_LANDMARKS)
    weights[list(LIPS_AND_LIDS)] = contours
    weights[list(IRISES)] = contours if irises else 0
    return (weights / weights.mean()).to(device)


@lru_cache
def _lips(device: torch.device) -> Tensor:
    """LIPS, brought to the device once."""
    return torch.tensor(LIPS, device=device)


def landmark_term(moved_V3: Float[Tensor, "478 3"], shot: Shot, contours: float) -> Tensor:
    """L_m: robust distance of the moved rest landmarks from the tracked ones, pixels of a 256-pixel frame. contours: weight of lips, lids and irises."""
    at_256 = 256 / shot.camera.width
    found = shot.camera.project(shot.rest_landmarks + moved_V3)
    tracked = shot.camera.project(shot.landmarks)
    distance2 = ((found - tracked) * at_256).square().sum(1)
    weights = _weights(contours, shot.blink < LIDS_MEET, distance2.device)
    return (weights * (torch.sqrt(distance2 + 0.01) - 0.1)).mean()


def silence_term(head: Head, personal: PersonalNet, shot: Shot, shut_L3: Tensor, spread_m: float) -> Tensor:
    """How far from shut the lips are when nobody speaks, robust, pixels of a 256-pixel frame: few clips show a silence, but lips shut in all of them.

    shut_L3: this person's LIPS when they meet. Below a pixel it hardly pulls: lips that are nearly closed have speech to learn. spread_m: they move as
    points about so far from them do, new ones each time, or landmarks would close by themselves and leave the Gaussians around them where they are.
    """
    lips = shot.rest_landmarks[_lips(shot.rest_landmarks.device)]
    around = lips + spread_m * torch.randn_like(lips)
    moved = lips + head.universal.move(around, personal, head.silence(shot)).means
    found, wanted = (shot.camera.project(points) * (256 / shot.camera.width) for points in (moved, shut_L3))
    return (torch.sqrt((found - wanted).square().sum(1) + 1) - 1).mean()


def triplet_term(head: Head, shot: Shot, rival: Rival, margin: float) -> Tensor:
    """L_t (paper Eq. 4): offsets of one person's two frames lie nearer to each other than to another person's; unscaled, normalised outputs."""
    means = head.face_field.gaussians().means.detach()
    points = means[torch.randperm(len(means), device=means.device)[:TRIPLET_POINTS]]
    embeddings = (shot.embedding, rival.positive, rival.negative)
    anchor, positive, negative = (
        F.normalize(head.face_identity.raw(points, e).flatten(), dim=0, eps=1e-8) for e in embeddings
    )
    return F.relu((anchor - positive).square().sum() - (anchor - negative).square().sum() + margin)


def contrast_term(head: Head, performance: Performance, shot: Shot, rival: PersonalNet) -> Tensor:
    """L_c (paper Eq. 6): personal motion must not be what another person's net would ask for at the same points (centimetres squared)."""
    assert performance.motion is not None
    assert performance.motion.own is not None
    own = performance.motion.own
    points = performance.person.face.means.detach()
    count = len(points)
    if not points.is_cuda:  # where the gate is shut nobody moves, and nobody is asked; a GPU would wait to know where
        moving = (own.detach() != 0).any(1).nonzero()[:, 0]
        points, own = points[moving], own[moving]
    with torch.no_grad():
        other = rival(points, head.drive(shot), head.universal.upper(points)).means
    return F.relu((other * own).sum(1) / METRES**2).sum() / count


def landmark_terms(
    head: Head, personal: PersonalNet, moved_V3: Float[Tensor, "478 3"], shot: Shot, config: LossConfig
) -> dict[str, Tensor]:
    """What tracked landmarks ask of motion, in speech and in silence."""
    terms = {"landmarks": landmark_term(moved_V3, shot, config.landmarks_contours)}
    if config.silence and shot.shut_lips is not None:
        term = silence_term(head, personal, shot, shot.shut_lips, config.silence_spread_m)
        terms["silence"] = config.silence * term
    return terms


def compute(
    head: Head,
    personal: PersonalNet,
    performance: Performance,
    shot: Shot,
    stage: Stage,
    critic: Critic,
    rival: Rival | None = None,
) -> dict[str, Tensor]:
    """All weighted terms of one frame in its stage; their sum is what is minimised.

    personal: the IM-Net of the frame's person, who is told from `rival`.
    """
    config = critic.config
    backdrop = backdrop_of(shot, stage)
    if stage is Stage.FUSION:
        return fusion_terms(performance, shot, backdrop, critic)
    terms = face_terms(performance, shot, backdrop, critic) | mouth_terms(performance, shot, backdrop, critic)
    if stage is Stage.WARM_UP:
        terms.pop("face_coverage")
    else:
        terms |= motion_terms(performance, config) | attention_terms(performance, shot, config)
    if performance.landmark_motion is not None and critic.landmark_weight:
        found = landmark_terms(head, personal, performance.landmark_motion, shot, config)
        terms |= {name: critic.landmark_weight * term for name, term in found.items()}
    if rival is not None and stage is Stage.IDENTITY and config.triplet:
        terms["triplet"] = config.triplet * triplet_term(head, shot, rival, config.triplet_margin)
    if rival is not None and rival.personal is not None and stage is Stage.MOTION and config.contrast:
        terms["contrast"] = config.contrast * contrast_term(head, performance, shot, rival.personal)
    return terms
