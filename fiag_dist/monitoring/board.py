"""A run's TensorBoard, laid out for a person: curves in groups, each identity's pictures under one roof, short films as animated GIFs."""

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from torch.utils.tensorboard import SummaryWriter

from fiag_dist.stages import Stage

PICTURE_PX = 1024
"""Pictures wider than this are made smaller: the browser shows them all at once."""
FULL_BYTES = 2**20
"""Of an event file of a run that is mirrored: it is copied once more when it has grown, so another one is begun after as much."""
SCALAR_BYTES = 48
"""Of an event, beside its tag."""
LAYOUT = {
    "1 How good": {
        "PSNR of test frames by identity, dB": ["eval/psnr_db/.*"],
        "total loss by stage": ["loss_by_stage/.*"],
    },
    "2 Losses": {
        "pictures": ["loss/(face|mouth|fusion|lpips|face_lips)$"],
        "motion": ["loss/(landmarks|silence|motion|contrast)$"],
        "identity": ["loss/triplet$"],
        "where things may be": ["loss/(face_coverage|mouth_coverage|attention_.*)$"],
    },
    "3 Field": {"Gaussians": ["field/num_gaussians.*"], "grown and pruned in all": ["field/(grown|pruned)$"]},
    "4 Speed": {
        "a step and its parts, ms": ["time/(step|data|communication|compute)_ms$"],
        "between steps, ms": ["time/(between|save|look)_ms$"],
        "waiting for data, % of the step": ["time/data_pct$"],
        "frames a second": ["throughput/.*"],
        "slowest rank over the mean one": ["balance/.*"],
    },
    "5 Memory": {"peak of the largest rank, and its personal nets, MiB": ["memory/.*"]},
    "6 Learning rates": {
        "Gaussians": ["rate/(means|quats|log_scales|opacities|sh_.*)$"],
        "networks": ["rate/(identity|universal|personal)_.*"],
    },
    "7 Health": {
        "norm of the gradient": ["train/grad_norm$"],
        "stage, and steps refused": ["train/(stage|refused_steps)$"],
        "share of personal nets whose update was refused": ["train/refused_nets$"],
    },
}
"""Page -> chart -> patterns of the tags in it, for the tab "Custom scalars"."""


class Board:
    """What rank 0 shows."""

    def __init__(self, folder: Path, resume_step: int, in_files: bool = False) -> None:
        """resume_step: what was written after it is taken out of sight. in_files: one file after another, each of about FULL_BYTES and never touched again."""
        self._folder, self._in_files = folder, in_files
        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1)
        self._begun, self._bytes = int(time.time()), 0
        self._writer.add_custom_scalars(
            {page: {chart: ["Multiline", tags] for chart, tags in charts.items()} for page, charts in LAYOUT.items()}
        )

    def scalars(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Puts numbers down by tag; None is left out. The total loss also goes to its stage's own curve."""
        if self._in_files:
            self._begin_another()
        stage, total = values.get("train/stage"), values.get("loss/total")
        if stage is not None and total is not None:
            values = {**values, f"loss_by_stage/{int(stage)}_{Stage(int(stage)).name.lower()}": total}
        for tag, value in values.items():
            if value is not None:
                self._writer.add_scalar(tag, value, step)
                self._bytes += len(tag) + SCALAR_BYTES
        self._writer.flush()

    def text(self, tag: str, text: str) -> None:
        """Puts down lines in columns, as they are."""
        self._writer.add_text(tag, "\n".join("    " + line for line in text.splitlines()))

    def picture(self, step: int, tag: str, encoded: bytes) -> None:
        """Puts down a PNG or a GIF; a GIF moves."""
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
        content = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=encoded)
        file: Any = self._writer._get_file_writer()
        self._bytes += len(encoded)
        file.add_summary(Summary(value=[Summary.Value(tag=tag, image=content)]), step)

    def _begin_another(self) -> None:
        """Goes on in a new file when this one is full. TensorBoard reads files by their names, which begin with the second that they were begun in."""
        if self._bytes >= FULL_BYTES and int(time.time()) > self._begun:
            self._writer.close()
            self._writer = SummaryWriter(str(self._folder))
            self._begun, self._bytes = int(time.time()), 0

    def close(self) -> None:
        """Writes out what is buffered."""
        self._writer.close()


def png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """An RGB picture, made smaller where it is wider than PICTURE_PX."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(_narrowed(image)[..., ::-1]))
    assert done
    return data.tobytes()


def gif(frames: Sequence[UInt8[np.ndarray, "height width 3"]], fps: int) -> bytes:
    """RGB frames that play for ever."""
    images = [Image.fromarray(_narrowed(frame)) for frame in frames]
    out = io.BytesIO()
    images[0].save(out, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return out.getvalue()


def _narrowed(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if width <= PICTURE_PX:
        return image
    return cv2.resize(image, (PICTURE_PX, round(height * PICTURE_PX / width)), interpolation=cv2.INTER_AREA)
