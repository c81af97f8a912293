"""fiag-dist bench: how fast the parts are on this machine. One JSON object a benchmark; finds the file that measures, and imports nothing else."""

import importlib
import sys

from fiag_dist.ending import guarded
from fiag_dist.errors import ConfigError, meant

BENCHMARKS = {
    "raster": "Gaussians to an image and back, against tiles in plain torch",
    "encoder": "tri-plane features and back, against the torch backend",
    "network": "a small network at many points and back, against torch's own layers",
    "ssim": "structural similarity and back, against pytorch-msssim",
    "step": "one training step of the whole model, and where its time goes",
    "dist": "a step of pretraining with several ranks, DDP and ZeRO in turns, against one rank alone on one core",
    "scale": "what the model of docs/scaling.md predicts for 1 to 256 GPUs and 10 to 10 000 people",
    "pack": "a clip to shards: frames/s with one worker and several, and where the time goes",
    "render": "frames/s of a finished identity, without and with H.264",
    "adapt": "identities an hour in parallel trials, against one after another",
}
"""File of this folder that measures -> its line in the help. A new benchmark is a line here and a file with a class `Bench` in it."""


def help_text() -> str:
    """The text of `fiag-dist bench --help`."""
    width = max(map(len, BENCHMARKS))
    return "\n".join(
        [
            "usage: fiag-dist bench NAME [--num-gaussians N] [--size S] [--threads T] [--repeat R] [--out FILE] ...",
            "",
            *(f"  {name:<{width}}  {summary}" for name, summary in BENCHMARKS.items()),
            "",
            "Prints one JSON object on stdout and its progress on stderr. Times are medians in milliseconds; minimum and spread stand beside them.",
            "fiag-dist bench NAME --help explains one. On a busy machine trust the ratios, not the times: benchmarks/README.md.",
        ]
    )


def main(argv: list[str]) -> int:
    """Runs the benchmark named by the first argument with the rest. Raises ConfigError for an unknown one, and names the nearest."""
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text())
        return 0
    name, *rest = argv
    if name not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {name!r}; {meant(name, BENCHMARKS)}")
    return importlib.import_module(f"fiag_dist.bench.{name}").Bench.run(name, rest)


if __name__ == "__main__":
    sys.exit(guarded(main))
