"""Every setting, with its unit."""

from dataclasses import dataclass, field
from typing import Literal

RasterBackend = Literal["auto", "cpu", "gsplat"]
EncoderBackend = Literal["auto", "cpu", "torch", "tcnn"]
SsimBackend = Literal["auto", "cpu", "torch"]
Precision = Literal["fp32", "bf16"]
Poses = Literal["adjusted", "detected"]


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How clips become shards."""

    layout: Literal["clips", "instag"] = "clips"
    """`clips`: video files; `instag`: folders prepared for InsTaG, TalkingGaussian, ER-NeRF or RAD-NeRF (transforms_train.json, parsing/ ...)."""
    size: int = 256
    """Side of the square frames, pixels."""
    fps: int = 25
    """Frames a second; clips of other or variable rates are resampled by their timestamps."""
    extractor: str = "whisper:3"
    """Speech features: `whisper:LAYER` (tiny.en's encoder after that layer: 384 x 2 a frame), `mel` (80 x 4), `hf:PATH_OR_NAME` (wav2vec2, HuBERT or
    WavLM by the transformers library), `file:PATTERN` (.npy arrays [frames, window, channels]; {folder} and {stem} in the pattern are the clip's)."""
    fix_sync: bool = True
    """Move the sound to where the lips are, where the offset between them is sure and larger than 30 ms; prepared folders, and features that were read
    from files, stay as they are."""
    max_seconds: float = 0.0
    """Use at most this much of each clip, from its start; 0 uses all."""
    min_seconds: float = 2.0
    """Refuse a clip with less usable footage than this."""
    poses: Poses = "adjusted"
    """Of the head: by bundle adjustment over landmarks and flow tracks, or the landmark model's own, to compare with."""
    focal_ratio: float = 4.7
    """Fixed focal length over the crop's height: nearly unobservable on heads, so never estimated (docs/decisions.md)."""
    test_share: float = 1 / 11
    """Last share of each clip that is never trained on."""
    frames_per_shard: int = 1000
    """Samples in one tar file, at most."""
    jobs: int = 0
    """Clips packed at the same time, at most; 0: as many as there are cores and memory for, 1.5 GB each."""


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """A multi-resolution grid on each of the three planes (model.md 2.1)."""

    levels: int = 12
    features: int = 1
    base: int = 16
    """Cells of the coarsest level along the cube's side."""
    finest: float = 38.4
    """Cells of the finest level."""
    log2_table: int = 17
    """A level with more entries than 2^this is hashed."""
    init: float = 1e-4
    """Entries start uniformly in -init .. init."""

    @property
    def dim(self) -> int:
        """Features of a point, all planes and levels together."""
        return 3 * self.levels * self.features


@dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """The Global Gaussian Field: the only Gaussians there are, shared by all identities."""

    init: Literal["surface", "cube"] = "surface"
    """Where the points start: on the face surface and in the hull of the head masks, or in the paper's cube."""
    num_face: int = 8000
    num_mouth: int = 1000
    capacity_face: int = 12000
    """Rows that the field may grow to; memory is taken at once."""
    capacity_mouth: int = 2000
    sh_degree: int = 1
    """Degree of the spherical harmonics that make colour depend on the view."""


@dataclass(frozen=True, kw_only=True)
class IdentityConfig:
    """IE-Net: what makes the shared field one person (paper Eq. 2, 3)."""

    enabled: bool = True
    """Off: all are the shared field alone (an ablation of the paper's; needs `loss.triplet` 0)."""
    embedding: Literal["recogniser", "table"] = "recogniser"
    """Who a frame shows: what a face recogniser says, or a vector for each person learnt with its IM-Net. Somebody new starts from the mean."""
    table_dim: int = 32
    """Length of learnt vectors."""
    grid: GridConfig = GridConfig(finest=128.0, init=0.1)
    hidden: int = 64
    means_scale: float = 1e-2
    """Offsets of centres are the network's output times this, metres."""


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """How eight windows of speech features become one code."""

    code: Literal["pca", "lips", "net"] = "pca"
    """`pca`: whitened principal components of five windows and one linear layer; `lips`: how far lips open and spread, foretold from these components by
    ridge regression, for minutes of footage of many and seconds of one; `net`: the relatives' AudioNet with attention."""
    dim: int = 64
    """Principal components."""
    noise: float = 0.3
    """Standard deviation of the noise added to the whitened components in training."""
    silence: bool = True
    """Windows without a voice are heard as one silence, whatever the room: told from speech features by a linear map, learnt from how loud clips are."""


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """UM-Net and the IM-Nets (paper Eq. 5 to 8)."""

    personal: bool = True
    """Off: all move as UM-Net says, without IM-Nets (an ablation of the paper's; needs `loss.contrast` 0)."""
    form: Literal["direct", "attention"] = "direct"
    """`direct` concatenates features, audio and expression; `attention` is the relatives' form, measured slower (docs/decisions.md)."""
    order: Literal["sequential", "additive"] = "sequential"
    """`sequential`: UM-Net at the points that IM-Net moved (paper); `additive`: both at the identity's points."""
    universal_grid: GridConfig = GridConfig(finest=128.0, init=0.1)
    personal_grid: GridConfig = GridConfig(init=0.1)
    mouth_grid: GridConfig = GridConfig(finest=64.0, init=0.1)
    universal_hidden: int = 64
    personal_hidden: int = 32
    output_scale: float = 3.0
    """All motion outputs are multiplied by this (direct form)."""
    drive_split: bool = True
    """Audio moves what lies below the nose tip and expression what lies above (soft, 4 mm): wrong audio can't move the brows."""
    gate_near_m: float = 0.010
    gate_far_m: float = 0.030
    """Motion fades from 1 to 0 between these distances from the face surface: hair and ears must not move with speech."""
    align: bool = True
    """Alignment head of the personal net: where the universal motion is looked up, and how strong it is."""
    hook_k: int = 10
    """The face-mouth hook takes the k-th largest and smallest vertical motion; 0: none (an ablation of the paper's)."""
    hook_k_most: int = 0
    """In training k is drawn anew for each frame, from `hook_k` to this; 0: k is always `hook_k`."""
    audio: AudioConfig = AudioConfig()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    field: FieldConfig = FieldConfig()
    identity: IdentityConfig = IdentityConfig()
    motion: MotionConfig = MotionConfig()


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of model.md section 3; 0 leaves a term out."""

    ssim: float = 0.2
    motion: float = 1e-5
    coverage: float = 1e-3
    attention_lips: float = 5e-3
    attention_hair: float = 1e-4
    triplet: float = 1e-2
    triplet_margin: float = 0.2
    contrast: float = 1.0
    landmarks: float = 0.02
    """Constant to 30 % of the steps, then linear to a tenth."""
    landmarks_contours: float = 4.0
    """Weight of lips and eye contours against the other landmarks."""
    silence: float = 0.1
    """Weight, against `landmarks`, of lips that are not where nobody speaks: few clips show a silence, so each mouth is asked to close in one."""
    silence_spread_m: float = 0.002
    """About how far around the lips' landmarks, metres: as much of the lips as must close together."""
    lpips: float = 0.05
    """On random patches in the second half of the fusion stage; needs the weights `lpips-alex`, and is left out with a line when they are absent."""
    mouth_region: float = 1.0
    """Weight of the L1 error inside the lip rectangle against elsewhere."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Where each stage ends, as shares of the steps; fusion ends at 1."""

    warm_up: float = 0.05
    identity: float = 0.20
    motion: float = 0.90
    landmark_steps: int = 500
    """Motion-only steps on tracked landmarks before the first image: they halve the time to living lips and lids."""
    sh_every: int = 0
    """Steps with images after which one more degree of the spherical harmonics takes part; 0: all from the start."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Learning rates at the start and, for Gaussians, at the end of their log-linear schedules; 0 0 freezes."""

    means: tuple[float, float] = (1.6e-4, 1.6e-6)
    sh_dc: tuple[float, float] = (5e-3, 1e-3)
    sh_rest: tuple[float, float] = (5e-4, 1e-4)
    opacities: tuple[float, float] = (0.05, 0.01)
    log_scales: tuple[float, float] = (5e-3, 1e-3)
    quats: tuple[float, float] = (1e-3, 1e-3)
    paced_for: int = 0
    """Steps with images that the field's rates are meant for: a run of fewer starts with higher ones, by as much, four times at most. 0: never."""
    grids: float = 5e-3
    nets: float = 2e-3
    identity_nets: float = 2e-3
    audio: float = 2.5e-3
    personal_grids: float = 1e-3
    personal_nets: float = 1e-3
    decay: float = 0.1
    """All networks' rates fall log-linearly to this share."""
    universal: float = 1.0
    """Multiplier of UM-Net's rates; adaptation uses less, so that what many people taught is kept."""
    universal_schedule: Literal["decay", "pretraining", "adaptation"] = "decay"
    """How UM-Net's rates fall: `decay` as all networks'; else as the relatives', t from 0 to 1 with the steps: `pretraining` 0.5^(1.5 t) up to two thirds, then
    0.1^t; `adaptation` 0.1 in warm-up, then 0.5^t."""
    ema: float = 0.995
    """Decay of the moving average of IE-Net and UM-Net, from which adaptation starts."""
    grad_clip: float = 0.0
    """Largest norm of the shared gradient; 0 does not clip."""


@dataclass(frozen=True, kw_only=True)
class DensityConfig:
    """Growth and pruning of the shared field (model.md 5)."""

    start: int = 300
    every: int = 100
    """Steps with images between two updates; 0: none."""
    grad_face: float = 5e-4
    grad_mouth: float = 2e-4
    """A Gaussian whose mean screen-space gradient (half images) exceeds this has a child."""
    grow: float = 0.1
    """Children at one update, as a share of the living, at most."""
    prune_from: float = 0.05
    prune_to: float = 0.05
    """Opacity, maximum over all identities, below which a Gaussian is removed: ramps over the run."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What pretraining, adaptation and training from scratch have in common."""

    steps: int = 1500
    frames_per_step: int = 2
    """The global batch, whatever the number of ranks: each frame comes from another lane of identities."""
    curriculum_every: int = 0
    """Each so-many-th frame of an identity is chosen by how far mouth or eyes are open, from closed to open and back; 0: all come in turn."""
    hush: float = 0.1
    """Share of the draws that take, instead of the frame whose turn it is, one with shut lips, heard as silence: few clips show a silence."""
    in_place: float = 0.8
    """Share of the frames in which the head is put over the frame's own surroundings, as it will be rendered, instead of a random colour. Inside the mouth
    that colour stays until motion is learnt."""
    seed: int = 0
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    stages: StageConfig = StageConfig()
    optim: OptimConfig = OptimConfig()
    density: DensityConfig = DensityConfig()
    log_every: int = 20
    """Steps between two lines of numbers; 0: only with looks."""
    images_every: int = 500
    """Steps between two looks at the people in training: scores on fixed test frames, and pictures."""
    films_every: int = 0
    """Steps between two looks with a short film of each, in whole multiples of `images_every`; 0: none."""
    watched: int = 24
    """People that are looked at, spread evenly over all by name."""
    checkpoint_every: int = 500
    keep: int = 2
    """Newest checkpoints that are kept; 0: all."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps are kept for good; 0: none."""
    refused_at_most: int = 20
    """Steps in a row that may be refused, because a loss or a gradient is not finite, before the run ends."""
    precision: Precision = "fp32"
    """Of the networks' products while training: bf16 suits GPUs. Parameters, moments, tables, Gaussians, rendering and losses are float32 in any case."""
    raster: RasterBackend = "auto"
    encoder: EncoderBackend = "auto"
    ssim: SsimBackend = "auto"


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One shared field, one IE-Net and one UM-Net from many identities."""

    data: str = "shards/local"
    """Folder or s3:// prefix that holds manifest.json."""
    identities: tuple[str, ...] = ()
    """Names to train on; none: all of the manifest."""
    runs: str = "runs"
    """Folder or s3:// prefix of the run folders."""
    name: str = "pretrain"
    """The run folder is runs/name; a run that is there goes on from its newest checkpoint."""
    zero_stage: int = 1
    """What DeepSpeed shards over the ranks: 0 nothing, 1 the shared model's optimiser state, 2 its gradients too."""
    init_identities: int = 16
    """Identities that place and colour the first Gaussians and span the audio code."""
    dry_run_world: int = 0
    """Prints what each of so many ranks would own and hold, or why they would be refused, and starts nothing; 0: trains."""
    neighbour_every: int = 100
    """Who is alone in a lane is contrasted with a copy of another person's net: steps from one copy to the next; 0: the first one stays."""
    first_step_timeout_s: float = 900.0
    """How long the first step of a stage, in which kernels may be compiled, and a wait for a checkpoint may take; then the run ends with a line."""
    step_timeout_s: float = 180.0
    """The same for every other step with the start of a checkpoint that follows it, and for each frame of a look at people, seconds."""
    train: TrainConfig = TrainConfig()


@dataclass(frozen=True, kw_only=True)
class PlateauConfig:
    """When an identity has learnt what its clip can teach it: its motion stage then ends early, and fusion follows. Each is judged by itself."""

    every: int = 100
    """Steps between two looks at the frames that are held out; 0: only at the end."""
    patience: int = 8
    """Looks in a row without a rise that make a plateau; 0: every identity trains for all of its steps."""
    rise_db: float = 0.05
    """Less than this over the best look so far is no rise."""
    frames: int = 6
    """Training frames that are held out, spread over the clip; a tenth of them at most."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """One new identity from a pretrained checkpoint."""

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            frames_per_step=1,
            stages=StageConfig(warm_up=0.10, landmark_steps=200),
            loss=LossConfig(triplet=0.0, contrast=0.0, attention_lips=1e-4),
            optim=OptimConfig(universal=0.5),
        )
    )
    nearest_personal: bool = True
    """Start the new IM-Net from the pretrained identity nearest by embedding, else fresh."""
    settle: bool = True
    """Before the first step, bring Gaussians that lie beside this head onto it, and give all the colours of the clip's frames."""
    room: float = 1.3
    """Capacity of this person's fields against the checkpoint's, 1 or more: a shared field that has grown full has no room for what only this one has."""
    own_field: bool = False
    """Start Gaussians and IE-Net anew from the clip, and take only motion from the checkpoint: the paper's exclusive field (EGF), to compare with."""
    plateau: PlateauConfig = PlateauConfig()
    retries: int = 2
    """How often an identity that died is tried again, from its last checkpoint."""
    cpus_per_trial: int = 0
    """Cores of one identity's trial; 0: as many as are of use to it, by a measurement on the first one."""
    gpus_per_trial: float | None = None
    """Share of a GPU that a trial takes; none: by what the first one needs of its memory; 0: trains on CPUs."""
