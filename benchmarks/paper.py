"""The paper's experiments, each as one command: a table of ours beside the paper's, and where the paper has a figure, a picture.

python benchmarks/paper.py table4 --clips CLIPS_OR_SHARDS --steps 2000 --seeds 3
python benchmarks/paper.py fig8 fig10 --clips CLIPS_OR_SHARDS --steps 500
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paper_cells import Lab, Plan
from paper_experiments import EXPERIMENTS
from paper_page import caption, write_page
from paper_study import Study, divided

from fiag_dist.ending import guarded
from fiag_dist.metrics.panel import asked
from fiag_dist.training.settings import refuse_below

Experiment = Literal[
    "table1", "table2", "table3", "table4", "table5", "table6", "table7", "table8", "fig8", "fig10", "likeness", "prior"
]


@dataclass(frozen=True, kw_only=True)
class PaperCommand:
    """Runs experiments of the paper on your clips: pretrains, adapts, evaluates. Run again, it goes on where it was interrupted."""

    experiments: tyro.conf.Positional[tuple[Experiment, ...]]
    """Tables and figures of the paper."""
    clips: str
    """Folder of clips, or of packed shards; table2 and table7 pack anew, so they need clips."""
    out: Path = Path("paper")
    """Pages, and all runs, shards and identities that they are made of: what is there is not made again."""
    steps: int = 2000
    """Steps with images of each adaptation."""
    pretrain_steps: int = 0
    """Steps with images of each pretraining; 0: four times as many as an adaptation."""
    seeds: int = 1
    """Each row is made so often; pages then show mean and standard deviation."""
    held_out: tuple[str, ...] = ()
    """Who is never pretrained on, but tested; none: the last of all by name."""
    num_held_out: int = 3
    """How many these are, when no names are given."""
    tested: tuple[str, ...] = ()
    """Only these of those held out are adapted to; none: all."""
    prior_steps: tuple[int, ...] = (100, 300, 500, 1500)
    """Steps with images of the adaptations of `prior`."""
    seconds: float = 5.0
    """Footage of each person that is adapted to; of shards, all there is."""
    extractors: tuple[str, ...] = ("whisper:3", "mel")
    """Speech features of table7, as `fiag-dist pack --extractor` takes them."""
    ranks: int = 1
    """Processes of a pretraining."""
    fast: bool = False
    """PSNR and SSIM alone."""
    metrics: str = ""
    """Only these, as `fiag-dist evaluate --metrics` takes them; none: all that this installation can measure."""
    syncnet: Path | None = None
    """SyncNet's weights, as `fiag-dist evaluate --syncnet` takes them: adds Sync-C and Sync-E."""
    pretrain_config: str = "configs/pretrain_cpu.yaml"
    adapt_config: str = "configs/adapt_fast.yaml"


def main(argv: Sequence[str], isolated: bool = True) -> int:
    """Writes a page for each experiment. isolated: False makes cells in this process, and peaks of memory then mean nothing."""
    command = tyro.cli(PaperCommand, args=list(argv), prog="paper.py")
    refuse_below({"seeds": 1, "num_held_out": 1}, command)
    plan = Plan(
        clips=command.clips,
        out=command.out,
        steps=command.steps,
        pretrain_steps=command.pretrain_steps or 4 * command.steps,
        pretrain_config=command.pretrain_config,
        adapt_config=command.adapt_config,
        ranks=command.ranks,
        metrics=asked(command.fast, command.metrics, command.syncnet),
        syncnet=command.syncnet,
        isolated=isolated,
    )
    lab = Lab(plan)
    taught, tested = divided(lab, lab.shards(), command.held_out, command.num_held_out, command.tested)
    study = Study(
        lab=lab,
        taught=taught,
        tested=tested,
        seconds=command.seconds,
        seeds=command.seeds,
        extractors=command.extractors,
        prior_steps=command.prior_steps,
    )
    for name in command.experiments:
        lab.origins.clear()
        found = EXPERIMENTS[name](study)
        steps = found.made or study.made(f"{plan.steps} of adaptation")
        said = caption(command.clips, steps, command.seeds, lab.origins)
        page = write_page(plan.out, name, found, said)
        print(page.read_text())
        print(f"page: {page}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
