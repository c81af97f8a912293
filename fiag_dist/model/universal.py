"""UM-Net: the motion that all people share, and how a person's own motion joins it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fiag_dist.config import EncoderBackend, MotionConfig
from fiag_dist.landmarks import BELOW_NOSE_TIP
from fiag_dist.model.audio import Listener
from fiag_dist.model.motion import SPLIT_M, Drive, FaceMotionNet, Motion, MouthMotionNet, PersonalNet, StillNet, hook
from fiag_dist.model.surface import FaceSurface, MotionGate


class UniversalMotion(nn.Module):
    """The shared motion networks of face and mouth, the listener they hear through, and the mean face that says where motion reaches.

    rest_landmarks: [478, 3] metres, mean rest shape of the pretraining identities.
    """

    rest_landmarks: Tensor

    def __init__(
        self,
        config: MotionConfig,
        audio_dim: int,
        audio_window: int,
        rest_landmarks: Float[Tensor, "478 3"],
        encoder: EncoderBackend = "auto",
    ):
        super().__init__()
        self.config, self.audio_dim, self.audio_window = config, audio_dim, audio_window
        self.encoder: EncoderBackend = encoder
        self.register_buffer("rest_landmarks", rest_landmarks.clone())
        self.listener = Listener(config.audio, audio_dim, audio_window)
        self.face = FaceMotionNet(
            config, config.universal_grid, config.universal_hidden, audio_dim, audio_window, encoder
        )
        self.mouth = MouthMotionNet(config, audio_dim, audio_window, encoder)
        self.gate = MotionGate(FaceSurface(rest_landmarks.cpu().numpy()), config.gate_near_m, config.gate_far_m)

    def new_personal(self) -> PersonalNet:
        """A fresh IM-Net that fits these networks."""
        if not self.config.personal:
            return StillNet(self.config)
        return PersonalNet(self.config, self.audio_dim, self.audio_window, self.encoder)

    def upper(self, points_N3: Float[Tensor, "n 3"]) -> Float[Tensor, "n 1"]:
        """1 above the underside of the nose tip, 0 below, soft over 4 mm."""
        return torch.sigmoid((points_N3[:, 1:2] - self.rest_landmarks[BELOW_NOSE_TIP, 1]) / SPLIT_M)

    def hook(self, d_means_N3: Float[Tensor, "n 3"]) -> Float[Tensor, "3"]:
        """E of a face's motion as the mouth gets it: with a k of its own for each frame of training where that is asked for, and 0 without a hook."""
        k, most = self.config.hook_k, self.config.hook_k_most
        if not k:
            return d_means_N3.new_zeros(3)
        return hook(d_means_N3, int(torch.randint(k, most + 1, ())) if self.training and most else k)

    def move(self, points_N3: Float[Tensor, "n 3"], personal: PersonalNet, drive: Drive) -> Motion:
        """Total motion of face points: theta - theta_i = d_IM + d_UM, with UM-Net asked at the points that IM-Net moved (paper Eq. 7).

        On the CPU the networks are asked only where the gate is open: hair and the back of the head, near half of all points, stand still anyway.
        A GPU would have to wait to know where that is.
        """
        gate_N1 = self.gate(points_N3)
        points, gate, open_M = points_N3, gate_N1, None
        if not points.is_cuda:
            open_M = (gate[:, 0] > 0).nonzero()[:, 0]
            points, gate = points_N3[open_M], gate[open_M]
        upper = self.upper(points)
        own, alignment = personal.aligned(points, drive, upper)
        where = points + alignment.offset
        if self.config.order == "sequential":
            where = where + own.means
        shared = self.face(where, drive, upper)

        def placed(values_MD: Tensor) -> Tensor:
            if open_M is None:
                return values_MD * (gate > 0)
            still = values_MD.new_zeros(len(points_N3), values_MD.shape[1])
            return still.index_copy(0, open_M, values_MD)

        attentions = [motion.attention for motion in (own, shared) if motion.attention is not None]
        return Motion(
            means=placed((own.means + alignment.factor * shared.means) * gate),
            quats=placed((own.quats + shared.quats) * gate),
            log_scales=placed((own.log_scales + shared.log_scales) * gate),
            attention=placed(torch.stack(attentions).sum(0)) if attentions else None,
            own=placed(own.means),
            gate=gate_N1,
        )
