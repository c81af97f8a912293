"""An identity folder and speech in, frames out: the person as a library, `fiag_dist.Identity`, and as a video with sound."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, UInt8
from torch import Tensor

from fiag_dist.acting import provenance
from fiag_dist.acting.actor import Actor, IdentityInfo, load_actor, load_info
from fiag_dist.acting.backdrop import Loop, read_backdrop
from fiag_dist.acting.listening import listen
from fiag_dist.acting.rehearsal import Rehearsal
from fiag_dist.acting.staging import Stage, Staging, composed
from fiag_dist.media.sound import SAMPLE_RATE, Sound
from fiag_dist.media.video import VideoWriter
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.shards.reader import read_meta
from fiag_dist.storage import open_storage

PREVIEW = "preview.mp4"
_WAITING = 4
"""Rendered frames that wait for the writer, at most."""


class Identity:
    """One adapted person, ready to speak: what moves the head, and the clip that it is rendered over."""

    def __init__(self, folder: Path, info: IdentityInfo, actor: Actor, loop: Loop):
        self.folder, self.info, self.actor, self.loop = folder, info, actor, loop

    @classmethod
    def load(cls, path: str | Path) -> "Identity":
        """Reads an identity folder, onto the GPU where there is one. Raises DataError for anything that is missing or damaged."""
        folder = Path(path)
        info = load_info(folder)
        actor = load_actor(folder, info)
        loop = read_backdrop(folder, info.size, info.fps)
        return cls(folder, info, actor.cuda() if torch.cuda.is_available() else actor, loop)

    def frames(
        self, audio: str | Path | Float32[np.ndarray, " samples"] | Sound, staging: Staging | None = None
    ) -> Iterator[UInt8[np.ndarray, "size size channels"]]:
        """The person saying `audio`, frame by frame as they are asked for: RGB, or RGBA where the staging's background is `alpha`.

        audio: any file with a sound track, or samples, mono at 16 kHz, -1..1. Head poses, the upper face and the backdrop run back and forth over
        the clip, unless staged otherwise. Raises DataError for a file without sound, WeightsError when the speech extractor's file is missing.
        """
        sound = audio if isinstance(audio, Sound) else Sound(audio)
        staging = staging or Staging()
        device, rehearsal = next(self.actor.buffers()).device, Rehearsal(self.actor)
        stage = Stage(self.loop, self.info.size, self.info.fps, staging, device)
        mark = provenance.Mark(stage.size) if staging.mark else None
        for t, window_8CW in enumerate(self.listen(sound.pieces())):
            cue = stage.cue(t)
            heard = torch.from_numpy(window_8CW.astype(np.float32)).to(device)
            image = composed(rehearsal.perform(heard, cue.expression, cue.camera, cue.swing), cue.backdrop)
            if mark:
                mark.draw(image)
            yield image

    def listen(
        self, pieces: Iterable[Float32[np.ndarray, "1 samples"]]
    ) -> Iterator[Float16[np.ndarray, "8 dim window"]]:
        """What this person hears at every frame of a sound (`listening.listen`), silence where it is silent."""
        hush = self.actor.universal.listener.hush()
        return listen(pieces, self.info.fps, self.info.extractor, None if hush is None else hush.cpu().numpy())

    def write_video(
        self,
        audio: str | Path | Float32[np.ndarray, " samples"] | Sound,
        out: str | Path,
        staging: Staging | None = None,
        report: Callable[[int], None] = lambda done: None,
    ) -> int:
        """Renders into an mp4 with the sound, whose metadata say that it is synthetic and where it comes from. Returns the number of frames.

        report: called with the frames done so far.
        """
        sound, staging = audio if isinstance(audio, Sound) else Sound(audio), staging or Staging()
        size, tags = staging.size or self.info.size, provenance.tags(provenance.statement(self.folder, self.info))
        with VideoWriter(out, size, size, self.info.fps, sound, metadata=tags) as video:
            return write_behind(self.frames(sound, staging), video.write, report)


def write_behind(
    frames: Iterable[np.ndarray], write: Callable[[np.ndarray], None], report: Callable[[int], None]
) -> int:
    """Writes frames in a thread of its own while the next ones are made. Returns their number."""
    num, waiting = 0, deque[Future[None]]()
    with ThreadPoolExecutor(1) as writer:
        for image in frames:
            if len(waiting) == _WAITING:
                waiting.popleft().result()
            waiting.append(writer.submit(write, image))
            num += 1
            report(num)
        for last in waiting:
            last.result()
    return num


def to_image(image_3HW: Float[Tensor, "3 height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """A rendered image in 0..1 as 8-bit pixels on the host."""
    return (image_3HW.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()


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
    identity.write_video(meta.wav[start : start + wanted], out)
    return out
