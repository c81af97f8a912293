"""What `fiag-dist bench` says: help with examples, and one line for each mistake."""

from importlib import import_module
from pathlib import Path

import pytest
import tiny_identity
import torch
from bench_calls import refused

from fiag_dist import cli
from fiag_dist.bench.benchmark import Benchmark
from fiag_dist.bench.main import BENCHMARKS


def test_dist_refuses_what_its_ranks_would_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ranks share the cores among themselves" in refused(capsys, "dist", "--threads", "1")
    assert "the choices are 0, 1 and 2" in refused(capsys, "dist", "--stages", "3")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_help_with_an_example(capsys: pytest.CaptureFixture[str], name: str) -> None:
    bench = import_module(f"fiag_dist.bench.{name}").Bench
    assert issubclass(bench, Benchmark)
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"Example: fiag-dist bench {name}" in " ".join(text.split())
    assert "--out" in text


def test_help_lists_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["bench"], ["bench", "--help"]):
        assert cli.main(argv) == 0
        text = capsys.readouterr().out
        assert all(f"  {name}" in text and summary in text for name, summary in BENCHMARKS.items())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("rastr",), "unknown benchmark 'rastr'; did you mean 'raster'?"),
        (("xyz",), f"unknown benchmark 'xyz'; known: {', '.join(BENCHMARKS)}"),
        (("raster", "--backend", "gspalt"), "--backend 'gspalt': no such backend; did you mean 'gsplat'?"),
        (("encoder", "--backend", "cuda"), "no such backend; known: auto, cpu, torch, tcnn"),
        (("step", "--encoder", "tccn"), "--encoder 'tccn': no such encoder; did you mean 'tcnn'?"),
        (("raster", "--num-gaussians", "0"), "--num-gaussians 0: the rule is at least 1"),
        (("raster", "--repeat", "0"), "--repeat 0: the rule is at least 1"),
        (("ssim", "--threads", "4000"), "set NUMBA_NUM_THREADS"),
        (("ssim", "--out", "result.txt"), "give a name that ends in .json"),
        (("network", "--widths", "9"), "the rule is two or more"),
        (("encoder", "--finest", "1"), "2 <= base <= finest"),
        (("adapt", "--from", "runs/x", "--data", "y", "--cores", "9999"), "--cores 9999: this process may use 1 to"),
        (("render", "--size", "65"), "--size 65: H.264 needs an even side"),
        (("step", "--data", "/nowhere/at/all"), "/nowhere/at/all"),
        (("pack", "--clip", "/nowhere.mp4"), "--clip /nowhere.mp4: no such file"),
        (("pack", "--clip", "a.mp4", "--workers", "0"), "--workers 0: the rule is at least 1"),
        (("pack", "--clip", "a.mp4", "--workers", "4000"), "--workers 4000: each needs a core"),
        (("pack", "--clip", "a.mp4", "--threads", "1"), "a worker has one thread"),
    ],
)
def test_mistakes_end_in_one_line(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str) -> None:
    assert says in refused(capsys, *words)


def test_a_step_needs_two_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = tiny_identity.pack(tmp_path / "shards")
    assert "holds 1 identity, the rule is at least 2" in refused(capsys, "step", "--data", data)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_backend_that_is_not_there_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "gsplat: torch sees no CUDA device" in refused(capsys, "raster", "--size", "16", "--backend", "gsplat")
