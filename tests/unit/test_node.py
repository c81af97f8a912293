"""What a node says of itself to the script that starts it."""

import subprocess
import sys

import pytest

from fiag_dist.dist.node import address_towards
from fiag_dist.errors import DistributedError


def test_the_address_is_the_one_that_leads_there() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert address_towards("localhost") in ("127.0.0.1", "::1")


def test_no_way_there_is_said() -> None:
    with pytest.raises(DistributedError, match=r"MASTER_ADDR node\.invalid: no way there from .*; give node 0's name"):
        address_towards("node.invalid")


def test_a_gpu_that_is_hidden_is_not_counted() -> None:
    words = [sys.executable, "-m", "fiag_dist.dist.node", "127.0.0.1"]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, env={"CUDA_VISIBLE_DEVICES": ""}, timeout=60
    )
    assert done.stdout.split() == ["0", "127.0.0.1"]
