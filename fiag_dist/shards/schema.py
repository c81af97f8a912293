"""What a sample and an identity's meta must look like: the types of types.py, and the manifest's formats."""

import dataclasses
import typing
from typing import Any

import numpy as np

from fiag_dist.shards.manifest import Manifest
from fiag_dist.types import Frame, IdentityMeta, Label

SAMPLE_MEMBERS = ("jpg", "alpha.png", "mask.png", "audio.npy", "id.npy", "landmarks.npy", "json")
"""Files of one sample, by extension."""


def mismatches(frame: Frame, formats: Manifest | None = None) -> list[str]:
    """What is wrong with a frame's types, shapes and ranges, by field; with `formats`, also what differs from the manifest."""
    found = _wrong_types(frame)
    if found:
        return found
    height, width = frame.image.shape[:2]
    for name, array in (("image", frame.image), ("alpha", frame.alpha), ("labels", frame.labels)):
        side = formats.size if formats else height
        if array.shape[:2] != (side, side):
            found.append(f"{name} is {_shown(array)}, expected {side} x {side} pixels")
    if frame.labels.max() > max(Label):
        found.append(f"labels go up to {frame.labels.max()}, expected 0 .. {max(Label):d}")
    x0, y0, x1, y1 = frame.lips_rect
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        found.append(f"lips_rect {list(frame.lips_rect)} is empty or outside {width} x {height} pixels")
    if formats:
        window = (formats.audio.dim, formats.audio.window)
        found += _other_shape("audio", frame.audio, (8, *window))
        found += _other_shape("embedding", frame.embedding, (formats.id_embedding.dim,))
        found += _other_shape("expression", frame.expression, (len(formats.expression),))
    return found


def meta_mismatches(meta: IdentityMeta, formats: Manifest) -> list[str]:
    """What is wrong with an identity's meta: its types, and what differs from the manifest and its own number of frames."""
    found = _wrong_types(meta)
    if found:
        return found
    num_frames, side = len(meta.split), formats.size
    channels, window = len(formats.expression), (formats.audio.dim, formats.audio.window)
    for name, shape in (
        ("plate", (side, side, 3)),
        ("embedding", (formats.id_embedding.dim,)),
        ("viewmats", (num_frames, 4, 4)),
        ("expressions", (num_frames, channels)),
        ("speech", (num_frames, *window)),
    ):
        found += _other_shape(name, getattr(meta, name), shape)
    return found


def _wrong_types(record: Frame | IdentityMeta) -> list[str]:
    """Fields whose type, dtype or number of axes is not the declared one, and arrays with values that are no numbers."""
    found = []
    hints = typing.get_type_hints(type(record))
    for item in dataclasses.fields(record):
        value, hint = getattr(record, item.name), hints[item.name]
        if not _fits(value, hint):
            found.append(f"{item.name} is {_shown(value)}, expected {getattr(hint, '__name__', hint)}")
        elif np.asarray(value).dtype.kind == "f" and not np.isfinite(value).all():
            found.append(f"{item.name} holds values that are not finite")
    return found


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(args) and all(map(_fits, value, args))
    if origin is list:
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value)
    return isinstance(value, hint)


def _other_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> list[str]:
    return [] if array.shape == shape else [f"{name} is {_shown(array)}, the manifest says {list(shape)}"]


def _shown(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"{value!r:.60}"
