"""fiag-dist identity info: what an identity folder is, where it came from, and what was agreed to."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from safetensors import SafetensorError, safe_open

from fiag_dist.acting import provenance
from fiag_dist.acting.actor import TENSORS, load_info
from fiag_dist.acting.backdrop import POSES, VIDEO
from fiag_dist.ending import guarded
from fiag_dist.errors import DataError


@dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Prints what an identity folder is: formats, Gaussians, origin, consent, sizes."""

    identity: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IDENTITY")]
    """Identity folder: one of those that `fiag-dist adapt` wrote, or `fiag-dist evaluate runs/NAME` in runs/NAME/identities."""


def facts(folder: Path) -> dict[str, str]:
    """What there is to say, in order. Raises DataError where `Identity.load` would, but for the contents of tensors and video."""
    info = load_info(folder)
    try:
        with safe_open(folder / TENSORS, "pt") as tensors:
            num_face, num_mouth = (tensors.get_slice(f"{branch}_means").get_shape()[0] for branch in ("face", "mouth"))
            degree = math.isqrt(tensors.get_slice("face_sh_rest").get_shape()[1] + 1) - 1
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"identity {folder}: {TENSORS} is missing or damaged ({error}); adapt the clip again"
        ) from error
    missing = [name for name in (VIDEO, POSES) if not (folder / name).is_file()]
    files = [path for path in folder.rglob("*") if path.is_file()]
    needed = sum(
        (folder / name).stat().st_size for name in ("identity.json", TENSORS, VIDEO, POSES) if name not in missing
    )
    return {
        "name": info.name,
        "format version": str(info.version),
        "images": f"{info.size}x{info.size} at {info.fps} fps",
        "Gaussians": f"{num_face} face, {num_mouth} mouth, spherical harmonics of degree {degree}",
        "hears": f"{info.extractor}, {info.audio_dim} x {info.audio_window} a frame",
        "clip": info.source or "unknown",
        "adapted from": f"{info.checkpoint or 'nothing: trained from scratch'}, {info.steps} steps",
        "shards": info.data,
        "consent": info.consent or "no note (fiag-dist pack --consent TEXT)",
        "SHA-256": provenance.statement(folder, info)["identity_sha256"],
        "bytes": f"{needed:,} to render, {sum(path.stat().st_size for path in files):,} in the folder",
    } | ({"missing": f"{', '.join(missing)}; adapt the clip again"} if missing else {})


def main(argv: list[str]) -> int:
    """The command. Returns 0."""
    command = tyro.extras.subcommand_cli_from_dict({"info": InfoCommand}, args=argv, prog="fiag-dist identity")
    for name, value in facts(command.identity).items():
        print(f"{name:<16}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
