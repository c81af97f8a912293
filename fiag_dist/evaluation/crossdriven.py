"""Another person's voice in an identity's mouth: does the mouth follow that sound, when, better than a rolled one, and does silence close it?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from fiag_dist.acting.listening import FAINT_DB
from fiag_dist.acting.synthesize import Identity
from fiag_dist.errors import DataError
from fiag_dist.ingest import lips, speech
from fiag_dist.ingest.loudness import audible, loud_db, loudness_db
from fiag_dist.media.sound import SAMPLE_RATE, read_audio
from fiag_dist.metrics import lipsync, motion
from fiag_dist.metrics.faces import Seen
from fiag_dist.metrics.panel import Numbers
from fiag_dist.metrics.syncnet import SyncNet
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.shards.reader import FrameReader, read_meta
from fiag_dist.storage import open_storage
from fiag_dist.types import IdentityMeta

VOICE_S, SHORTEST_S = 12.0, 3.0
"""How much of a voice is spoken at most, and what is too short to roll."""
SILENCE_S, SETTLING_S = 2.0, 0.5
"""Digital silence after the voice, and the part of it in which the mouth may still be closing."""
CLOSED_PERCENT = 5
"""Of a person's true frames: so far open the mouth counts as closed."""
_MOST_PEOPLE = 32
"""True videos that the judge learns from."""
_FOUND_SHARE = 0.8
"""Of the frames, in which a face must be found."""


@dataclass(frozen=True, eq=False)
class _Voice:
    """A sound with the judge's opinion of it."""

    name: str
    wav: Float32[np.ndarray, " samples"]
    expected: Float64[np.ndarray, " frames"]
    true_score: float | None
    """Score of the true video of the voice, where there is one: what the judge can see at all."""


class SpeechTest:
    """The test for identities of some shards. sound: file with the voice to use; none: the longest clip of another person in the same shards."""

    def __init__(self, url: str, sound: Path | None = None) -> None:
        self._storage = open_storage(url)
        self._manifest, self._sound = read_manifest(self._storage, check=False), sound
        self._voices: dict[str | None, _Voice] = {}

    def numbers(
        self,
        identity: Identity,
        find: Callable[[UInt8[np.ndarray, "size size 3"]], Seen | None],
        progress: Callable[[float], None] = lambda share: None,
        syncnet: SyncNet | None = None,
    ) -> Numbers:
        """Renders the identity with the voice and digital silence after it, over its own loop of poses, and scores the mouth.

        find: the face of a picture. progress: called with the share of frames done. syncnet: judges the voice's frames as well. Keys begin with
        `speech_`; openings are distances between the outer eye corners. Raises DataError when there is no other voice, the sound is too short, or
        hardly a face is found in what was rendered.
        """
        voice, fps = self._voice(identity.info.name), identity.info.fps
        wav = np.concatenate([voice.wav, np.zeros(round(SILENCE_S * SAMPLE_RATE), np.float32)])
        num = len(voice.expected)
        faces, judged = [], []
        for image in identity.frames(wav):
            faces.append(find(image))
            if syncnet and len(judged) < num:
                judged.append(image)
            progress(len(faces) / (num + SILENCE_S * fps))
        mouth = _track(identity.info.name, faces)
        speaking, silent = mouth[:num], mouth[num + round(SETTLING_S * fps) :]
        best = lipsync.match(speaking, voice.expected, fps)
        chance = lipsync.rolled(speaking, voice.expected, fps)
        sync = syncnet.judge(judged, faces[:num], voice.wav, fps) if syncnet else None
        return {
            "speech_voice": voice.name,
            "speech_score": best.score,
            "speech_lag_ms": 1000 * best.lag_s if best.score > 0 else None,
            "speech_score_rolled": float(chance.mean()),
            "speech_rolls_beaten_share": float((best.score > chance).mean()),
            "speech_score_true_video": voice.true_score,
            "speech_opening_eye_distances": float(speaking.mean()),
            "speech_opening_in_silence_eye_distances": float(silent.mean()),
            "speech_opening_closed_eye_distances": float(
                np.percentile(self._openings(identity.info.name), CLOSED_PERCENT)
            ),
            **(sync.numbers("speech_") if sync else {}),
        }

    def _voice(self, name: str) -> _Voice:
        """The voice for identity `name`."""
        speaker = None if self._sound else self._speaker_for(name)
        if speaker not in self._voices:
            self._voices[speaker] = self._prepared(speaker)
        return self._voices[speaker]

    def _speaker_for(self, name: str) -> str:
        others = [entry for entry in self._manifest.identities if entry.name != name]
        if not others:
            raise DataError(
                f"identity {name}: the only one in {self._storage.url}, so there is no other voice; give one: --audio WAV"
            )
        return max(others, key=lambda entry: entry.num_frames).name  # the first by name among equals

    def _prepared(self, speaker: str | None) -> _Voice:
        fps = self._manifest.fps
        meta = None if speaker is None else self._meta(speaker)
        wav = read_audio(self._sound, VOICE_S) if self._sound else meta.wav if meta else np.zeros(0, np.float32)
        num = int(min(len(wav) / SAMPLE_RATE, VOICE_S) * fps)
        if num < SHORTEST_S * fps:
            raise DataError(
                f"voice {speaker or self._sound}: {num / fps:.1f} s; speech metrics need {SHORTEST_S:g} s or more; give another: --audio WAV"
            )
        wav = wav[: num * SAMPLE_RATE // fps]
        loudness = loudness_db(wav, num, fps)
        if not audible(loudness, max(loud_db(loudness), FAINT_DB)).any():
            raise DataError(f"voice {speaker or self._sound}: silent; give another: --audio WAV")
        teachers = [entry.name for entry in self._manifest.identities if entry.name != speaker][:_MOST_PEOPLE]
        metas = [self._meta(teacher) for teacher in teachers]
        judge = lipsync.Judge([self._heard(m) for m in metas], [self._openings(m.name) for m in metas])
        expected = judge.openings(speech.features(wav, num, fps, lips.EARS))
        true = None
        if speaker is not None:
            true = lipsync.match(self._openings(speaker)[:num], expected, fps).score
        return _Voice(speaker or Path(str(self._sound)).name, wav, expected, true)

    def _meta(self, name: str) -> IdentityMeta:
        return read_meta(self._storage, self._manifest.entry(name))

    def _heard(self, meta: IdentityMeta) -> np.ndarray:
        """Speech features of a packed clip as the judge hears them."""
        if self._manifest.audio.extractor == lips.EARS:
            return meta.speech
        return speech.features(meta.wav, len(meta.split), self._manifest.fps, lips.EARS)

    def _openings(self, name: str) -> np.ndarray:
        return FrameReader(self._storage, self._manifest.entry(name)).mouth_open


def _track(name: str, faces: Sequence[Seen | None]) -> Float64[np.ndarray, " frames"]:
    """Mouth openings of rendered frames; those without a face lie on the line between their neighbours."""
    opening = np.array([np.nan if face is None else motion.openings([face])[0] for face in faces])
    known = np.isfinite(opening)
    if known.mean() < _FOUND_SHARE:
        raise DataError(
            f"identity {name}: a face found in {known.sum()} of {len(known)} frames rendered with the voice"
        )
    return np.interp(np.arange(len(opening)), np.flatnonzero(known), opening[known])
