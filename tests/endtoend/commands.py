"""The command line as a user calls it, and what a run leaves behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(*words: str | Path, timeout_s: float = 240, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command of this checkout; on failure the test shows what it printed."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=timeout_s, env=env, cwd=ROOT)
    if check:
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def fiag_dist(*words: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return command(sys.executable, "-m", "fiag_dist.cli", *words, **options)


def torchrun(ranks: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        "fiag_dist.pretrain",
    ]


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
