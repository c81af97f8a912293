"""Pretraining through torchrun, on demo identities, with real ranks."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, command, fiag_dist, records, torchrun
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fiag_dist import cli
from fiag_dist.dist.ownership import assign

LAST = "checkpoints/step-00000048"


def _same(a: Path, b: Path) -> None:
    """All tensors of two checkpoints are equal to the bit."""
    files = sorted(p.relative_to(a) for p in a.rglob("*.safetensors"))
    assert files == sorted(p.relative_to(b) for p in b.rglob("*.safetensors"))
    for file in files:
        left, right = load_file(a / file), load_file(b / file)
        assert left.keys() == right.keys()
        different = [name for name in left if not torch.equal(left[name], right[name])]
        assert not different, f"{file}: {different[:5]}"


def test_a_run_leaves_a_whole_checkpoint_and_its_record(pretrained: Path):
    commit = json.loads((pretrained / LAST / "COMMIT.json").read_text())
    assert (commit["step"], commit["world"]) == (48, 2)
    lines = records(pretrained)
    assert lines[-1]["step"] == 48
    assert {"loss/total", "loss/face", "rate/means", "field/num_gaussians", "time/step_ms", "time/data_pct"} <= set(
        lines[3]
    )
    assert (pretrained / "config.yaml").read_text().startswith("# torchrun")
    for name in commit["info"]["config"]["identities"]:
        assert any(f"eval/psnr_db/{name}" in line for line in lines)


def test_the_field_grows_and_learns(pretrained: Path):
    lines = [line for line in records(pretrained) if "loss/face" in line]
    assert lines[-1]["field/num_gaussians"] > lines[0]["field/num_gaussians"]
    assert lines[-1]["loss/face"] < 0.6 * lines[0]["loss/face"]
    assert {line["train/stage"] for line in records(pretrained) if "train/stage" in line} == {0, 1, 2, 3, 4}


def test_tensorboard_has_curves_and_each_identity_beside_its_truth(pretrained: Path):
    names, scalars = set(), set()
    for folder in {p.parent for p in (pretrained / "tb").rglob("events.*")}:
        events = EventAccumulator(str(folder), size_guidance={"images": 0})
        events.Reload()
        names |= {tag.removeprefix("identities/") for tag in events.Tags()["images"]}
        scalars |= set(events.Tags()["scalars"])
    assert names == set(json.loads((pretrained / LAST / "COMMIT.json").read_text())["info"]["config"]["identities"])
    assert {"loss/total", "field/num_gaussians", "time/step_ms", "time/data_pct", "rate/means"} <= scalars


def test_personal_nets_differ(pretrained: Path):
    nets = [load_file(p)["net.0.weight"] for p in sorted((pretrained / LAST / "identities").glob("*.safetensors"))]
    assert len(nets) == 3
    assert not torch.equal(nets[0], nets[1])


def test_ranks_hold_the_same_shared_parameters(pretrained: Path):
    # The run itself compares a hash over all ranks at each checkpoint and stops when one differs.
    log = (pretrained / "logs" / "rank1.log").read_text()
    assert "on all 2 ranks" in log
    assert f"{pretrained}: starts, 48 steps, 3 people, 2 ranks" in log


def test_one_rank_trains_the_same_global_batch_as_two(pretrained: Path, config: Path):
    command(*torchrun(1), config, "--name", "one")
    two, one = records(pretrained), records(config.parent / "one")
    curves = [np.array([line["loss/total"] for line in lines if "loss/total" in line]) for lines in (one, two)]
    assert len(curves[0]) == 12
    # Sums are added in another order, so rounding differs and grows with the steps; measured: below 1e-4.
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-3)


OTHER_CPU = """
import os, runpy
if os.environ["LOCAL_RANK"] == "1":
    os.environ |= {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
runpy.run_module("fiag_dist.pretrain", run_name="__main__", alter_sys=True)
"""


def test_machines_with_other_kinds_of_cpu_train_one_field(config: Path, tmp_path: Path):
    """What a rank works out for itself, such as children and averages, ends the run where ranks differ by a bit when they save."""
    (tmp_path / "other_cpu.py").write_text(OTHER_CPU)
    words = [*torchrun(2)[:-2], str(tmp_path / "other_cpu.py")]
    command(*words, config, "--name", "mixed", "--train.steps", "16")
    assert (config.parent / "mixed/checkpoints/step-00000024/COMMIT.json").exists()
    assert max(line.get("field/grown", 0) for line in records(config.parent / "mixed")) > 0


def test_a_stopped_run_goes_on_to_the_same_bits(pretrained: Path, config: Path):
    """SIGTERM ends the step, saves, and exits; run again, the end is that of the run that was never stopped."""
    run = config.parent / "stopped"
    words = [*torchrun(2), str(config), "--name", "stopped"]
    first = subprocess.Popen(
        words,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 180
    while time.monotonic() < until and not (run / "metrics.jsonl").exists():
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    first.wait(120)
    steps = sorted(int(p.parent.name.removeprefix("step-")) for p in run.glob("checkpoints/*/COMMIT.json"))
    assert steps, "no checkpoint was saved on SIGTERM"
    assert steps[-1] < 48, "the run ended before it was stopped"
    command(*words)
    _same(pretrained / LAST, run / LAST)


def _started(words: list[str]) -> subprocess.Popen[str]:
    """A command under way as launch/pretrain.sh starts it, with all that it prints in one pipe."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _written_since(time_s: float, path: Path) -> bool:
    try:
        return path.stat().st_mtime > time_s
    except FileNotFoundError:
        return False


def test_neither_a_damaged_checkpoint_nor_a_killed_rank_changes_the_end(pretrained: Path, config: Path):
    """The newest checkpoint is passed over for the one before it; torchrun starts the ranks again; and with no one's help all ends as it would have."""
    run = config.parent / "hit"
    for step in ("step-00000020", "step-00000040"):
        shutil.copytree(pretrained / "checkpoints" / step, run / "checkpoints" / step)
    damaged = run / "checkpoints/step-00000040/shared.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    words = [*torchrun(2), str(config), "--name", "hit"]
    words.insert(words.index("--standalone"), "--max-restarts=1")
    words.insert(words.index("--standalone"), "--monitor-interval=0.2")
    began = time.time()
    job = _started(words)
    until = time.monotonic() + 180
    while time.monotonic() < until and not _written_since(began, damaged.with_name("COMMIT.json")):
        time.sleep(0.02)
    ranks = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    printed = job.communicate(timeout=240)[0]
    assert job.returncode == 0, printed[-3000:]
    assert "passed over" in printed
    assert printed.count("done at step 48") == 1
    _same(pretrained / LAST, run / LAST)


def test_the_error_of_one_rank_comes_first_and_ends_the_others(
    pretrained: Path, config: Path, shards: Path, tmp_path: Path
):
    shutil.copytree(shards, tmp_path / "shards")
    shutil.copytree(pretrained / "checkpoints" / "step-00000020", config.parent / "hurt/checkpoints/step-00000020")
    frames = {i["name"]: i["split"]["train"] for i in json.loads((shards / "manifest.json").read_text())["identities"]}
    names = sorted(frames)[:3]
    shard = next((tmp_path / "shards" / assign(names, frames, 2, 2).of_rank(1)[0]).glob("*-000000.tar"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    words = [*torchrun(2), str(config), "--name", "hurt", "--data", str(tmp_path / "shards")]
    with _started(words) as job:
        assert job.stdout is not None
        first = next(line for line in job.stdout if "fiag-dist: " in line)
        said = time.monotonic()
        rest = job.stdout.read()
        assert job.wait(60) == 1
    assert str(shard) in first
    assert "SHA-256" in first
    assert time.monotonic() - said < 30, rest


def test_missing_shards_get_one_line(config: Path):
    done = fiag_dist("pretrain", config, "--name", "wrong", "--data", "/nowhere/at/all", check=False)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("fiag-dist:")]
    assert len(lines) == 1
    assert "/nowhere/at/all" in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--train.frames-per-step", "9"], "frames_per_step 9 for 3 identities"),
        (["--identities", "demoo"], "demoo"),
    ],
)
def test_wrong_settings_get_one_line(config: Path, words: list[str], says: str, capfd: pytest.CaptureFixture[str]):
    """A dry run reads them as ranks do before they start."""
    assert cli.main(["pretrain", str(config), "--name", "wrong", "--dry-run-world", "2", *words]) == 2
    said = capfd.readouterr().err
    (line,) = said.splitlines()
    assert says in line


