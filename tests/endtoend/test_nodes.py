"""Two nodes on one machine: the Slurm job script starts them, hears that time is up, saves, and goes on when it is run again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT, records

# As Slurm has it: one task a node, and a signal reaches every process of a task.
SRUN = """
while [[ "$1" == -* ]]; do shift; done
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
  SLURM_NODEID=$node setsid "$@" &
  tasks+=($!)
done
trap 'interrupted=1; for task in "${tasks[@]}"; do kill -USR1 -- "-$task"; done' USR1
trap 'for task in "${tasks[@]}"; do kill -KILL -- "-$task"; done' EXIT
worst=0
for task in "${tasks[@]}"; do
  interrupted=1
  while [ "$interrupted" ]; do interrupted=""; wait "$task" && status=0 || status=$?; done
  [ "$status" = 0 ] || worst=$status
done
trap - EXIT
exit "$worst"
"""
SCONTROL = """
echo "$@" >>"$SCONTROL_LOG"
[ "$1" = requeue ] || printf 'localhost\\nlocalhost\\n'
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(f"#!/bin/bash{text}")
        (tmp_path / name).chmod(0o755)
    tools = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "localhost,localhost", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"SLURM_JOB_ID": str(os.getpid()), "SCONTROL_LOG": str(tmp_path / "scontrol.log")}
    return os.environ | job | {"PATH": tools, "PYTHONPATH": str(ROOT), "NPROC": "1"}


def submit(environment: dict[str, str], *words: str | Path) -> subprocess.Popen[str]:
    job = ["bash", ROOT / "launch" / "slurm.sbatch", *words]
    return subprocess.Popen(
        job, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_a_job_near_its_time_limit_saves_on_both_nodes_and_goes_back_into_the_queue(
    slurm: dict[str, str], config: Path
) -> None:
    run = config.parent / "slurm"
    words = [config, "--name", run.name, "--train.steps", "2000", "--train.log-every", "1"]
    job = submit(slurm, *words)
    try:
        until = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() and job.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        said, _ = job.communicate(timeout=120)
    finally:
        job.kill()
    assert job.returncode == 0, said[-3000:]
    assert "stopped at step" in said
    assert (run / "logs/rank1.log").exists(), "the second node had no rank of its own"
    saved = [path.parent.name for path in run.glob("checkpoints/*/COMMIT.json")]
    assert f"step-{records(run)[-1]['step']:08d}" in saved
    asked = Path(slurm["SCONTROL_LOG"]).read_text().splitlines()
    assert asked == ["show hostnames localhost,localhost", f"requeue {slurm['SLURM_JOB_ID']}"]
