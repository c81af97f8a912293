"""Checkpoints on a real S3 server: committed last, whole or none, and never passed over because the server is away."""

import subprocess
import sys
import time

import pytest
import torch
from fault_proxy import Fault, Proxy, always, every_third

from fiag_dist.dist import checkpoint
from fiag_dist.dist.checkpoint import load, newest, resolve
from fiag_dist.dist.process import Process
from fiag_dist.dist.saving import save
from fiag_dist.errors import CheckpointError
from fiag_dist.storage import S3Storage, UnreachableError

FOLDER = checkpoint.FOLDER
SHARED = {"field.means": torch.arange(3000.0).reshape(1000, 3)}
OPTIM = {"field.means:exp_avg": torch.ones(1000, 3)}
PEOPLE = {"anna": {"net.weight": torch.eye(3)}, "bert": {"net.weight": torch.eye(2)}}


@pytest.fixture
def store(url: str) -> S3Storage:
    return S3Storage(url)


def save_at(store: S3Storage, step: int, keep: int = 0) -> str:
    return save(store, FOLDER, step, {k: v + step for k, v in SHARED.items()}, OPTIM, PEOPLE, {}, Process(), keep)


def loads(store: S3Storage, step: int) -> bool:
    """Whether the newest checkpoint is that of `step`, with every tensor as it was saved."""
    folder = newest(store, FOLDER)
    found = load(store, folder) if folder else None
    return (
        found is not None
        and found.step == step
        and torch.equal(found.shared["field.means"], SHARED["field.means"] + step)
        and torch.equal(found.optim["field.means:exp_avg"], OPTIM["field.means:exp_avg"])
        and all(torch.equal(found.identities[name]["net.weight"], PEOPLE[name]["net.weight"]) for name in PEOPLE)
    )


def test_saved_and_found_by_its_url(store: S3Storage, proxy: Proxy) -> None:
    proxy.calm()
    save_at(store, 1)
    puts = [request for request, _ in proxy.seen if request.startswith("PUT")]
    assert len(puts) == 5
    assert puts[-1].endswith(f"step-00000001/{checkpoint.COMMIT}"), "the commit comes last"
    assert loads(store, 1)
    save_at(store, 2, keep=1)
    for url in (store.url, f"{store.url}/{FOLDER}", f"{store.url}/{FOLDER}/step-00000002"):
        storage, folder = resolve(url)
        assert f"{storage.url}/{folder}" == f"{store.url}/{FOLDER}/step-00000002"
    assert {path.split("/")[1] for path in store.list(FOLDER)} == {"step-00000002"}
    assert loads(store, 2)


@pytest.mark.parametrize("kind", ["status", "lost answer", "cut answer"])
def test_faults_that_pass_cost_nothing(store: S3Storage, proxy: Proxy, kind) -> None:
    proxy.choose = every_third(".", Fault(kind))
    save_at(store, 1)
    save_at(store, 2, keep=1)
    assert loads(store, 2)
    assert sum(fault is not None for _, fault in proxy.seen) >= 5


@pytest.mark.parametrize("part", ["identities/anna", checkpoint.SHARED, checkpoint.OPTIM, checkpoint.COMMIT])
def test_a_save_that_is_cut_leaves_the_one_before(store: S3Storage, proxy: Proxy, part: str) -> None:
    save_at(store, 1)
    proxy.choose = always(f"^PUT .*{part}", Fault("cut request"))
    with pytest.raises(
        UnreachableError, match=rf"step 2: rank 0 could not write: s3://.*{part}.*: writing failed 3 tim"
    ):
        save_at(store, 2)
    proxy.calm()
    assert not store.exists(f"{FOLDER}/step-00000002/{checkpoint.COMMIT}")
    with pytest.raises(CheckpointError, match=r"no COMMIT.json, so it was never finished"):
        load(store, f"{FOLDER}/step-00000002")
    assert loads(store, 1)
    save_at(store, 2)
    assert loads(store, 2)


def test_leftovers_that_cannot_be_removed_stop_the_save(store: S3Storage, proxy: Proxy) -> None:
    save_at(store, 1)
    proxy.choose = always("^POST .*delete", Fault("status", status=403, code="AccessDenied"))
    with pytest.raises(
        UnreachableError, match=r"step 1: rank 0 could not write: s3://.*deleting failed: access denied"
    ):
        save_at(store, 1)
    proxy.calm()
    assert loads(store, 1)


def test_a_server_that_is_away_is_no_reason_to_start_from_an_older_step(store: S3Storage, proxy: Proxy) -> None:
    save_at(store, 1)
    save_at(store, 2)
    for what in (checkpoint.COMMIT, checkpoint.SHARED, "list-type"):
        proxy.choose = always(f"^(GET|HEAD) .*{what}", Fault("status"))
        with pytest.raises(UnreachableError, match="failed 3 times"):
            newest(store, FOLDER)
    proxy.calm()
    assert loads(store, 2)


@pytest.mark.parametrize("kind", ["truncated", "changed", "vanished"])
def test_damaged_ones_are_passed_over_with_a_line(
    store: S3Storage, proxy: Proxy, kind, capsys: pytest.CaptureFixture
) -> None:
    save_at(store, 1)
    save_at(store, 2)
    proxy.choose = always("^GET .*step-00000002/shared.safetensors", Fault(kind))
    assert newest(store, FOLDER) == f"{FOLDER}/step-00000001"
    line = capsys.readouterr().out
    assert line.startswith(f"checkpoint passed over: {store.url}/{FOLDER}/step-00000002/shared.safetensors: ")
    assert len(line.splitlines()) == 1


KILLED = """
import sys, torch
from fiag_dist.dist.process import Process
from fiag_dist.dist.saving import save
from fiag_dist.storage import open_storage

save(open_storage(sys.argv[1]), "checkpoints", 2, {"a": torch.ones(3)}, {}, {"anna": {}}, {}, Process(), keep=1)
"""


def test_kill_9_in_an_upload_leaves_the_one_before(store: S3Storage, proxy: Proxy) -> None:
    save_at(store, 1)
    proxy.calm()
    proxy.choose = always(f"^PUT .*{checkpoint.COMMIT}", Fault("stall request", seconds=60))
    saver = subprocess.Popen([sys.executable, "-c", KILLED, store.url])
    end = time.monotonic() + 60
    while not proxy.count(f"^PUT .*{checkpoint.COMMIT}") and time.monotonic() < end:
        time.sleep(0.05)
    saver.kill()
    assert saver.wait() == -9
    proxy.calm()
    assert loads(store, 1)
    assert not store.exists(f"{FOLDER}/step-00000002/{checkpoint.COMMIT}")
