"""Fits the reading of lips from sound that finds how late a clip's sound is (fiag_dist/ingest/lips.npy), to people whose sound may be late itself.

python benchmarks/lips.py --data SHARDS --identities NAME NAME .. [--tested NAME ..] [--out fiag_dist/ingest/lips.npy]
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float32, Float64

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fiag_dist.ending import guarded
from fiag_dist.errors import DataError
from fiag_dist.ingest import lips, sync
from fiag_dist.media.sound import SAMPLE_RATE
from fiag_dist.shards.manifest import IdentityEntry, read_manifest
from fiag_dist.shards.reader import FrameReader, read_meta
from fiag_dist.storage import Storage, open_storage

COMPONENTS, RIDGE, ROUNDS = 64, 300.0, 4
EDGE = 8
"""Frames at both ends of a clip that nothing is learnt from: a sound that was moved leaves some of them without."""


@dataclass(frozen=True, kw_only=True)
class LipsCommand:
    """Alternately reads lips from sound, each person's by what the others taught, and moves each sound to where its lips are."""

    data: str
    """Shards of these people at 25 frames a second, packed with their sound as it was (`--no-fix-sync`)."""
    identities: tuple[str, ...]
    """Whom the reading is fitted to; three or more."""
    tested: tuple[str, ...] = ()
    """Whose offsets it then tells, from the frames of their training split."""
    out: Path | None = None
    """Where the reading goes."""


@dataclass(eq=False)
class Person:
    wav: Float32[np.ndarray, " samples"]
    opening: Float64[np.ndarray, " frames"]
    late_s: float = 0.0

    def heard(self) -> Float64[np.ndarray, "frames features"]:
        """With the sound where the lips are, as far as that is known."""
        return lips.heard(sync.corrected(self.wav, self.late_s, SAMPLE_RATE), len(self.opening))


def main(argv: Sequence[str]) -> int:
    """Prints one JSON object: offsets after each round, and those of the people tested."""
    command = tyro.cli(LipsCommand, args=list(argv), prog="lips.py")
    storage = open_storage(command.data)
    manifest = read_manifest(storage)
    if manifest.fps != lips.FPS:
        raise DataError(f"{command.data}: {manifest.fps} frames a second; pack the clips with --fps {lips.FPS}")
    people = {name: read(storage, manifest.entry(name)) for name in command.identities}
    if len(people) < 3:
        raise DataError(f"{command.data}: {len(people)} people named; three or more are needed")
    rounds = []
    for _ in range(ROUNDS):
        move(people)
        rounds.append({name: round(person.late_s, 3) for name, person in people.items()})
        print(rounds[-1], file=sys.stderr, flush=True)
    reading = fit([(person.heard(), person.opening) for person in people.values()])
    if command.out:
        np.save(command.out, reading.astype(np.float32))
    tested = {}
    for name in command.tested:
        person = read(storage, manifest.entry(name), training=True)
        tested[name] = asdict(sync.compare(person.opening, person.heard() @ reading))
    print(json.dumps({"rounds": rounds, "tested": tested}, indent=1))
    return 0


def move(people: Mapping[str, Person]) -> None:
    """One round: each sound is moved to where its lips are, as far as a reading that all others taught is sure of it."""
    heard = {name: person.heard() for name, person in people.items()}
    found = {}
    for name, person in people.items():
        reading = fit([(heard[other], p.opening) for other, p in people.items() if other != name])
        found[name] = sync.compare(person.opening, heard[name] @ reading)
    for name, person in people.items():
        person.late_s += found[name].late_s if found[name].sure else 0.0


def read(storage: Storage, entry: IdentityEntry, training: bool = False) -> Person:
    """One person's sound and openings; training: of the frames to train on alone."""
    meta, reader = read_meta(storage, entry), FrameReader(storage, entry)
    if (meta.report.get("sound") or {}).get("fixed"):
        raise DataError(f"{entry.name}: its sound was moved already; pack the clips with --no-fix-sync")
    num = len(reader.train) if training else len(reader)
    return Person(meta.wav, reader.mouth_open[:num].astype(np.float64))


def fit(people: Sequence[tuple[np.ndarray, np.ndarray]]) -> Float64[np.ndarray, " features"]:
    """Ridge regression from whitened principal components of what is heard to openings, in deviations of each person's own."""
    inside = slice(EDGE, -EDGE)
    heard = np.concatenate([heard[inside] for heard, _ in people])
    wanted = np.concatenate([(track := sync.quick(opening)[inside]) / track.std() for _, opening in people])
    heard = heard - heard.mean(0)
    values, vectors = np.linalg.eigh(heard.T @ heard / len(heard))
    basis = vectors[:, ::-1][:, :COMPONENTS] / np.sqrt(values[::-1][:COMPONENTS])
    code = heard @ basis
    return basis @ np.linalg.solve(code.T @ code + RIDGE * np.eye(COMPONENTS), code.T @ wanted)


if __name__ == "__main__":
    sys.exit(guarded(main))
