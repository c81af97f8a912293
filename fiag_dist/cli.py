"""The `fiag-dist` command: finds the module that does the work, and imports nothing else, so that `--help` is quick."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from fiag_dist import __version__
from fiag_dist.ending import guarded
from fiag_dist.errors import ConfigError, meant


@dataclass(frozen=True)
class Command:
    """One line of the help: which module's `main(argv) -> int` runs, what goes in, what comes out."""

    module: str
    usage: str
    summary: str


COMMANDS = {
    "doctor": Command(
        "doctor", "", "what this machine can run, and what to mend: versions, cores, GPUs, backends, weights, S3"
    ),
    "weights": Command(
        "weights", "[list|fetch]", "files of the pretrained extractors -> the cache folder, each checked by SHA-256"
    ),
    "pack": Command(
        "pack",
        "CLIP_OR_FOLDER... --out URL",
        "video clips -> shards and manifest.json in a folder or at s3://bucket/prefix",
    ),
    "shards": Command(
        "shards.inspect",
        "[ls|verify|show|remove] URL",
        "shards -> a table, a check of every size and hash, one sample as files, or people taken out",
    ),
    "pretrain": Command(
        "pretrain",
        "CONFIG.yaml [--a.b value]",
        "shards of many people -> a run folder with checkpoints (several ranks: torchrun)",
    ),
    "runs": Command(
        "runs", "ls [DIR]", "runs in a folder or at s3:// -> state, step, last loss, and how the state is known"
    ),
    "adapt": Command(
        "adapt",
        "CLIPS_OR_SHARDS --from CHECKPOINT --out DIR",
        "new clips -> one identity folder each, in parallel, and results.csv",
    ),
    "render": Command(
        "render", "IDENTITY --audio WAV --out MP4", "an identity folder and speech -> a video of any length"
    ),
    "view": Command(
        "view", "IDENTITY", "an identity folder -> a web page: turn it about, drop a sound file, see it talk"
    ),
    "export": Command(
        "export",
        "IDENTITY --out PLY",
        "an identity's Gaussians -> .ply files that viewers of 3D Gaussian Splatting open",
    ),
    "identity": Command(
        "identity_info", "info IDENTITY", "an identity folder -> what it is, where it came from, what was agreed to"
    ),
    "evaluate": Command(
        "evaluate", "IDENTITY_OR_DIR", "identity folders -> metrics.json in each, and a table over all"
    ),
    "bench": Command("bench.main", "NAME", "nothing -> how fast the parts are on this machine, as one JSON object"),
}


def help_text() -> str:
    """The text of `fiag-dist --help`: each command with what goes in and what comes out."""
    lines = ["usage: fiag-dist COMMAND [ARGUMENTS] [--debug]", ""]
    for name, command in COMMANDS.items():
        lines += [f"  {name} {command.usage}".rstrip(), f"      {command.summary}"]
    lines += [
        "",
        "fiag-dist COMMAND --help explains one. --debug shows the traceback of an error and refuses NaN in kernels. --version prints the version.",
        "A mistake in what was asked ends with one line (in flags: a box) and status 2; under torchrun each rank says it, and torchrun ends with status 1.",
    ]
    return "\n".join(lines)


def dispatch(argv: list[str]) -> int:
    """Runs the command named by the first argument with the rest. Raises ConfigError for an unknown one, and names the nearest."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    name, *rest = argv
    if name in ("-V", "--version"):
        print(f"fiag-dist {__version__}")
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; {meant(name, COMMANDS)}")
    module = importlib.import_module(f"fiag_dist.{COMMANDS[name].module}")
    return module.main(rest)


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit status: 0, 2 after a user's mistake, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return guarded(dispatch, argv)


if __name__ == "__main__":
    sys.exit(main())
