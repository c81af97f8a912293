"""The ways that footage can lie on a disk, and what packs each."""

from collections.abc import Iterator
from pathlib import Path

from fiag_dist.config import PackConfig
from fiag_dist.ingest.clip import pack_clip
from fiag_dist.ingest.footage import Progress
from fiag_dist.ingest.importing import pack_prepared
from fiag_dist.types import Frame, IdentityMeta


def pack_any(
    path: str | Path, cfg: PackConfig, name: str, progress: Progress | None = None
) -> tuple[IdentityMeta, Iterator[Frame]]:
    """One clip, or one prepared folder by `cfg.layout`, to an identity and its samples. Raises as `pack_clip` and `pack_prepared` do."""
    return (pack_prepared if cfg.layout == "instag" else pack_clip)(path, cfg, name, progress)
