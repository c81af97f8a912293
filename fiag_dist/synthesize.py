"""fiag-dist render: an identity folder and speech in, a video of any length out."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Float, Float16, Float32, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fiag_dist.actor import Actor, IdentityInfo, load_actor, load_info
from fiag_dist.backdrop import Loop, read_backdrop
from fiag_dist.errors import ConfigError, guarded
from fiag_dist.ingest import speech
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.shards.reader import read_meta
from fiag_dist.storage import open_storage
from fiag_dist.types import AUDIO_FRAMES, Camera
from fiag_dist.video import SAMPLE_RATE, VideoWriter, read_audio

PREVIEW = "preview.mp4"
PIECE_S, BLEND_S = 60, 2
"""Speech features are computed over pieces of so many seconds, which overlap and are blended there: memory does not grow with the sound."""


class Identity:
    """One adapted person, ready to speak: what moves the head, and the clip that it is rendered over."""

    def __init__(self, info: IdentityInfo, actor: Actor, loop: Loop):
        self.info, self.actor, self.loop = info, actor, loop

    @classmethod
    def load(cls, path: str | Path) -> "Identity":
        """Reads an identity folder, onto the GPU where there is one. Raises DataError for anything that is missing or damaged."""
        folder = Path(path)
        info = load_info(folder)
        actor = load_actor(folder, info)
        loop = read_backdrop(folder, info.size, info.fps)
        return cls(info, actor.cuda() if torch.cuda.is_available() else actor, loop)

    def num_frames(self, wav: Float32[np.ndarray, " samples"]) -> int:
        """Video frames that a sound at 16 kHz lasts, at least one."""
        return max(1, round(len(wav) / SAMPLE_RATE * self.info.fps))

    def frames(self, audio: str | Path | Float32[np.ndarray, " samples"]) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        """The person saying `audio`, frame by frame as they are asked for.

        audio: any file with a sound track, or samples, mono at 16 kHz, -1..1. Head poses, the upper face and the backdrop run back and forth over
        the clip. Raises DataError for a file without sound, WeightsError when the speech extractor's file is missing.
        """
        wav = audio if isinstance(audio, np.ndarray) else read_audio(audio)
        device, size = next(self.actor.buffers()).device, self.info.size
        K, viewmats, expressions = (
            torch.from_numpy(array).to(device) for array in (self.loop.K, self.loop.viewmats, self.loop.expressions)
        )
        heard = listen(wav, self.num_frames(wav), self.info.fps, self.info.extractor)
        for t, window_8CW in enumerate(heard):
            i = self.loop.at(t)
            audio_8CW = torch.from_numpy(window_8CW.astype(np.float32)).to(device)
            backdrop_3HW = torch.from_numpy(self.loop.images[i]).to(device).permute(2, 0, 1).float() / 255
            performance = self.actor(audio_8CW, expressions[i], Camera(viewmats[i], K, size, size))
            yield to_image(performance.over(backdrop_3HW))


def to_image(image_3HW: Float[Tensor, "3 height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """A rendered image in 0..1 as 8-bit pixels on the host."""
    return (image_3HW.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()


def listen(
    wav: Float32[np.ndarray, " samples"], num_frames: int, fps: int, extractor: str
) -> Iterator[Float16[np.ndarray, "8 dim window"]]:
    """What each of `num_frames` video frames hears: speech features of frames t-4 .. t+3, zeros beyond the ends, as in packed samples."""
    silence = np.zeros(speech.dims(extractor), np.float16)
    before, after = AUDIO_FRAMES // 2, AUDIO_FRAMES - AUDIO_FRAMES // 2 - 1
    around: deque[np.ndarray] = deque(maxlen=AUDIO_FRAMES)
    for window in chain([silence] * before, _features(wav, num_frames, fps, extractor), [silence] * after):
        around.append(window)
        if len(around) == AUDIO_FRAMES:
            yield np.stack(around)


def _features(
    wav: Float32[np.ndarray, " samples"], num_frames: int, fps: int, extractor: str
) -> Iterator[Float16[np.ndarray, "dim window"]]:
    """Speech features frame by frame, computed a piece at a time; the overlap passes gradually from one piece to the next."""
    piece, blend = PIECE_S * fps, BLEND_S * fps
    left: np.ndarray | None = None
    for start in range(0, max(num_frames - blend, 1), piece - blend):
        stop = min(start + piece, num_frames)
        track = speech.features(wav[start * SAMPLE_RATE // fps :], stop - start, fps, extractor)
        if left is not None:
            share = np.linspace(0, 1, blend, dtype=np.float32)[:, None, None]
            track[:blend] = left * (1 - share) + track[:blend] * share
        if stop == num_frames:
            yield from track
        else:
            yield from track[:-blend]
            left = track[-blend:].astype(np.float32)


def write_video(
    identity: Identity, wav: Float32[np.ndarray, " samples"], out: Path, console: Console | None = None
) -> int:
    """Renders into an mp4 with the sound; with a console, under a progress bar. Returns the number of frames."""
    size, num = identity.info.size, identity.num_frames(wav)
    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        VideoWriter(out, size, size, identity.info.fps, audio=wav) as video,
        Progress(*columns, console=console, transient=True, disable=console is None) as progress,
    ):
        task = progress.add_task("rendering", total=num)
        for image in identity.frames(wav):
            video.write(image)
            progress.advance(task)
    return num


def write_preview(folder: str | Path, seconds: float) -> Path:
    """Renders preview.mp4 in an identity folder, driven by the end of the clip's own sound, which it was not trained on.

    seconds: at most; when the test part is shorter, the preview starts before it. Raises DataError when the clip's shards are gone.
    """
    folder = Path(folder)
    identity = Identity.load(folder)
    storage = open_storage(identity.info.data)
    meta = read_meta(storage, read_manifest(storage, check=False).entry(identity.info.name))
    num_train = sum(split == "train" for split in meta.split)
    wanted = round(seconds * SAMPLE_RATE)
    start = max(0, min(num_train * SAMPLE_RATE // identity.info.fps, len(meta.wav) - wanted))
    out = folder / PREVIEW
    write_video(identity, meta.wav[start : start + wanted], out)
    return out


@dataclass(frozen=True, kw_only=True)
class RenderCommand:
    """Lets an adapted identity say what is in a sound file: H.264 and AAC in an mp4, as long as the sound."""

    identity: tyro.conf.Positional[Path]
    """Identity folder: one of those that `fiag-dist adapt` wrote."""
    audio: Path
    """Speech: wav, mp3, m4a, or any video with a sound track."""
    out: Path
    """The video to write; its name ends in .mp4."""


def main(argv: list[str]) -> int:
    """The command. Returns 0. Raises ConfigError, DataError or WeightsError."""
    command = tyro.cli(RenderCommand, args=argv, prog="fiag-dist render")
    if command.out.suffix.lower() != ".mp4":
        raise ConfigError(f"--out {command.out}: the video is an mp4; give a name that ends in .mp4")
    if command.out.is_dir():
        raise ConfigError(f"--out {command.out}: is a folder; give the name of the video to write in it")
    identity = Identity.load(command.identity)
    wav = read_audio(command.audio)
    console = Console(highlight=False)
    began = time.perf_counter()
    num = write_video(identity, wav, command.out, console)
    took, fps = time.perf_counter() - began, identity.info.fps
    console.print(
        f"{command.out}: {identity.info.name}, {num} frames, {num / fps:.1f} s of video in {took:.1f} s: "
        f"{num / took:.1f} frames/s, {num / fps / took:.2f} x real time",
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
