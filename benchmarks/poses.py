"""What head poses are worth: heads trained from scratch on one clip, with the landmark model's own poses and with adjusted ones, on the same test frames.

Example: python benchmarks/poses.py --clip anchor_a.mp4 --out runs/poses
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paper_cells import Lab, Plan

from fiag_dist.bench.benchmark import say
from fiag_dist.config import PackConfig, Poses
from fiag_dist.ending import guarded
from fiag_dist.ingest.gather import identity_name
from fiag_dist.metrics.panel import IMAGE
from fiag_dist.pack import pack

SHOWN = ("head_psnr_db", "full_psnr_db", "mouth_psnr_db", "head_ssim")


@dataclass(frozen=True, kw_only=True)
class Command:
    """Packs a clip with both kinds of poses, trains a head on each and prints how well it shows frames that it never saw. Interrupted, it goes on."""

    clip: Path
    """A video of one speaking person."""
    out: Path = Path("runs/poses")
    """Folder for shards, heads and numbers."""
    max_seconds: float = 10.0
    """Of the clip, from its start; the last eleventh is for the test."""
    steps: int = 2000
    """With images, of one frame each; landmark steps come before them."""
    config: str = "configs/adapt_fast.yaml"
    """Their other settings."""


def main(argv: list[str]) -> int:
    """The command: a JSON object for each kind of poses."""
    command = tyro.cli(Command, args=argv, prog="python benchmarks/poses.py")
    found = {poses: measured(command, poses) for poses in get_args(Poses)}
    gain_db = found["adjusted"]["head_psnr_db"] - found["detected"]["head_psnr_db"]
    print(json.dumps(found | {"gain_head_psnr_db": round(gain_db, 2), "steps": command.steps}, indent=1))
    return 0


def measured(command: Command, poses: Poses) -> dict[str, Any]:
    """How well these poses fit the clip, and metrics of the head that was trained with them."""
    folder = command.out / poses
    shards = folder / "shards"
    settings = PackConfig(max_seconds=command.max_seconds, poses=poses)
    pack([command.clip], str(shards), settings, report=say)
    person = identity_name(command.clip.stem)
    plan = Plan(
        clips=str(shards), out=folder, steps=command.steps, pretrain_steps=0, pretrain_config="",
        adapt_config=command.config, ranks=1, metrics=IMAGE,
    )  # fmt: skip
    numbers = Lab(plan).adapted(str(shards), person, "", seed=0)
    fit = json.loads((shards / person / "report.json").read_text())["pose"]
    return {name: round(numbers[name], 4) for name in SHOWN} | {"minutes": round(numbers["minutes"], 1), "pose": fit}


if __name__ == "__main__":
    sys.exit(guarded(main))
