"""Media files opened, decoded and written by PyAV, with errors that a user can act on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import av
from av.container import InputContainer
from av.stream import Disposition

from fiag_dist.errors import DataError

LONGEST_HOLE_S = 3600.0
"""More than this between two time stamps is no muted microphone and no still picture: one is wrong, and would fill the memory."""
_HOLD_NOTHING = {"avisynth", "concat", "dash", "hls", "imf", "rtp", "rtsp", "sap", "sdp", "vapoursynth", "vobsub"}
"""Formats that name other files or addresses, which FFmpeg reads as it opens them: a file that a visitor gives must not get at ours."""
_MEDIA = ",".join(sorted(av.formats_available - _HOLD_NOTHING))
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"v=0", b"# VobSub")
"""How files of such formats begin."""
Track = TypeVar("Track", av.VideoStream, av.AudioStream)


def opened(path: str | Path) -> InputContainer:
    """A file to read from; close it. Raises DataError for a file that is missing, a pipe, no video or sound, or that only names other files."""
    try:
        if _is_read_once(Path(path)):
            raise DataError(f"{path}: is a pipe or a device, and is read several times here; write it to a file first")
        # FFmpeg takes `12:30 take.mp4` for an address; tags may be in any encoding
        whole = str(Path(path).absolute())
        return av.open(whole, "r", options={"format_whitelist": _MEDIA}, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, av.ArgumentError) and _begins_with(path, _PLAYLISTS):
            raise DataError(
                f"{path}: is a playlist, which names other files; give the sound or the video itself (wav, mp3, mp4 ...)"
            ) from error
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{path}: can't be read as video or audio ({reason}); give a video (mp4, mov, mkv, webm ...) or a sound (wav, mp3, m4a ...)"
        ) from error


def _is_read_once(path: Path) -> bool:
    """Whether there is something to be read that is neither file nor folder; `-` is what many programs call their input."""
    return not (path.is_file() or path.is_dir()) and (path.exists() or str(path) == "-")


def _begins_with(path: str | Path, heads: tuple[bytes, ...]) -> bool:
    with Path(path).open("rb") as file:
        return file.read(16).startswith(heads)


def video_tracks(container: InputContainer) -> list[av.VideoStream]:
    """All that are no cover pictures; where nothing here decodes one, it has no codec context."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def video_track(container: InputContainer, path: str | Path) -> av.VideoStream | None:
    """The first one that is no cover picture; None where there is none. Raises DataError where nothing here decodes it."""
    return _decodable(video_tracks(container), path)


def audio_track(container: InputContainer, path: str | Path) -> av.AudioStream | None:
    """The first one; None where there is none. Raises DataError where nothing here decodes it."""
    return _decodable(container.streams.audio, path)


def _decodable(tracks: Sequence[Track], path: str | Path) -> Track | None:
    """The first track whose codec is known, where there are any."""
    found = next((track for track in tracks if track.codec_context is not None), None)
    if tracks and found is None:
        raise DataError(
            f"{path}: nothing here decodes its {tracks[0].type} track; convert the file to mp4 where it plays"
        )
    return found


def decoded(container: InputContainer, stream: av.VideoStream | av.AudioStream, path: str | Path) -> Iterator:
    """Frames of one stream, decoded by one thread. Raises DataError where the data is damaged."""
    stream.codec_context.thread_count = 1
    try:
        yield from container.decode(stream)
    except (av.FFmpegError, OSError) as error:
        raise DataError(
            f"{path}: damaged data in the {stream.type} track ({error.strerror}); convert the file with ffmpeg and try again"
        ) from error


def refuse_jump(path: object, what: str, before_s: float, now_s: float) -> None:
    """Raises DataError where time stamps leave a hole of more than LONGEST_HOLE_S. what: its sound, its pictures."""
    if now_s - before_s > LONGEST_HOLE_S:
        raise DataError(
            f"{path}: {what} {before_s:.0f} s to {now_s:.0f} s, more than an hour; its time stamps are damaged: "
            "convert the file with ffmpeg and try again"
        )


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Around what writes a file: a full disk, or a place that takes no files, becomes a DataError that names `path`."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        reason = "its folder is a file" if isinstance(error, FileExistsError) else error.strerror
        mend = "check the rights there" if isinstance(error, PermissionError) else "make room"
        raise DataError(f"{path}: can't be written ({reason}); {mend}, or give another place") from error
