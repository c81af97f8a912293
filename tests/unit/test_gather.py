"""Which clips are meant by a user's paths, and what their identities are called."""

import errno
import os
from pathlib import Path

import pytest

from fiag_dist.acting.actor import INFO
from fiag_dist.acting.backdrop import POSES
from fiag_dist.errors import DataError
from fiag_dist.ingest.gather import find_clips, find_prepared, identity_name
from fiag_dist.pack import main
from fiag_dist.shards.manifest import NAME


def clips(folder: Path, **texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.mp4").write_text(text)
    return folder


def test_names_and_missing_clips(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing: no such file or folder"):
        main([str(tmp_path / "missing"), "--out", str(tmp_path / "out")])
    with pytest.raises(DataError, match=r"no clips in this folder"):
        find_clips([tmp_path])
    folder = clips(tmp_path / "clips", **{"Ann Marie (2)": "", "é": ""})
    (folder / "B.MOV").write_text("")
    assert sorted(find_clips([folder, folder / "B.MOV"])) == ["Ann_Marie_2", "B", "e"]


def test_clips_are_found_however_deep_and_each_once(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", a="ok")
    deep = clips(folder / "one", b="ok") / "two"
    clips(deep, c="ok", a="another")
    clips(folder / ".hidden", d="ok")
    (folder / "movie.mp4").mkdir()
    (deep / "back").symlink_to(folder)  # a circle
    (folder / "itself.mp4").symlink_to(folder / "itself.mp4")
    (folder / "again.mp4").symlink_to(folder / "a.mp4")
    found = find_clips([folder])
    assert sorted(found) == ["a", "again", "b", "c", "itself"]
    assert found["a"] == [folder / "a.mp4", deep / "a.mp4"]


def test_videos_of_identities_are_no_clips(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", a="ok")
    made = clips(folder / "identities", b="ok") / "a"
    clips(made, preview="", backdrop="")
    clips(made / "scratch", preview="")
    (made / INFO).write_text("{}")
    clips(folder / "shards", c="ok")
    (folder / "shards" / "manifest.json").write_text("{}")  # `pack clips --out clips` is allowed
    assert sorted(find_clips([folder])) == ["a", "b", "c"]
    with pytest.raises(DataError, match="no clips in this folder"):
        find_clips([made])
    (made / INFO).unlink()  # an adaptation that is baked anew begins with this
    assert "preview" in find_clips([folder]), "anybody may call a clip so"
    (made / POSES).write_text("")
    assert sorted(find_clips([folder])) == ["a", "b", "c"]


def test_folders_that_can_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for find in (find_clips, find_prepared):
        with pytest.raises(DataError, match=r"xxx: can't be read \(File name too long\); check its rights"):
            find([tmp_path / ("x" * 300)])
    folder, scandir = clips(tmp_path / "clips", a="ok"), os.scandir
    clips(folder / "locked", b="ok")

    def denied(path: str | Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=r"clips/locked: can't be read \(Permission denied\); check its rights"):
        find_clips([folder])


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("Zoë Müller", "Zoe_Muller"),
        ("_-x-_", "x"),
        ("a" * 64, "a" * 64),
        ("a" * 65, "a" * 55 + "-635361c4"),
        ("Anna \u2013 2", "Anna_2"),
        ("Иван 2024", "2024-78e7dc52"),
        ("Пётр 2024", "2024-51a28129"),
        ("Jos\udce9", "Jos-d3a30985"),
        ("講演", "clip-be4c7e7d"),
        ("...", "clip-ab5df625"),
    ],
)
def test_every_file_name_gives_an_identity_name(stem: str, name: str) -> None:
    assert identity_name(stem) == name
    assert NAME.fullmatch(identity_name(stem))
