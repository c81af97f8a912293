"""AUE: how far the render's facial action units are from the truth's. Units come from blendshapes, not from OpenFace."""

from collections.abc import Mapping, Sequence

import numpy as np

from fiag_dist.ingest.expression import BLENDSHAPES
from fiag_dist.metrics.faces import Seen

UPPER = dict(sorted((BLENDSHAPES | {"AU09": ("noseSneerLeft", "noseSneerRight")}).items()))
LOWER = {
    "AU10": ("mouthUpperUpLeft", "mouthUpperUpRight"),
    "AU12": ("mouthSmileLeft", "mouthSmileRight"),
    "AU14": ("mouthDimpleLeft", "mouthDimpleRight"),
    "AU15": ("mouthFrownLeft", "mouthFrownRight"),
    "AU17": ("mouthShrugLower",),
    "AU20": ("mouthStretchLeft", "mouthStretchRight"),
    "AU23": ("mouthPressLeft", "mouthPressRight"),
    "AU25": ("mouthLowerDownLeft", "mouthLowerDownRight"),
    "AU26": ("jawOpen",),
}
"""The units that this family of papers scores, and the blendshapes whose mean stands for each. AU23 (lips tightened) and AU25 (lips apart) have no
blendshape of their own: pressed lips and a lowered lower lip are the nearest."""
INTENSITY = 5.0
"""Action units are scored 0..5, blendshapes 0..1."""


def scores(pairs: Sequence[tuple[Seen, Seen]]) -> dict[str, float | None]:
    """Squared error of intensities in 0..5, mean over units and over frames in which both faces were found; None without any."""
    return {"aue_upper_intensity2": _error(pairs, UPPER), "aue_lower_intensity2": _error(pairs, LOWER)}


def _error(pairs: Sequence[tuple[Seen, Seen]], units: Mapping[str, Sequence[str]]) -> float | None:
    if not pairs:
        return None
    intensity = np.array([[[_intensity(face, names) for names in units.values()] for face in pair] for pair in pairs])
    return float(np.square(intensity[:, 0] - intensity[:, 1]).mean())


def _intensity(face: Seen, names: Sequence[str]) -> float:
    return INTENSITY * float(np.mean([face.blendshapes[name] for name in names]))