def test_a_run_takes_in_nobody_new(pretrained: Path, config: Path, shards: Path):
    names = sorted(i["name"] for i in json.loads((shards / "manifest.json").read_text())["identities"])
    done = fiag_dist("pretrain", config, "--name", pretrained.name, "--identities", *names, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fiag-dist:")]
    assert f"was begun without {names[3]}; go on without them (--identities), give another --name" in line


def test_a_run_goes_on_with_what_it_began_with(pretrained: Path, config: Path):
    """Other Gaussians to begin with were taken without a word, did nothing, and stood in config.yaml from then on."""
    words = ("--name", pretrained.name, "--train.model.field.num-mouth", "77", "--train.steps", "41")
    done = fiag_dist("pretrain", config, *words, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fiag-dist:")]
    assert "train.model.field.num_mouth 77, before 100: only a run's first step asks for that; give another" in line
    assert "num_mouth: 77" not in (pretrained / "config.yaml").read_text()


def test_steps_that_are_not_finite_are_refused_until_there_are_too_many(config: Path):
    wild = ("--train.optim.nets", "1e30", "--train.refused-at-most", "3")
    done = fiag_dist("pretrain", config, "--name", "wild", *wild, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fiag-dist:")]
    assert "loss or gradient was not finite 4 times in a row, train.refused_at_most is 3" in line
    assert not list((config.parent / "wild").glob("checkpoints/*"))
