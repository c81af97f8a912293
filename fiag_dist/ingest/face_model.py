"""The canonical face of the landmark model: its vertices."""

import zipfile
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Float64

from fiag_dist import weights
from fiag_dist.errors import WeightsError
from fiag_dist.landmarks import LEFT_EYE, NUM_VERTICES, RIGHT_EYE
from fiag_dist.types import HEAD_ORIGIN_M

_FIELDS_PER_VERTEX = 5


@lru_cache(maxsize=1)
def canonical_vertices() -> Float64[np.ndarray, "468 3"]:
    """The canonical face in our head frame, metres. Raises WeightsError when the landmark model's file is missing or of another make."""
    model = weights.path("face-landmarker")
    with zipfile.ZipFile(model) as bundle:
        name = next((n for n in bundle.namelist() if n.startswith("geometry_pipeline_metadata")), None)
        if name is None:
            raise WeightsError(f"{model}: holds no canonical face; run: fiag-dist weights fetch")
        metadata = bundle.read(name)
    for field, wire, value in _fields(metadata):
        if wire == 2 and field == 1 and isinstance(value, bytes):  # the canonical mesh; its vertices are x y z u v
            floats = [v for _, w, v in _fields(value) if w == 5 and isinstance(v, bytes)]
            packed = [v for _, w, v in _fields(value) if w == 2 and isinstance(v, bytes)]
            for data in (b"".join(floats), *packed):
                if len(data) == 4 * _FIELDS_PER_VERTEX * NUM_VERTICES:
                    vertices_cm = np.frombuffer(data, "<f4").reshape(-1, _FIELDS_PER_VERTEX)[:, :3].astype(np.float64)
                    return vertices_cm / 100 - np.array([0.0, HEAD_ORIGIN_M, 0.0])
    raise WeightsError(f"{model}: its canonical face is not in the expected form; run: fiag-dist weights fetch")


def rest_start() -> Float64[np.ndarray, "478 3"]:
    """The canonical face with the irises in the middle of their eye contours, head frame, metres."""
    vertices = canonical_vertices()
    irises = [np.repeat(vertices[list(eye)].mean(0)[None], 5, axis=0) for eye in (RIGHT_EYE, LEFT_EYE)]
    return np.concatenate([vertices, *irises])


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Field number, wire type and raw value of each entry of a protocol-buffer message."""
    offset = 0

    def varint() -> int:
        nonlocal offset
        value = shift = 0
        while True:
            byte = data[offset]
            offset += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while offset < len(data):
        key = varint()
        field, wire = key >> 3, key & 7
        if wire == 0:
            yield field, wire, varint()
            continue
        size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        yield field, wire, data[offset : offset + size]
        offset += size
