"""Speech features that another program made: one .npy array a clip, [frames, window, channels] as the relatives store them, or
[frames, channels, window]. The shorter side is the window: DeepSpeech 16 of 29, wav2vec2 16 of 44, AVE 1 of 512."""

from pathlib import Path

import numpy as np
from jaxtyping import Float16

from fiag_dist.errors import ConfigError, DataError


def path_of(pattern: str, clip: Path) -> Path:
    """The array's file: `{folder}` and `{stem}` in the pattern stand for the clip's. Raises ConfigError for a pattern without a name in it."""
    if "{stem}" not in pattern and "{folder}" not in pattern:
        raise ConfigError(
            f"extractor 'file:{pattern}': names one file for all clips; write {{stem}} or {{folder}} where the clip's name belongs"
        )
    folder = clip if clip.is_dir() else clip.parent
    return Path(pattern.replace("{stem}", clip.stem).replace("{folder}", str(folder)))


def dims(pattern: str, clip: Path) -> tuple[int, int]:
    """Channels and window of a clip's array, without reading its values."""
    shape = _opened(pattern, clip).shape
    return max(shape[1:]), min(shape[1:])


def read(pattern: str, clip: Path, first: int, num_frames: int) -> Float16[np.ndarray, "frames channels window"]:
    """Features of frames first .. first + num_frames - 1. Raises DataError when there are fewer."""
    array = _opened(pattern, clip)
    if len(array) < first + num_frames:
        missing = first + num_frames - len(array)
        if missing > 2:  # the relatives' extractors end a frame or two early
            raise DataError(
                f"{path_of(pattern, clip)}: features of {len(array)} frames, {first + num_frames} needed; make them again from the same clip"
            )
    part = np.asarray(array[first : first + num_frames], np.float32)
    if not np.isfinite(part).all():
        raise DataError(f"{path_of(pattern, clip)}: holds NaN or infinity; make the features again")
    part = np.pad(part, ((0, num_frames - len(part)), (0, 0), (0, 0)), mode="edge")
    return np.ascontiguousarray(part if array.shape[1] > array.shape[2] else part.transpose(0, 2, 1), np.float16)


def _opened(pattern: str, clip: Path) -> np.ndarray:
    path = path_of(pattern, clip)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no .npy array of numbers"
        raise DataError(
            f"{clip.name}: its speech features can't be read from {path} ({reason}); make them, or choose another --extractor"
        ) from error
    if array.ndim != 3 or array.dtype.kind not in "fiu" or 0 in array.shape or array.shape[1] == array.shape[2]:
        raise DataError(
            f"{path}: an array {list(array.shape)} of {array.dtype}, expected numbers [frames, channels, window] or [frames, window, channels]"
        )
    return array
