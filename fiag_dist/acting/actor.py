"""An adapted identity on its own: baked Gaussians and the networks that move them, as a folder that loads anywhere, without pickle.

identity.json         format version, formats of its inputs, configuration of its networks, where it came from
identity.safetensors  Gaussians of face and mouth, UM-Net, IM-Net
"""

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from fiag_dist.config import MotionConfig, RasterBackend
from fiag_dist.configfile import from_dict, to_dict
from fiag_dist.errors import ConfigError, DataError
from fiag_dist.model.audio import NARROW
from fiag_dist.model.field import PARAMETERS
from fiag_dist.model.head import Head, Performance, Person, act, film
from fiag_dist.model.motion import Drive, PersonalNet
from fiag_dist.model.universal import UniversalMotion
from fiag_dist.storage import open_storage
from fiag_dist.types import GAZE, Camera, Gaussians

VERSION = 6
"""Raised whenever a program that knows only the one before could not read the folder."""
OLDEST = 1
"""From this version on, folders are brought up to date as they are loaded."""
INFO, TENSORS = "identity.json", "identity.safetensors"
MAX_SIZE = 4096
"""Largest side of an identity's images, pixels: a damaged file must not ask for all memory."""


@dataclass(frozen=True, kw_only=True)
class IdentityInfo:
    """What identity.json says."""

    name: str
    size: int
    """Side of the square frames it was trained on, pixels."""
    fps: int
    extractor: str
    """Speech features it listens to; others are refused by name."""
    audio_dim: int
    audio_window: int
    motion: MotionConfig
    data: str
    """Where its shards are: manifest's folder or prefix."""
    checkpoint: str
    """What it was adapted from; empty when trained from scratch."""
    steps: int
    source: str = ""
    """File name of the clip."""
    consent: str = ""
    """What the person agreed to, in free text (`fiag-dist pack --consent`); every rendered video says it."""
    footage: str = ""
    """SHA-256 of what its shards held of it when it was made; empty in folders of before version 6."""
    version: int = VERSION


class Actor(nn.Module):
    """One person, ready to perform: IE-Net is baked into the Gaussians and leaves the render loop (model.md 2.3)."""

    def __init__(self, person: Person, universal: UniversalMotion, personal: PersonalNet):
        super().__init__()
        for branch in ("face", "mouth"):
            for name in PARAMETERS:
                self.register_buffer(f"{branch}_{name}", getattr(getattr(person, branch), name).detach().clone())
        self.universal, self.personal = universal, personal

    @classmethod
    def bake(cls, head: Head, personal: PersonalNet, embedding: Float[Tensor, " id_dim"]) -> "Actor":
        """theta_i once and for all, for the mean embedding of a clip."""
        with torch.no_grad():
            return cls(head.person(embedding), head.universal, personal).eval()

    @property
    def person(self) -> Person:
        branches = ({name: getattr(self, f"{branch}_{name}") for name in PARAMETERS} for branch in ("face", "mouth"))
        return Person(*(Gaussians(**values) for values in branches))

    @torch.no_grad()
    def forward(
        self,
        audio_8CW: Float[Tensor, "8 dim window"],
        expression: Float[Tensor, " channels"],
        camera: Camera,
        swing: Float[Tensor, "3 4"] | None = None,
        raster: RasterBackend = "auto",
    ) -> Performance:
        """Performs one frame. audio_8CW: windows t-4 .. t+3; expression: EXPRESSION_NAMES; swing: of hair, as in Frame."""
        drive = Drive(self.universal.listener(audio_8CW), expression, swing)
        return film([act(self.person, self.universal, self.personal, drive)], [camera], raster)[0]


def save_actor(folder: Path, actor: Actor, info: IdentityInfo) -> None:
    """Writes the two files; identity.json last, so that a folder with it is whole."""
    storage = open_storage(folder)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in actor.state_dict().items()}
    storage.write(TENSORS, safetensors.torch.save(tensors))
    plain = {f.name: getattr(info, f.name) for f in dataclasses.fields(info)} | {"motion": to_dict(info.motion)}
    storage.write(INFO, (json.dumps(plain, indent=1) + "\n").encode())


def refuse_remote(path: Path, written: bool = False, is_file: bool = False) -> None:
    """Raises ConfigError for an s3:// address: identities, and the one file of a sound, are used, and what is made with them is `written`, on this machine."""
    if path.parts[:1] != ("s3:",):  # a path keeps one of the slashes
        return
    url = f"s3://{'/'.join(path.parts[1:])}"
    rule = f"{url}: evaluate, render, view, export and identity work with files on this machine"
    if written:
        raise ConfigError(f"{rule}; give a name here, and copy it then: aws s3 cp {path.name} {url}")
    raise ConfigError(f"{rule}; copy it here first: aws s3 cp {'' if is_file else '--recursive '}{url} {path.name}")


