"""The chosen metrics and the tools that they need: looks at pictures one by one, then says the numbers of a series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fiag_dist import weights
from fiag_dist.errors import ConfigError, WeightsError
from fiag_dist.ingest.whisper import WHISPER
from fiag_dist.metrics import action_units, likeness, motion
from fiag_dist.metrics.faces import FaceFinder, Seen
from fiag_dist.metrics.likeness import Embedding, Recogniser
from fiag_dist.metrics.perceptual import Perceptual
from fiag_dist.metrics.regions import Truth
from fiag_dist.metrics.syncnet import SyncNet

IMAGE = ("psnr", "ssim")
"""What needs no more than the core package: seconds an identity."""
OF_FACES = ("lmd", "mouth", "eyes", "aue", "identity", "speech", "sync")
"""What first needs a face found in each picture."""
ALL = (*IMAGE, "lpips", *OF_FACES)
_PREFIXES = {
    "lmd": ("lmd_",),
    "mouth": ("mouth_opening_",),
    "eyes": ("eye_closure_", "gaze_"),
    "aue": ("aue_",),
}
_INSTALL = "bash launch/install.sh ingest"

Numbers = dict[str, Any]
"""Metrics by key; the key ends in the unit where there is one."""


def asked(fast: bool, metrics: str, syncnet: Path | None = None) -> tuple[str, ...]:
    """The names that a command's --fast and --metrics mean, separated by commas; all without either. SyncNet's `sync` is among them when its weights are given.

    Raises ConfigError when both are given, or `sync` without weights.
    """
    if fast and metrics:
        raise ConfigError(f"--fast and --metrics {metrics}: give one of them")
    names = tuple(name.strip() for name in metrics.split(",")) if metrics else IMAGE if fast else ALL
    if syncnet:
        return tuple(dict.fromkeys((*names, "sync")))
    if metrics and "sync" in names:
        raise ConfigError("metric sync: SyncNet's weights are yours to bring; name them: --syncnet syncnet_v2.model")
    return tuple(name for name in names if name != "sync")


@dataclass(frozen=True, eq=False)
class Look:
    """What was measured of one picture."""

    scores: Mapping[str, float] = field(default_factory=dict)
    face: Seen | None = None
    embedding: Embedding | None = None


class Panel:
    """The metrics of an evaluation. Use it as a context manager.

    names: of ALL. With `strict` a metric whose library or file is missing raises its ConfigError or WeightsError; else it is left out, and
    `left_out` says why, one line a reason. syncnet: the weights for the metric `sync`. Raises ConfigError for an unknown name.
    """

    def __init__(self, names: Sequence[str] = IMAGE, strict: bool = False, syncnet: Path | None = None) -> None:
        for name in names:
            if name not in ALL:
                raise ConfigError(f"metric {name!r}: unknown; choose from {', '.join(ALL)}")
        self.names = [name for name in ALL if name in names]
        self.left_out: list[str] = []
        self._strict = strict
        with ExitStack() as opening:
            self._perceptual = self._tool(("lpips",), Perceptual)
            finder = self._tool(OF_FACES, FaceFinder)
            self._finder = opening.enter_context(finder) if finder else None
            self._recogniser = self._tool(("identity",), Recogniser)
            self._tool(("speech",), lambda: weights.path(WHISPER))
            self.syncnet = SyncNet(syncnet) if syncnet and "sync" in self.names else None
            """The judge of the metric `sync`, when it is chosen."""
            self._open = opening.pop_all()

    def __enter__(self) -> Panel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def sees_faces(self) -> bool:
        return self._finder is not None

    def find(self, image: UInt8[np.ndarray, "size size 3"]) -> Seen | None:
        """The face of a picture; None without one, or when no chosen metric asks for it."""
        return self._finder.find(image) if self._finder else None

    def look(
        self,
        image: UInt8[np.ndarray, "size size 3"],
        truth: Truth,
        *,
        perceptual: bool = False,
        face: bool = False,
        embed: bool = False,
    ) -> Look:
        """Measures a picture against its truth by the chosen metrics. perceptual, face, embed: also by those that need a network, which cost time."""
        scores: dict[str, float] = {}
        if "psnr" in self.names:
            scores |= truth.psnr(image)
        if "ssim" in self.names:
            scores |= truth.ssim(image)
        if perceptual and self._perceptual:
            scores |= self._perceptual.scores(image, truth)
        return self._with_face(image, scores, embed) if face else Look(scores)

    def look_at_truth(self, image: UInt8[np.ndarray, "size size 3"], embed: bool = False) -> Look:
        """The true face of a frame."""
        return self._with_face(image, {}, embed)

    def numbers(
        self, looks: Sequence[Look], truths: Sequence[Look], size: int, people: Mapping[str, Embedding] | None = None
    ) -> Numbers:
        """Means over a series of pictures and the metrics of whole tracks, by key. people: whose embeddings the render's are compared with."""
        out: Numbers = {key: float(np.mean([look.scores[key] for look in looks])) for key in looks[0].scores}
        if self._finder is None:
            return out
        mine, true = [look.face for look in looks], [look.face for look in truths]
        faces = motion.scores(mine, true, size) | action_units.scores(motion.found(mine, true))
        wanted = tuple(prefix for name in self.names for prefix in _PREFIXES.get(name, ()))
        out |= {key: value for key, value in faces.items() if key.startswith(wanted)}
        if self._recogniser:
            out |= likeness.scores([k.embedding for k in looks], [k.embedding for k in truths], people or {})
        return out

    def _with_face(self, image: np.ndarray, scores: Mapping[str, float], embed: bool) -> Look:
        face = self.find(image)
        return Look(scores, face, self._recogniser.embed(image, face) if embed and self._recogniser else None)

    def _tool(self, names: Sequence[str], make: Callable[[], Any]) -> Any:
        """The tool when one of `names` is chosen; names whose tool can't be had are left out."""
        wanted = [name for name in names if name in self.names]
        if not wanted:
            return None
        try:
            return make()
        except ConfigError:
            why = f"need what packing clips needs; run: {_INSTALL}"
            if self._strict:
                raise ConfigError(f"metrics {', '.join(wanted)} {why}") from None
        except WeightsError as error:
            if self._strict:
                raise
            why = str(error)
        self.names = [name for name in self.names if name not in wanted]
        self.left_out.append(f"left out: {', '.join(wanted)} ({why})")
        return None
