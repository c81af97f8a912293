"""fiag-dist render: an identity folder and speech in, a video of any length out, or its frames as PNG."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import cv2
import numba
import numpy as np
import tyro
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fiag_dist.acting import provenance
from fiag_dist.acting.actor import refuse_remote
from fiag_dist.acting.credentials import Credentials
from fiag_dist.acting.listening import num_frames
from fiag_dist.acting.provenance import SYNTHETIC
from fiag_dist.acting.staging import Staging
from fiag_dist.acting.synthesize import Identity, write_behind
from fiag_dist.ending import guarded
from fiag_dist.errors import ConfigError
from fiag_dist.kernels.launch import use_threads
from fiag_dist.media.container import writing
from fiag_dist.media.sound import SAMPLE_RATE, Sound
from fiag_dist.media.video import tags_of

STATEMENT = "provenance.json"
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]
"""Little compression: three times as fast, a tenth larger."""


@dataclass(frozen=True, kw_only=True)
class RenderCommand:
    """Lets an adapted identity say what is in a sound file: H.264 and AAC in an mp4 as long as the sound, or a folder of PNG frames."""

    identity: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IDENTITY")]
    """Identity folder: one of those that `fiag-dist adapt` wrote, or `fiag-dist evaluate runs/NAME` in runs/NAME/identities."""
    audio: Path
    """Speech: wav, mp3, flac, m4a, or any video with a sound track."""
    out: Path
    """A name that ends in .mp4, or a new or empty folder for frames 000000.png, 000001.png .."""
    staging: Annotated[Staging, tyro.conf.arg(name="")] = field(default_factory=Staging)
    certificates: Path | None = None
    """Sign the video (C2PA Content Credentials): PEM file of your certificate chain; needs --key and the extra `sign`."""
    key: Path | None = None
    """PEM file of the private key of the first of these certificates."""


class PngFolder:
    """Numbered PNG frames in a folder, and last the statement of where they come from: with it, the folder is complete."""

    def __init__(self, folder: Path):
        """Raises ConfigError for a folder that holds something: frames of two renderings must not mix. DataError for one that can't be made."""
        with writing(folder):
            if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
                raise ConfigError(
                    f"--out {folder}: holds something already; give a new or empty folder for the frames, or a name that ends in .mp4"
                )
            folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._count = folder, 0

    def write(self, image: UInt8[np.ndarray, "height width channels"]) -> None:
        """Adds one RGB or RGBA frame. Raises DataError where the disk takes no more."""
        swap = cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        data = cv2.imencode(".png", cv2.cvtColor(image, swap), _PNG)[1]
        path = self._folder / f"{self._count:06d}.png"
        with writing(path):
            path.write_bytes(data.tobytes())
        self._count += 1

    def close(self, facts: dict) -> None:
        with writing(self._folder / STATEMENT):
            (self._folder / STATEMENT).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def render(command: RenderCommand, console: Console) -> int:
    """Renders under a progress bar. Returns the number of frames. Raises ConfigError, DataError or WeightsError."""
    out, is_video = command.out, command.out.suffix.lower() == ".mp4"
    refuse_remote(out, written=True)
    refuse_remote(command.audio, is_file=True)
    with writing(out):
        is_folder = out.is_dir()  # refuses names that are too long
    if not is_video and out.suffix and not is_folder:
        raise ConfigError(
            f"--out {out}: the video is an mp4; give a name that ends in .mp4, or a folder for PNG frames, which must be there if its name has a dot"
        )
    if is_video and is_folder:
        raise ConfigError(f"--out {out}: is a folder; give the name of the video to write in it")
    if is_video and out.exists() and out.stat().st_size and not tags_of(out).get("comment", "").startswith(SYNTHETIC):
        raise ConfigError(
            f"--out {out}: is there already, was not rendered here and would be lost; give another name, or delete it first"
        )
    if is_video and command.staging.background == "alpha":
        raise ConfigError(
            f"--background alpha --out {out}: H.264 has no alpha; give a folder for PNG frames: --out {out.with_suffix('')}"
        )
    if (command.certificates is None) != (command.key is None) or (command.certificates and not is_video):
        raise ConfigError(
            "--certificates and --key: the rule is both of them or none, and a video; give --certificates CHAIN.pem --key KEY.pem"
        )
    credentials = Credentials(command.certificates, command.key) if command.certificates and command.key else None
    identity, sound = Identity.load(command.identity), Sound(command.audio)
    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("rendering", total=num_frames(round(sound.seconds * SAMPLE_RATE), identity.info.fps))

        def report(done: int) -> None:
            progress.update(task, completed=done)

        if credentials:
            return _signed_video(credentials, command, identity, sound, report)
        if is_video:
            return identity.write_video(sound, out, command.staging, report)
        folder = PngFolder(out)
        num = write_behind(identity.frames(sound, command.staging), folder.write, report)
        folder.close(provenance.statement(command.identity, identity.info))
        return num


def _signed_video(
    credentials: Credentials, command: RenderCommand, identity: Identity, sound: Sound, report: Callable[[int], None]
) -> int:
    """Renders beside the place of the video, and puts it there signed."""
    out, mark = command.out, os.getpid()
    plain, signed = (out.with_name(f".{mark}.{state}.mp4") for state in ("plain", "signed"))
    try:
        num = identity.write_video(sound, plain, command.staging, report)
        credentials.sign(plain, signed, out.name, provenance.statement(command.identity, identity.info))
        signed.replace(out)
    finally:
        plain.unlink(missing_ok=True)
        signed.unlink(missing_ok=True)
    return num


def main(argv: list[str]) -> int:
    """The command. Returns 0."""
    command = tyro.cli(RenderCommand, args=argv, prog="fiag-dist render")
    use_threads(max(1, min(numba.get_num_threads() - 1, 8)))  # one core is the encoder's
    console, began = Console(highlight=False, markup=False), time.perf_counter()
    num = render(command, console)
    took = time.perf_counter() - began
    console.print(f"{command.out}: {num} frames in {took:.1f} s, {num / took:.1f} frames/s", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
