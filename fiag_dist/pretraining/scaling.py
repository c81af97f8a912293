"""What a pretraining step costs as ranks and people grow: bytes that are counted, and a time that is modelled (docs/scaling.md)."""

import math
from dataclasses import dataclass

import torch

from fiag_dist.config import EncoderBackend, TrainConfig
from fiag_dist.model.field import GaussianField
from fiag_dist.model.identity import IdentityNet
from fiag_dist.model.motion import FaceMotionNet, MouthMotionNet, PersonalNet, StillNet

FLOAT = 4
BACKEND: EncoderBackend = "torch"
"""Any would do: all have the same parameters."""
MOMENTS = 2
SMALL_COLLECTIVES = 4
"""A step's agreements of a few bytes: is the loss finite, the gradient's norm, does anybody stop, may the checkpoint be committed."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Elements of the networks, counted on the model itself."""

    field: int
    """Both fields at full capacity."""
    networks: int
    """IE-Nets and UM-Net, of which a moving average is kept."""
    personal: int
    """One IM-Net, with the person's embedding where that is learnt."""

    @property
    def shared(self) -> int:
        """What every rank holds, and what travels at every step."""
        return self.field + self.networks


def sizes(config: TrainConfig, id_dim: int, audio_dim: int, audio_window: int) -> Sizes:
    """Counts the parameters of a configuration. id_dim, audio_dim, audio_window: as in the manifest."""
    model, motion, hears = config.model, config.model.motion, (audio_dim, audio_window)
    field, num_sh = model.field, (model.field.sh_degree + 1) ** 2
    fields = [GaussianField(rows, field.sh_degree) for rows in (field.capacity_face, field.capacity_mouth)]
    learnt_dim = model.identity.table_dim if model.identity.embedding == "table" else 0
    networks = [IdentityNet(model.identity, learnt_dim or id_dim, num_sh, BACKEND) for _ in fields]
    personal = PersonalNet(motion, *hears, BACKEND) if motion.personal else StillNet(motion)
    face = FaceMotionNet(motion, motion.universal_grid, motion.universal_hidden, *hears, BACKEND)
    return Sizes(
        field=_elements(*fields),
        networks=_elements(*networks, face, MouthMotionNet(motion, *hears, BACKEND)),
        personal=_elements(personal) + learnt_dim,
    )


def _elements(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one rank holds, by what they are for; without activations, the process itself and decoded frames."""

    parameters: int
    gradients: int
    moments: int
    buffers: int
    """DeepSpeed's flat copy of this rank's part and its bucket, and the moving average."""
    personal: int
    """Owned personal nets with their moments, gradients of those of one step, and frozen neighbours."""

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.moments + self.buffers + self.personal


def memory(found: Sizes, *, zero_stage: int, world: int, owned: int, lanes: int, alone: int = 0) -> Memory:
    """What a rank holds that owns so many identities and trains so many lanes, in `alone` of which there is but one person."""
    shared, share = FLOAT * found.shared, world if zero_stage else 1
    return Memory(
        parameters=shared,
        gradients=math.ceil(shared / world) if zero_stage == 2 else shared,
        moments=MOMENTS * math.ceil(shared / share),
        buffers=FLOAT * found.networks + (shared + math.ceil(shared / share) if zero_stage else 0),
        personal=FLOAT * found.personal * ((1 + MOMENTS) * owned + min(lanes, owned) + alone),
    )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Constants of the time model, as `fiag-dist bench dist` measures them."""

    frame_ms: float
    """Forward and backward of one frame."""
    fixed_ms: float
    """What a step costs whatever its frames: optimisers, launches, bookkeeping."""
    decode_ms: float
    """Reading and decoding of one frame by a rank's one reading thread, which works ahead."""
    latency_us: float
    """Of a collective, for each doubling of the ranks."""
    gb_per_s: float
    """What a rank sends in a collective inside a node."""
    gb_per_s_between: float
    """The same when the ranks are on several nodes: a rank's share of its node's network."""
    ranks_per_node: int
    cores_per_node: int = 0
    """On a CPU ranks share cores, one each while they last; 0: each rank has a device of its own."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Where a modelled step goes, milliseconds."""

    compute_ms: float
    gradients_ms: float
    """Reduction of gradients and gathering of parameters: 2 (world - 1) / world times the shared parameters, with ZeRO as without."""
    agreement_ms: float
    waiting_for_data_ms: float

    @property
    def total_ms(self) -> float:
        return self.compute_ms + self.gradients_ms + self.agreement_ms + self.waiting_for_data_ms


def traffic(found: Sizes, world: int) -> float:
    """Bytes that a rank sends at each step for the shared model."""
    return 2 * (world - 1) / world * FLOAT * found.shared


def step_time(machine: Machine, found: Sizes, *, world: int, frames_per_step: int) -> StepTime:
    """A step of `frames_per_step` frames on `world` ranks: the rank with the most lanes decides."""
    lanes, per_node = math.ceil(frames_per_step / world), min(world, machine.ranks_per_node)
    crowd = max(1.0, per_node / machine.cores_per_node) if machine.cores_per_node else 1.0
    compute_ms = crowd * (machine.fixed_ms + lanes * machine.frame_ms)
    rate = machine.gb_per_s if world <= machine.ranks_per_node else machine.gb_per_s_between
    hop_ms = machine.latency_us / 1e3 * math.ceil(math.log2(world)) if world > 1 else 0.0
    return StepTime(
        compute_ms=compute_ms,
        gradients_ms=crowd * traffic(found, world) / (rate * 1e6) + 2 * hop_ms,
        agreement_ms=SMALL_COLLECTIVES * hop_ms,
        waiting_for_data_ms=max(0.0, crowd * lanes * machine.decode_ms - compute_ms),
    )
