"""fiag-dist export: an identity's Gaussians as .ply files that viewers of 3D Gaussian Splatting open.

One row a Gaussian, little endian, in the layout of the method's first implementation: x y z nx ny nz, f_dc (3), f_rest (3 k, channel by channel),
opacity (logit), scale (3, log), rot (wxyz). Metres in the head frame: y up, z out of the face.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from scipy.spatial import KDTree

from fiag_dist import __version__
from fiag_dist.acting.actor import refuse_remote
from fiag_dist.acting.listening import num_frames
from fiag_dist.acting.rehearsal import Rehearsal
from fiag_dist.acting.synthesize import Identity
from fiag_dist.ending import guarded
from fiag_dist.errors import ConfigError
from fiag_dist.media.container import writing
from fiag_dist.media.sound import SAMPLE_RATE, Sound
from fiag_dist.model.field import PARAMETERS
from fiag_dist.model.head import Person
from fiag_dist.storage import open_storage
from fiag_dist.types import Gaussians

WRITER = "comment fiag_dist"
"""How the third line of a file begins that was written here."""
Branch = Literal["merged", "face", "mouth"]
_NEAR_M, _SHEET_M, _BEHIND_M, _MOST_SETBACK_M = 0.006, 0.02, 0.002, 0.06
"""In front of a mouth's Gaussian are the face's within 6 mm across, no deeper than 2 cm behind the foremost of them; 2 mm behind these is behind."""


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Writes an identity's Gaussians as .ply: at rest, in one frame of what it says, or in a range of frames."""

    identity: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IDENTITY")]
    """Identity folder: one of those that `fiag-dist adapt` wrote, or `fiag-dist evaluate runs/NAME` in runs/NAME/identities."""
    out: Path
    """A name that ends in .ply; with --sequence, a folder for 000000.ply, 000001.ply .."""
    frame: int | Literal["neutral"] = "neutral"
    """`neutral`: the head at rest; a number: that frame of what `fiag-dist render` shows for the same --audio, counted from 0."""
    sequence: str = ""
    """A:B: frames A to B - 1, numbered."""
    audio: Path | None = None
    """Speech that moves the lips. Without it the identity hears silence, and brows and lids are those of the clip's frame."""
    branch: Branch = "merged"
    """`face` or `mouth` alone, or both in one file, the mouth set back behind the lips: rendering lays the face over the mouth, a viewer sorts by depth."""


def chosen(person: Person, branch: Branch, setback_m: float = 0.0) -> Gaussians:
    """One branch's Gaussians, or the face's and then the mouth's, moved back by `setback_m`."""
    if branch != "merged":
        return person.face if branch == "face" else person.mouth
    pairs = {name: (getattr(person.face, name), getattr(person.mouth, name)) for name in PARAMETERS}
    back = person.mouth.means.new_tensor([0.0, 0.0, -setback_m])
    pairs["means"] = (person.face.means, person.mouth.means + back)
    return Gaussians(**{name: torch.cat(pair) for name, pair in pairs.items()})


def setback_m(rest: Person) -> float:
    """How far the mouth must move back to lie behind the face's front everywhere, metres.

    Rendering lays the face over the mouth whatever the depths, so nothing has kept the mouth's Gaussians from growing through the lips; a viewer
    that sorts by depth would show them.
    """
    face, mouth = (branch.means.detach().double().cpu().numpy() for branch in (rest.face, rest.mouth))
    near = KDTree(face[:, :2]).query_ball_point(mouth[:, :2], _NEAR_M)
    needed = [0.0]
    for z, indices in zip(mouth[:, 2], near, strict=True):
        if indices:
            sheet = face[indices, 2]
            needed.append(z - sheet[sheet > sheet.max() - _SHEET_M].min() + _BEHIND_M)
    return min(max(needed), _MOST_SETBACK_M)


def to_rows(gaussians: Gaussians) -> np.ndarray:
    """A structured array, one row a Gaussian, with the fields of a .ply; quaternions are normalised."""
    g = {name: getattr(gaussians, name).detach().float().cpu() for name in PARAMETERS}
    columns: dict[str, np.ndarray] = {}

    def add(stem: str, values: torch.Tensor) -> None:
        columns.update({f"{stem}_{i}": column for i, column in enumerate(values.T.numpy())})

    columns |= dict(zip("xyz", g["means"].T.numpy(), strict=True))
    columns |= dict.fromkeys(("nx", "ny", "nz"), np.zeros(len(gaussians), np.float32))
    add("f_dc", g["sh_dc"])
    add("f_rest", g["sh_rest"].transpose(1, 2).flatten(1))
    columns["opacity"] = g["opacities"].numpy()
    add("scale", g["log_scales"])
    add("rot", torch.nn.functional.normalize(g["quats"], dim=1))
    rows = np.empty(len(gaussians), [(name, "<f4") for name in columns])
    for name, column in columns.items():
        rows[name] = column
    return rows


def write_ply(path: Path, gaussians: Gaussians, comment: str) -> None:
    """Writes one file, whole or not at all. comment: one line. Raises DataError where it can't be written."""
    rows = to_rows(gaussians)
    assert rows.dtype.names
    plain = " ".join(comment.split()).encode("ascii", "replace").decode()
    properties = [f"property float {name}" for name in rows.dtype.names]
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        f"{WRITER} {plain}",
        f"element vertex {len(rows)}",
        *properties,
        "end_header",
    ]
    open_storage(path.parent).write(path.name, ("\n".join(lines) + "\n").encode() + rows.tobytes())


