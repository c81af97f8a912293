"""What TensorBoard's HPARAMS tab shows of each identity: the settings that differ between people, and how they came out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fiag_dist.config import AdaptConfig

METRICS = ("head_psnr_db", "full_psnr_db", "head_ssim", "validation_psnr_db", "seconds", "steps", "peak_mib")


def write_hparams(folder: Path, config: AdaptConfig, metrics: Mapping[str, Any]) -> None:
    """Adds a job's settings and results to the events in `folder`, an identity's tb/, where its curves are."""
    train = config.train
    settings = {
        "steps": train.steps,
        "landmark_steps": train.stages.landmark_steps,
        "rate/nets": train.optim.nets,
        "rate/universal": train.optim.universal,
        "rate/personal_nets": train.optim.personal_nets,
        "seed": train.seed,
    }
    results = {f"result/{name}": metrics[name] for name in METRICS if metrics.get(name) is not None}
    with SummaryWriter(str(folder)) as writer:
        for summary in hparams(settings, results):
            assert writer.file_writer
            writer.file_writer.add_summary(summary)
        for tag, value in results.items():
            writer.add_scalar(tag, value)
