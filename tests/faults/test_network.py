"""Two nodes with a network of their own between them: they train, a cut ends both with a line, and afterwards the run goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
STEP_TIMEOUT_S = 20
SETTINGS = f"""
data: {{data}}
runs: {{runs}}
name: far
first_step_timeout_s: 120
step_timeout_s: {STEP_TIMEOUT_S}
train:
  steps: {{steps}}
  frames_per_step: 2
  log_every: 5
  images_every: 0
  checkpoint_every: 10
  loss: {{{{lpips: 0.0}}}}
  stages: {{{{landmark_steps: 5}}}}
  model:
    field: {{{{num_face: 300, num_mouth: 60, capacity_face: 350, capacity_mouth: 80}}}}
"""


@dataclass(frozen=True)
class Network:
    """Two network namespaces, each with one end of a cable."""

    names: tuple[str, str]
    addresses: tuple[str, str] = ("10.77.0.1", "10.77.0.2")

    def switch(self, on: bool) -> None:
        ip("netns", "exec", self.names[0], "ip", "link", "set", "cable", "up" if on else "down")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network((f"fiag-{os.getpid()}-0", f"fiag-{os.getpid()}-1"))
    try:
        for name in made.names:
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces can't be made here (root and iproute2 are needed): {error}")
    try:
        ip(
            "link",
            "add",
            "cable",
            "netns",
            made.names[0],
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            made.names[1],
        )
        for name, address in zip(made.names, made.addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield made
    finally:
        for name in made.names:
            ip("netns", "delete", name)


def start(network: Network, node: int, config: Path, log: Path) -> subprocess.Popen[bytes]:
    """One node with one rank. The host name, which both have in common, leads to neither from the other."""
    words = ["ip", "netns", "exec", network.names[node], "bash", str(ROOT / "launch/pretrain.sh"), str(config)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "cable", "NPROC": "1", "RESTARTS": "0"}
    environment |= {"NNODES": "2", "NODE_RANK": str(node), "MASTER_ADDR": network.addresses[0]}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with log.open("wb") as stream:
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True)


def until(condition: Callable[[], bool], seconds: float, what: str, logs: list[Path]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        shown = "\n".join(log.read_text()[-3000:] for log in logs)
        assert time.monotonic() < end, f"not within {seconds} s: {what}\n{shown}"
        time.sleep(0.2)


def test_a_cut_network_ends_both_nodes_and_the_run_goes_on_when_it_is_back(network: Network, tmp_path: Path) -> None:
    make = [sys.executable, ROOT / "shards/make_demo.py", "--out", tmp_path / "shards"]
    subprocess.run([*make, "--identities", "2", "--seconds", "1.2", "--size", "32"], check=True, timeout=280)
    config = tmp_path / "far.yaml"
    logs = [tmp_path / "node0.log", tmp_path / "node1.log"]

    def commits() -> list[int]:
        return sorted(int(p.parent.name[5:]) for p in (tmp_path / "runs/far/checkpoints").glob("*/COMMIT.json"))

    nodes: list[subprocess.Popen[bytes]] = []
    try:
        config.write_text(SETTINGS.format(data=tmp_path / "shards", runs=tmp_path / "runs", steps=5000))
        nodes = [start(network, node, config, logs[node]) for node in (0, 1)]
        until(lambda: bool(commits()), 280, "a first checkpoint", logs)
        network.switch(on=False)
        cut = time.monotonic()
        said = [f"fiag-dist: rank {rank} of 2: step " for rank in (0, 1)]
        until(
            lambda: all(w in log.read_text() for w, log in zip(said, logs, strict=True)),
            STEP_TIMEOUT_S + 40,
            "a line of each",
            logs,
        )
        print(f"both ranks ended {time.monotonic() - cut:.0f} s after the cut")
        lines = [
            next(line for line in log.read_text().splitlines() if line.startswith("fiag-dist: rank")) for log in logs
        ]
        print("\n".join(lines))
        assert "no sign of life from rank 1: " in lines[0]
        assert "the network between is cut" in lines[1]
        assert all('Traceback (most recent call last):\n  File "<frozen runpy>"' not in line for line in lines)
    finally:
        for node in nodes:
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()
    reached = commits()[-1]
    network.switch(on=True)
    config.write_text(SETTINGS.format(data=tmp_path / "shards", runs=tmp_path / "runs", steps=reached + 5))
    nodes = [start(network, node, config, logs[node]) for node in (0, 1)]
    try:
        assert [node.wait(280) for node in nodes] == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    finally:
        for node in nodes:
            node.kill()
    assert commits()[-1] == reached + 10
    assert f"step {reached + 5}/{reached + 10}" in logs[0].read_text(), "it did not go on from the last checkpoint"
