"""Folders as the preprocessing of RAD-NeRF, ER-NeRF, TalkingGaussian and InsTaG leaves them: what lies where, and what it means.

transforms_train.json, transforms_val.json   focal_len, cx, cy (pixels) and frames: img_id, transform_matrix (camera to world, OpenGL axes, any unit)
ori_imgs/ID.jpg                              the frames, 25 a second; gt_imgs/ID.jpg, the same over the plate, where they are missing
parsing/ID.png                               classes by colour: face blue, hair black, inside of the mouth grey, neck green, torso red, background white
bc.jpg                                       the background without the person
aud.wav                                      the sound
au.csv                                       OpenFace's action units, 0..5, in columns whose names begin with a space
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from fiag_dist.errors import DataError
from fiag_dist.ingest.footage import shrunk
from fiag_dist.types import ACTION_UNITS, Split

FPS = 25
MOST_AU, MOST_BLINK = 5.0, 2.0
"""OpenFace's intensities end at 5; eyes are shut from 2 on."""
TRANSFORMS: tuple[tuple[Split, str], ...] = (("train", "transforms_train.json"), ("test", "transforms_val.json"))
_IMAGES = ("ori_imgs", "gt_imgs")


@dataclass(frozen=True, eq=False)
class Prepared:
    """One folder, its frames in the order of their numbers. `crops` gives them as square pictures."""

    folder: Path
    numbers: list[int]
    to_world: Float64[np.ndarray, "frames 4 4"]
    """Camera to world, OpenGL axes, in the folder's own unit."""
    split: list[Split]
    K: Float64[np.ndarray, "3 3"]
    """Pixels of the frames as they lie there."""
    side: int

    def crops(self, size: int, first: int = 0, stop: int | None = None) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        """Frames first .. stop - 1, RGB, size x size."""
        for number in self.numbers[first:stop]:
            yield resized(_picture(self.folder, number), size)

    def parsing(self, index: int) -> UInt8[np.ndarray, "side side 3"]:
        """Class colours of a frame, RGB."""
        return _read(self.folder / "parsing" / f"{self.numbers[index]}.png", self.side)

    def plate(self) -> UInt8[np.ndarray, "side side 3"]:
        return _read(self.folder / "bc.jpg", self.side)

    def action_units(self) -> Float32[np.ndarray, "frames units"] | None:
        """ACTION_UNITS, 0..1; None without an au.csv."""
        path = self.folder / "au.csv"
        if not path.is_file():
            return None
        with path.open(newline="") as stream:
            rows = [{(k or "").strip(): v for k, v in row.items()} for row in csv.DictReader(stream)]
        try:
            table = np.array([[float(row[f"{name}_r"]) for name in ACTION_UNITS] for row in rows], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            columns = ", ".join(f"{name}_r" for name in ACTION_UNITS)
            raise DataError(
                f"{path}: no table of numbers with the columns {columns} ({error}); run OpenFace again"
            ) from error
        if len(table) <= max(self.numbers):
            raise DataError(
                f"{path}: {len(table)} rows, frame {max(self.numbers)} needed; run OpenFace on the whole clip"
            )
        return np.clip(table[self.numbers] / MOST_AU, 0, 1)


def read(folder: Path) -> Prepared:
    """Checks that everything is there but the pictures' pixels. Raises DataError with what is missing or wrong."""
    frames: dict[int, tuple[np.ndarray, Split]] = {}
    lens: dict[str, float] = {}
    for split, name in TRANSFORMS:
        tree = _json(folder / name)
        try:
            lens = {key: float(tree[key]) for key in ("focal_len", "cx", "cy")}
            for frame in tree["frames"]:
                frames[int(frame["img_id"])] = np.array(frame["transform_matrix"], np.float64).reshape(4, 4), split
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder / name}: not in the layout of RAD-NeRF and its kin ({error!r}); make the folder again"
            ) from error
    if not frames:
        raise DataError(f"{folder}: its transforms name no frames; make the folder again")
    numbers = sorted(frames)
    for number in numbers:
        parsing = folder / "parsing" / f"{number}.png"
        if not parsing.is_file():
            raise DataError(f"{parsing}: no such file; every frame needs its parsing")
    first = _picture(folder, numbers[0])
    height, width = first.shape[:2]
    if height != width:
        raise DataError(
            f"{folder}: frames of {width}x{height} pixels, squares needed; crop the clip to the head and make the folder again"
        )
    K = np.array([[lens["focal_len"], 0, lens["cx"]], [0, lens["focal_len"], lens["cy"]], [0, 0, 1]])
    return Prepared(
        folder=folder,
        numbers=numbers,
        to_world=np.stack([frames[number][0] for number in numbers]),
        split=[frames[number][1] for number in numbers],
        K=K,
        side=height,
    )


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """A square picture at size x size, by area when it shrinks."""
    return shrunk(image, size) if size <= len(image) else cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not valid JSON"
        raise DataError(f"{path}: can't be read ({reason}); make the folder again") from error


def _picture(folder: Path, number: int) -> UInt8[np.ndarray, "height width 3"]:
    for place in _IMAGES:
        for suffix in (".jpg", ".png"):
            path = folder / place / f"{number}{suffix}"
            if path.is_file():
                return _read(path)
    raise DataError(f"{folder}: no picture of frame {number} in {' or '.join(_IMAGES)}; make the folder again")


def _read(path: Path, side: int = 0) -> UInt8[np.ndarray, "height width 3"]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise DataError(f"{path}: no such picture, or not readable; make the folder again")
    if side and image.shape[:2] != (side, side):
        raise DataError(
            f"{path}: {image.shape[1]}x{image.shape[0]} pixels, the frames have {side}x{side}; make the folder again"
        )
    return image
