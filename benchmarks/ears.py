"""How much of the lips' opening a linear reading of speech features tells: which extractor to hear with, and by how many components.

python benchmarks/ears.py --data SHARDS --extractors whisper:1 whisper:2 whisper:3 whisper:4 mel --components 32 64 128
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Float64

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fiag_dist.ending import guarded
from fiag_dist.errors import DataError
from fiag_dist.ingest import speech
from fiag_dist.metrics.motion import STILL_MOUTH
from fiag_dist.model.audio import TAPS, taps
from fiag_dist.model.lipreader import RIDGE
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.shards.reader import FrameReader, read_meta
from fiag_dist.storage import open_storage

OWN_S, TEST_S = 5.0, 2.0
"""Footage that a person's own reading is learnt from, and what follows it, for the test."""
MOST_FRAMES = 2600
"""From which components are found."""


@dataclass(frozen=True, kw_only=True)
class EarsCommand:
    """Foretells the gap between the lips from speech, by ridge regression on whitened principal components, for people who were left out."""

    data: str
    """Shards of several people; only their sound and the openings of their mouths are read."""
    extractors: tuple[str, ...] = ("whisper:1", "whisper:2", "whisper:3", "whisper:4", "mel")
    """Speech features, as `fiag-dist pack --extractor` takes them."""
    components: tuple[int, ...] = (32, 64, 128)
    own_weight: float = 12.0
    """Of a frame of the person's own five seconds against one of another's."""


@dataclass(frozen=True, eq=False)
class Person:
    heard: Float64[np.ndarray, "frames features"]
    opening: Float64[np.ndarray, " frames"]
    own: int
    """Frames to learn from; those up to `stop` are tested."""
    stop: int


def main(argv: Sequence[str]) -> int:
    """Prints one JSON object: correlations over the people's test frames, in the mean, without and with their own five seconds."""
    command = tyro.cli(EarsCommand, args=list(argv), prog="ears.py")
    rows = []
    for name in command.extractors:
        people = read_people(command.data, name)
        components = whitened(people, max(command.components))
        for count in command.components:
            codes = {who: person.heard @ components[:, :count] for who, person in people.items()}
            without, with_own = correlations(people, codes, command.own_weight)
            row = {"extractor": name, "components": count, "left_out": without, "with_own_seconds": with_own}
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    print(json.dumps({"data": command.data, "own_weight": command.own_weight, "rows": rows}, indent=1))
    return 0


def read_people(data: str, extractor: str) -> dict[str, Person]:
    """Everybody in the shards whose lips move. Raises DataError for fewer than three."""
    storage = open_storage(data)
    manifest = read_manifest(storage)
    own, whole = round(OWN_S * manifest.fps), round((OWN_S + TEST_S) * manifest.fps)
    people = {}
    for entry in manifest.identities:
        meta, num = read_meta(storage, entry), entry.num_frames
        track = speech.features(meta.wav, num, manifest.fps, extractor)
        around = np.clip(np.arange(num)[:, None] + np.arange(-4, 4), 0, num - 1)
        heard = taps(torch.from_numpy(track[around].astype(np.float32)), torch.tensor(TAPS)).double().numpy()
        opening = FrameReader(storage, entry).mouth_open.astype(np.float64)
        person = Person(heard, opening, min(own, round(own / whole * num)), min(whole, num))
        if opening[person.own : person.stop].std() > STILL_MOUTH:
            people[entry.name] = person
    if len(people) < 3:
        raise DataError(
            f"{data}: {len(people)} people whose lips move in the test; three or more are needed, to learn from some about another"
        )
    mean = np.concatenate([person.heard for person in people.values()]).mean(0)
    return {who: Person(p.heard - mean, p.opening, p.own, p.stop) for who, p in people.items()}


def whitened(people: Mapping[str, Person], count: int) -> Float64[np.ndarray, "features count"]:
    """Directions of the largest variance over everybody, each scaled to a deviation of 1."""
    heard = np.concatenate([person.heard for person in people.values()])
    heard = heard[np.linspace(0, len(heard) - 1, min(len(heard), MOST_FRAMES)).round().astype(int)]
    values, vectors = np.linalg.eigh(heard.T @ heard / len(heard))
    return vectors[:, ::-1][:, :count] / np.sqrt(np.maximum(values[::-1][:count], 1e-12))


def correlations(
    people: Mapping[str, Person], codes: Mapping[str, np.ndarray], own_weight: float
) -> tuple[float, float]:
    """Means over people of the correlation on their test frames: learnt from all others, and from those and their own five seconds."""
    scatter = {who: code.T @ code for who, code in codes.items()}
    product = {who: code.T @ standard(people[who].opening) for who, code in codes.items()}
    without, with_own = [], []
    for who, person in people.items():
        others = [name for name in people if name != who]
        matrix = np.sum([scatter[name] for name in others], 0) + RIDGE * np.eye(len(scatter[who]))
        vector = np.sum([product[name] for name in others], 0)
        own, tested = codes[who][: person.own], slice(person.own, person.stop)
        mine = own_weight * own.T @ own, own_weight * own.T @ standard(person.opening[: person.own])
        for found, (left, right) in ((without, (0, 0)), (with_own, mine)):
            weights = np.linalg.solve(matrix + left, vector + right)
            found.append(np.corrcoef(codes[who][tested] @ weights, person.opening[tested])[0, 1])
    return float(np.mean(without)), float(np.mean(with_own))


def standard(opening: Float64[np.ndarray, " frames"]) -> Float64[np.ndarray, " frames"]:
    """As deviations of this person's own."""
    return (opening - opening.mean()) / max(float(opening.std()), 1e-6)


if __name__ == "__main__":
    sys.exit(guarded(main))