def refuse_unreadable(folder: Path, *names: str) -> None:
    """Raises DataError where files of an identity folder are there and can't be read; what is missing, or damaged, is told by who reads it."""
    for name in names:
        try:
            if (folder / name).is_file():
                (folder / name).open("rb").close()
        except OSError as error:
            raise DataError(
                f"identity {folder}: {name} can't be read ({error.strerror}); check its rights, and the folder's"
            ) from error


def load_info(folder: Path) -> IdentityInfo:
    """Raises DataError when the folder holds no identity, or one of another version, ConfigError when it is on S3."""
    refuse_remote(folder)
    refuse_unreadable(folder, INFO, TENSORS)
    path = folder / INFO
    if folder.is_file():
        raise DataError(f"identity {folder}: is a file; give the folder that it lies in: {folder.parent}")
    if not path.is_file():
        raise DataError(
            f"identity {folder}: no {INFO} in it, so it is no finished identity; make one: fiag-dist adapt CLIPS --from RUN --out DIR"
        )
    try:
        values: Mapping[str, Any] = json.loads(path.read_text())
        if type(values["version"]) is not int:
            raise TypeError(f"version {values['version']!r}")
        if not OLDEST <= values["version"] <= VERSION:
            raise DataError(_other_version(folder, values))
        hints = typing.get_type_hints(IdentityInfo)
        for key, value in values.items():
            if hints[key] in (str, int) and type(value) is not hints[key]:
                raise TypeError(f"{key}: {value!r:.60} is no {hints[key].__name__}")
        fields: dict[str, Any] = {**values, "motion": from_dict(MotionConfig, values["motion"], "motion")}
        info = IdentityInfo(**fields)
        if not (0 < info.size <= MAX_SIZE and info.fps > 0):
            raise ValueError(
                f"size {info.size}, fps {info.fps}: the rule is a size of 1 to {MAX_SIZE} pixels and a rate above 0"
            )
        return info
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError(f"identity {folder}: {INFO} is damaged ({error}); adapt the clip again") from error


def _other_version(folder: Path, values: Mapping[str, Any]) -> str:
    """What to do about a folder of another format."""
    said = f"identity {folder}: format version {values['version']}, this fiag_dist reads versions {OLDEST} to {VERSION}"
    if values["version"] > VERSION:
        return f"{said}; it is from a newer fiag_dist: git pull, then bash launch/install.sh"
    clip = values.get("source") or "CLIP"
    start = f"--from {values['checkpoint']}" if values.get("checkpoint") else "--from RUN"
    return f"{said}; make it anew: fiag-dist adapt {clip} {start} --out {folder.parent}"


def load_actor(folder: Path, info: IdentityInfo) -> Actor:
    """The actor of an identity folder. Raises DataError when its tensors are missing or damaged."""
    try:
        tensors = _up_to_date(safetensors.torch.load_file(folder / TENSORS), info)
        universal = UniversalMotion(info.motion, info.audio_dim, info.audio_window, tensors["universal.rest_landmarks"])
        branches = ({name: tensors[f"{branch}_{name}"] for name in PARAMETERS} for branch in ("face", "mouth"))
        actor = Actor(Person(*(Gaussians(**values) for values in branches)), universal, universal.new_personal())
        actor.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise DataError(
            f"identity {folder}: {TENSORS} is missing or damaged ({' '.join(str(error).split())[:160]}); adapt the clip again"
        ) from error
    return actor.eval()


def _up_to_date(tensors: dict[str, Tensor], info: IdentityInfo) -> dict[str, Tensor]:
    """The tensors as this version has them."""
    center, mean, voice = (f"universal.listener.{name}" for name in ("center", "mean", "voice"))
    if center not in tensors:  # version 1: a listener took the mean away at once, and heard everything as voice
        is_net = info.motion.audio.code == "net"
        tensors[center] = tensors[mean] if is_net else torch.zeros(info.audio_dim)
        tensors[mean] = torch.zeros(0) if is_net else tensors[mean]
        tensors[voice] = torch.cat([torch.zeros(info.audio_dim), torch.ones(1)])
    # To version 3 no listener was shown digital silence.
    tensors.setdefault("universal.listener.gate", torch.tensor(NARROW))
    if info.version < 5:  # eyes looked where brows and lids had them look
        for name in ("universal.face.net.0.weight", "personal.net.0.weight"):
            if name in tensors:
                tensors[name] = torch.cat(
                    [tensors[name][:, :-1], torch.zeros(len(tensors[name]), len(GAZE)), tensors[name][:, -1:]], 1
                )
    return tensors
