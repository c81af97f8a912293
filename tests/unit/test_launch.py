"""The scripts in launch/: they say what is wrong before they start anything long."""

import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
TOOLS = ("bash", "cat", "comm", "cut", "dirname", "grep", "paste", "sed", "sha256sum", "sort", "tr", "uname")


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


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True, timeout=30)


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
            "--node-rank=1 --rdzv-backend=c10d --rdzv-id=fiag-dist --rdzv-conf=is_host=0 --rdzv-endpoint=node0:29500 -m",
        ),
    ],
)
def test_pretrain_calls_torchrun(checkout: Path, environment: dict[str, str], expected: str) -> None:
    executable(checkout / "bin" / "torchrun", 'echo "$@"')
    result = run(checkout, "pretrain.sh", "x.yaml", "--train.steps", "9", **environment)
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout
