"""What a sample and an identity's meta must look like: the types of types.py, and the manifest's formats."""

import dataclasses
import typing
from typing import Any, TypeVar

import numpy as np
from jaxtyping import jaxtyped

from fiag_dist.shards.manifest import Manifest
from fiag_dist.types import Frame, IdentityMeta, Label

T = TypeVar("T")

SAMPLE_MEMBERS = ("jpg", "alpha.png", "mask.png", "audio.npy", "id.npy", "landmarks.npy", "json")
"""Files of one sample, by extension."""


def checked(kind: type[T], values: dict[str, Any]) -> T:
    """The record `kind` (Frame, IdentityMeta) made of its fields' values: what types.py declares is the schema.

    Raises ValueError that names every field that is missing, whose type, dtype or axes are not the declared ones, or that holds NaN or infinity.
    """
    found = []
    hints = typing.get_type_hints(kind)
    with jaxtyped("context"):  # an axis name stands for the same length in all fields
        for name in [item.name for item in dataclasses.fields(kind)]:  # type: ignore[arg-type]
            if name not in values:
                found.append(f"{name} is missing")
                continue
            value, hint = values[name], hints[name]
            if not (isinstance(value, hint) if isinstance(hint, type) else _fits(value, hint)):
                found.append(f"{name} is {_shown(value)}, expected {getattr(hint, '__name__', hint)}")
            elif np.asarray(value).dtype.kind == "f" and not np.isfinite(value).all():
                found.append(f"{name} holds values that are not finite")
    if found:
        raise ValueError("; ".join(found))
    return kind(**values)


def mismatches(frame: Frame, formats: Manifest | None = None) -> list[str]:
    """What is wrong with a frame's sizes and ranges, by field; with `formats`, also what differs from the manifest."""
    found = []
    side = len(frame.image)
    if frame.labels.max() > max(Label):
        found.append(f"labels go up to {frame.labels.max()}, expected 0 .. {max(Label):d}")
    x0, y0, x1, y1 = frame.lips_rect
    if not (0 <= x0 < x1 <= side and 0 <= y0 < y1 <= side):
        found.append(f"lips_rect {list(frame.lips_rect)} is empty or outside {side} x {side} pixels")
    if formats:
        found += _other_shape("image", frame.image, (formats.size, formats.size, 3))
        found += _other_shape("audio", frame.audio, (8, formats.audio.dim, formats.audio.window))
        found += _other_shape("embedding", frame.embedding, (formats.id_embedding.dim,))
        found += _other_shape("expression", frame.expression, (len(formats.expression),))
    return found


def meta_mismatches(meta: IdentityMeta, formats: Manifest) -> list[str]:
    """What of an identity's meta differs from the manifest, and from its own number of frames."""
    found = []
    num_frames, side = len(meta.split), formats.size
    channels, window = len(formats.expression), (formats.audio.dim, formats.audio.window)
    for name, shape in (
        ("plate", (side, side, 3)),
        ("embedding", (formats.id_embedding.dim,)),
        ("viewmats", (num_frames, 4, 4)),
        ("swing", (num_frames, 3, 4)),
        ("expressions", (num_frames, channels)),
        ("speech", (num_frames, *window)),
        ("silence", (len(meta.silence), *window)),
    ):
        found += _other_shape(name, getattr(meta, name), shape)
    return found


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is as one of the compound annotations of types.py says."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(args) and all(map(isinstance, value, args))
    assert origin is list, f"types.py has learned {hint}"
    return isinstance(value, list) and all(_fits(item, args[0]) for item in value)


def _other_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> list[str]:
    return [] if array.shape == shape else [f"{name} is {_shown(array)}, the manifest says {list(shape)}"]


def _shown(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"{value!r:.60}"
