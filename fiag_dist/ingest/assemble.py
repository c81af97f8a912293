"""From what was found of a clip to its identity and samples: the last step, whatever the footage came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float16, Float32, Float64, UInt8

from fiag_dist.config import PackConfig
from fiag_dist.ingest import expression, masks, rest, speech
from fiag_dist.ingest.footage import Pictures, Stopwatch, Tracked
from fiag_dist.ingest.identity import nearest_in_time, normalised
from fiag_dist.ingest.masks import Masks
from fiag_dist.types import Frame, IdentityMeta, Split


@dataclass(eq=False, kw_only=True)
class Solved:
    """What is known of the used frames before the samples are made."""

    viewmats: Float64[np.ndarray, "frames 4 4"]
    K: Float64[np.ndarray, "3 3"]
    swing: Float[np.ndarray, "frames 3 4"]
    split: list[Split]
    """Training frames come first."""
    expressions: Float32[np.ndarray, "frames channels"]
    plate: UInt8[np.ndarray, "size size 3"]
    thumbnail: UInt8[np.ndarray, "size size 3"]
    wav: Float32[np.ndarray, " samples"]
    speech: Float16[np.ndarray, "frames dim window"]
    silence: Float16[np.ndarray, "silent dim window"]
    report: dict[str, Any]


def assemble(
    name: str, cfg: PackConfig, pictures: Pictures, tracked: Tracked, solved: Solved, clock: Stopwatch,
    build: Callable[[int], Masks] | None = None,
) -> tuple[IdentityMeta, Iterator[Frame]]:  # fmt: skip
    """The identity, and its samples in time order as they are asked for.

    build: masks of a used frame, when they are not made from its landmarks and person matte.
    """
    num_train = max(1, solved.split.count("train"))
    embeddings = nearest_in_time(tracked.embeddings, len(tracked))
    meta = IdentityMeta(
        name=name,
        wav=solved.wav,
        plate=solved.plate,
        embedding=normalised(embeddings[:num_train].mean(0)),
        rest_landmarks=rest.rest_shape(tracked.landmarks[:num_train], solved.viewmats[:num_train], solved.K),
        viewmats=solved.viewmats.astype(np.float32),
        K=solved.K.astype(np.float32),
        swing=solved.swing.astype(np.float32),
        expressions=solved.expressions,
        speech=solved.speech,
        silence=solved.silence,
        split=solved.split,
        thumbnail=solved.thumbnail,
        report=solved.report,
    )
    from_matte = lambda i: masks.build(tracked.landmarks[i], tracked[i])  # noqa: E731
    return meta, _frames(cfg, pictures, meta, tracked, solved, embeddings, build or from_matte, clock)


def _frames(
    cfg: PackConfig, pictures: Pictures, meta: IdentityMeta, tracked: Tracked, solved: Solved, embeddings: np.ndarray,
    build: Callable[[int], Masks], clock: Stopwatch,
) -> Iterator[Frame]:  # fmt: skip
    """The last pass: samples as they are asked for. At its end the mattes are given up, and the report gets the `timings`."""
    with tracked.mattes:
        clock.part("decoding")
        for i, image in enumerate(pictures.crops(cfg.size, tracked.first, tracked.first + len(tracked))):
            clock.part("masks")
            built, here = build(i), slice(i, i + 1)
            points = rest.unproject(tracked.landmarks[here], solved.viewmats[here], solved.K, meta.rest_landmarks)[0]
            if i % 25 == 0:
                clock.report(0.9 + 0.1 * i / len(tracked))
            clock.part("encoding and writing")
            yield Frame(
                identity=meta.name,
                index=i,
                time_s=i / cfg.fps,
                split=meta.split[i],
                image=image,
                alpha=built.alpha,
                labels=built.labels,
                audio=speech.windows(meta.speech, i),
                embedding=embeddings[i],
                viewmat=meta.viewmats[i],
                K=meta.K,
                swing=meta.swing[i],
                expression=meta.expressions[i],
                landmarks=points.astype(np.float16),
                lips_rect=built.lips_rect,
                mouth_open=expression.mouth_open(tracked.landmarks[i]),
                blink=tracked.blinks[i],
            )
            clock.part("decoding")
    clock.stage("", 1.0)
    meta.report["timings"] = clock.timings(len(tracked))
