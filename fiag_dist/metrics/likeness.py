"""Whether a face recogniser takes the render for the person, and for nobody else."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from fiag_dist.ingest.identity import IdentityEmbedder
from fiag_dist.metrics.faces import Seen

Embedding = Float32[np.ndarray, " id_dim"]


class Recogniser:
    """Embeds found faces. Raises ConfigError when its library is not installed, WeightsError when its file is missing."""

    def __init__(self) -> None:
        self._embedder = IdentityEmbedder()

    def embed(self, image: UInt8[np.ndarray, "size size 3"], face: Seen | None) -> Embedding | None:
        """L2-normalised, 128 numbers; None without a face. 0.15 s on one core."""
        return None if face is None else self._embedder.embed(image, face.landmarks.astype(np.float32))


def scores(
    render: Sequence[Embedding | None], truth: Sequence[Embedding | None], people: Mapping[str, Embedding]
) -> dict[str, float | dict[str, float] | None]:
    """`identity_cosine`: mean cosine of the embeddings of a frame's render and truth, 1 at most.

    `identity_cosine_to`: mean cosine between the render's embeddings and each person's own, L2-normalised, of `people`; absent without any.
    None and absent where no face was found.
    """
    mine = [e for e in render if e is not None]
    pairs = [float(a @ b) for a, b in zip(render, truth, strict=True) if a is not None and b is not None]
    near = {name: float(np.mean([e @ other for e in mine])) for name, other in people.items()} if mine else {}
    return {"identity_cosine": float(np.mean(pairs)) if pairs else None} | (
        {"identity_cosine_to": near} if near else {}
    )