def frames(identity: Identity, rehearsal: Rehearsal, audio: Path | None, first: int, stop: int) -> Iterator[Person]:
    """Everything in its place in frames first .. stop - 1 of what `Identity.frames` shows; without audio, of what it shows in silence.

    rehearsal: of the identity's actor. Raises ConfigError when the sound ends before.
    """
    info, loop = identity.info, identity.loop
    device = next(identity.actor.buffers()).device
    too_short = ConfigError(
        f"frame {stop - 1}: {audio} ends before it, at {info.fps} frames a second; the rule is a frame that the sound lasts to"
    )
    if audio is None:
        silence = identity.listen(Sound(np.zeros(SAMPLE_RATE, np.float32)).pieces())
        heard: Any = repeat(next(islice(silence, info.fps // 2, None)), stop - first)
    else:
        sound = Sound(audio)
        if 0 < sound.seconds < (stop - 1) / info.fps:
            # Headers of bare AAC or MP3 do not say it: it is an estimate.
            num_samples = sum(piece.shape[1] for piece in sound.pieces())
            if num_frames(num_samples, info.fps) < stop:
                raise too_short  # before anything is written
        heard = islice(identity.listen(sound.pieces()), first, stop)
    t = first
    for window in heard:
        inputs = (window.astype(np.float32), loop.expressions[loop.at(t)], loop.swing[loop.at(t)])
        yield rehearsal.move(*(torch.from_numpy(array).to(device) for array in inputs))
        t += 1
    if t < stop:
        raise too_short


def main(argv: list[str]) -> int:
    """The command. Returns 0. Raises ConfigError, DataError or WeightsError."""
    command = tyro.cli(ExportCommand, args=argv, prog="fiag-dist export")
    refuse_remote(command.out, written=True)
    if command.audio:
        refuse_remote(command.audio, is_file=True)
    first, stop = _range(command)
    if not command.sequence and command.out.suffix.lower() != ".ply":
        raise ConfigError(f"--out {command.out}: the rule is a name that ends in .ply, or --sequence A:B and a folder")
    with writing(command.out):
        if command.sequence and not command.out.is_dir() and (command.out.exists() or command.out.suffix):
            raise ConfigError(
                f"--sequence {command.sequence} --out {command.out}: the rule is a folder for the numbered files, which must be there if its name has a dot"
            )
        _refuse_others(command, first, stop)
    identity = Identity.load(command.identity)
    rehearsal = Rehearsal(identity.actor)
    people = [rehearsal.rest] if command.frame == "neutral" and not command.sequence else None
    back_m = setback_m(rehearsal.rest) if command.branch == "merged" else 0.0
    said = f"{__version__}, synthetic, identity {identity.info.name}"
    num, size = 0, 0
    for person in people or frames(identity, rehearsal, command.audio, first, stop):
        path = _numbered(command.out, first + num) if command.sequence else command.out
        gaussians = chosen(person, command.branch, back_m)
        at = "neutral" if people else f"frame {first + num}"
        write_ply(path, gaussians, f"{said}, {at}, {command.branch}; metres, y up, z out of the face")
        num, size = num + 1, len(gaussians)
    Console(highlight=False, markup=False).print(
        f"{command.out}: {num} file{'s' if num > 1 else ''} of {size} Gaussians", soft_wrap=True
    )
    return 0


def _refuse_others(command: ExportCommand, first: int, stop: int) -> None:
    """Raises ConfigError where a file that no export wrote would be replaced, or one of another sequence would stay: players take all that are there."""
    out = command.out
    there = {out}
    if command.sequence:
        there = {path for path in out.iterdir() if path.suffix == ".ply"} if out.is_dir() else set()
    mine = {path for path in there if path == out or _is_numbered(path, first, stop)}
    for path in sorted(mine):
        if path.is_file() and not _is_ours(path):
            raise ConfigError(f"--out {path}: is there, and not from fiag-dist export; give another name, or delete it")
    others = sorted(path.name for path in there - mine)
    if others:
        raise ConfigError(
            f"--out {out}: holds {len(others)} other .ply file{'s' if len(others) > 1 else ''} ({others[0]} ...), which would be taken for "
            "part of the sequence; give another folder, or delete them"
        )


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return any(file.readline(200).startswith(WRITER.encode()) for _ in range(3))


def _numbered(out: Path, number: int) -> Path:
    return out / f"{number:06d}.ply"


def _is_numbered(path: Path, first: int, stop: int) -> bool:
    """Whether it has the name of one of these frames."""
    stem = path.stem
    return stem.isdecimal() and first <= int(stem) < stop and path == _numbered(path.parent, int(stem))


def _range(command: ExportCommand) -> tuple[int, int]:
    """First frame and one past the last."""
    if not command.sequence:
        first = 0 if command.frame == "neutral" else command.frame
        if first < 0:
            raise ConfigError(f"--frame {first}: the rule is neutral, or a number from 0")
        return first, first + 1
    left, colon, right = command.sequence.partition(":")
    if not (colon and left.isdecimal() and right.isdecimal() and int(left) < int(right)):
        raise ConfigError(
            f"--sequence {command.sequence}: the rule is A:B with 0 <= A < B; for example --sequence 0:50"
        )
    if command.frame != "neutral":
        raise ConfigError(f"--frame {command.frame} --sequence {command.sequence}: the rule is one of the two")
    return int(left), int(right)


if __name__ == "__main__":
    sys.exit(guarded(main))
