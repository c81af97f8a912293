"""What a visitor sees and hears: any moment of a speech, from any side, as pixels; and the sound from there on."""

import io
import wave
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float16, Float32, UInt8

from fiag_dist.acting.rehearsal import Rehearsal
from fiag_dist.acting.staging import colour, composed
from fiag_dist.acting.synthesize import Identity
from fiag_dist.errors import DataError
from fiag_dist.ingest.speech import windows
from fiag_dist.media.sound import SAMPLE_RATE, Sound
from fiag_dist.types import AUDIO_FRAMES
from fiag_dist.viewing.orbit import Orbit

LONGEST_S = 600
"""A page holds its speech in memory, and sends what is to be heard of it at once."""
AROUND = (30, 30, 30)
"""What there is beside the clip's frame, RGB."""
_NOW = AUDIO_FRAMES // 2
"""Which of the windows that a frame hears is its own."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a moment is shown. Two equal ones show the same picture."""

    t: int = 0
    """Frame of the speech."""
    pose: int = 0
    """Frame of the clip whose head pose and backdrop are shown."""
    expression: tuple[float, ...] = ()
    """EXPRESSION_NAMES; empty: those of the clip's frame."""
    orbit: Orbit = field(default_factory=Orbit)
    background: str = "clip"
    """`clip`, a colour by name, or `#rrggbb`."""
    width: int = 256
    height: int = 256


@dataclass(frozen=True, eq=False)
class Speech:
    """What is said: sound to be heard by people, features for the networks."""

    samples: Float32[np.ndarray, " samples"]
    """Mono at 16 kHz."""
    track: Float16[np.ndarray, "frames dim window"]

    @classmethod
    def of(cls, sound: Sound, identity: Identity) -> "Speech":
        """As this identity hears it. Raises DataError for more than 10 minutes, and what listening raises."""
        parts, seconds = [], 0.0
        for piece in sound.pieces():
            parts.append(piece[0])
            seconds += len(piece[0]) / SAMPLE_RATE
            if seconds > LONGEST_S:
                raise DataError(
                    f"speech: longer than {LONGEST_S} s, which is what a page holds; cut it, or make a video: fiag-dist render"
                )
        samples = np.concatenate(parts)
        return cls(samples, np.stack([window[_NOW] for window in identity.listen([samples[None]])]))

    def __len__(self) -> int:
        return len(self.track)

    def wav(self, start_s: float) -> bytes:
        """The sound from there to its end, as a file that browsers play."""
        samples = self.samples[round(start_s * SAMPLE_RATE) :]
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
        return out.getvalue()


class Show:
    """An identity, ready to be looked at from any side."""

    def __init__(self, identity: Identity):
        self.info, self.loop, self._identity = identity.info, identity.loop, identity
        self._rehearsal, self._device = Rehearsal(identity.actor), next(identity.actor.buffers()).device

    def listen(self, sound: Sound) -> Speech:
        """What it is to say. Raises DataError, or WeightsError when the speech extractor's file is missing."""
        return Speech.of(sound, self._identity)

    def silence(self) -> Speech:
        """Once through the clip and back, at most 10 s, without a sound: blinks and head movements go on."""
        seconds = min(2 * len(self.loop) / self.info.fps, 10.0)
        return self.listen(Sound(np.zeros(round(seconds * SAMPLE_RATE), np.float32)))

    def picture(self, speech: Speech, look: Look) -> UInt8[np.ndarray, "height width 3"]:
        """One moment."""
        onto = look.orbit.onto(self.info.size, look.width, look.height)
        camera = look.orbit.camera(self.loop.viewmats[look.pose], self.loop.K, onto, look.width, look.height)
        camera = replace(camera, viewmat=camera.viewmat.to(self._device), K=camera.K.to(self._device))
        expression = np.array(look.expression or self.loop.expressions[look.pose], np.float32)
        heard = windows(speech.track, look.t).astype(np.float32)
        hair = look.orbit.flattened(self.loop.swing[look.pose], self.loop.viewmats[look.pose])
        inputs = (torch.from_numpy(array).to(self._device) for array in (heard, expression, hair))
        window_8CW, channels, swing = inputs
        layer = self._rehearsal.perform(window_8CW, channels, camera, swing)
        return composed(layer, self._behind(look, onto))

    def _behind(self, look: Look, onto: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
        if look.background != "clip":
            return np.full((look.height, look.width, 3), colour(look.background), np.uint8)
        indices = onto[:2].copy()
        indices[:, 2] += 0.5 * (onto[0, 0] - 1)  # OpenCV counts from the first pixel's centre
        picture = self.loop.images[look.pose]
        return cv2.warpAffine(picture, indices, (look.width, look.height), borderValue=AROUND).astype(
            np.uint8, copy=False
        )
