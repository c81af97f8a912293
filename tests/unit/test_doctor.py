"""The doctor: what it finds, and what makes it fail."""

import socket
from pathlib import Path

import pytest
import torch

from fiag_dist import doctor, weights
from fiag_dist.doctor import Check


@pytest.fixture
def no_s3(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_report_ends_with_0_where_the_tests_run(no_s3: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    for what in (
        "python",
        "torch",
        "deepspeed",
        "tinycudann",
        "CPU cores",
        "memory",
        "g++",
        "GPU",
        "raster on cpu",
        "encoder on cpu",
        "ssim on cpu",
        "weights",
        "S3",
    ):
        assert what in text
    assert "the CPU path works" in text


def test_all_backends_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checks = list(doctor.backends())
    assert [check.what for check in checks] == ["raster on cpu", "encoder on cpu", "ssim on cpu"]
    for check, where in zip(checks, ("tensors", "points", "images"), strict=True):
        assert check.state == "ok"
        assert check.found.startswith(f"cpu ({where} in host memory), tried in ")


def test_a_backend_that_fails_breaks_the_report(
    monkeypatch: pytest.MonkeyPatch, no_s3: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("cannot load\n the kernel")

    monkeypatch.setattr(doctor.raster, "blend", fail)
    assert doctor.main([]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "cpu failed: cannot load the kernel" in text
    assert "broken: raster on cpu" in text


def test_wrong_numbers_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor.ssim.kernel.ssim
    monkeypatch.setattr(doctor.ssim.kernel, "ssim", lambda *images: 1.01 * right(*images))
    check = list(doctor.backends())[2]
    assert (check.what, check.state) == ("ssim on cpu", "broken")
    assert "is off by 1.0e-02" in check.found


def test_a_device_that_nothing_draws_on_is_broken_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.raster, "_gsplat_fault", lambda device: "package not installed; run: pip install X")
    check = doctor._backend("raster on cuda", doctor.raster, torch.device("cuda", 7))
    assert (check.found, check.state) == ("none", "broken")
    assert "package not installed; run: pip install X" in check.fix
    assert "CUDA_VISIBLE_DEVICES=" in check.fix


def test_a_missing_compiler_is_broken_and_says_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    check = doctor.compiler()
    assert check.state == "broken"
    assert "apt-get install g++" in check.fix


def test_missing_headers_are_broken_and_say_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/g++")
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda _: str(tmp_path))
    check = doctor.compiler()
    assert check.state == "broken"
    assert "python3-dev" in check.fix


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name in ("torch", "mediapipe") else "1.0")
    states = {check.what: check.state for check in doctor.versions()}
    assert (states["torch"], states["mediapipe"], states["numba"]) == ("broken", "note", "ok")


def test_absent_weights_are_a_note_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FIAG_WEIGHTS", str(tmp_path))
    check = doctor.pretrained()
    assert check.state == "note"
    assert "fiag-dist weights fetch" in check.fix
    assert all(name in check.found for name in weights.REGISTRY)


def test_s3_is_left_alone_when_nothing_is_configured(no_s3: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    no_s3.setattr(doctor.socket, "create_connection", refuse)
    assert doctor.s3(None) == Check("S3", "not configured (no AWS_ENDPOINT_URL, no credentials); local folders work")


def test_s3_endpoint_that_listens_and_one_that_does_not(no_s3: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        no_s3.setenv("AWS_ENDPOINT_URL", url)
        assert doctor.s3(None) == Check("S3", f"{url} answers")
    check = doctor.s3(None)
    assert check.state == "note"
    assert f"{url} does not answer" in check.found


def test_s3_url_that_cannot_be_read_is_broken(no_s3: pytest.MonkeyPatch) -> None:
    assert doctor.s3("gs://bucket/prefix").state == "broken"
    folder = doctor.s3("bucket/prefix")
    assert (folder.state, folder.fix) == ("broken", "give s3://bucket/prefix"), "it is no folder here"
