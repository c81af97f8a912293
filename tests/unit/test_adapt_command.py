"""What the command of an adaptation looks at before anything is trained: names, settings, clips, and who else is at work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_identity as tiny
from test_variants import training

from fiag_dist import adapt
from fiag_dist.adapt import AdaptCommand, _adapted, _asked, _jobs, _packed
from fiag_dist.adaptation.alone import alone_in
from fiag_dist.adaptation.job import Search, write_done
from fiag_dist.dist import checkpoint, saving
from fiag_dist.dist.process import Process
from fiag_dist.errors import ConfigError, DataError
from fiag_dist.pack import EMBEDDING, PackResult
from fiag_dist.pretrain import identity_tensors
from fiag_dist.shards.manifest import read_manifest
from fiag_dist.storage import open_storage


def test_a_name_given_twice_is_one_job(tmp_path: Path) -> None:
    data = tiny.pack(tmp_path / "data", "anna", "ben")
    command = AdaptCommand(clips=data, checkpoint="run", out=str(tmp_path / "out"), names=("ben", "anna", "ben"))
    assert [job.name for job in _jobs(command, Search(), data, read_manifest(data), "start", "5e")] == ["ben", "anna"]


def test_of_shards_all_are_asked_for(tmp_path: Path) -> None:
    data = tiny.pack(tmp_path / "data", "anna", "ben")
    command = AdaptCommand(clips=data, checkpoint="run", out=str(tmp_path / "out"))
    assert _packed(command, {}) == (data, {})
    assert _asked(command, data, read_manifest(data)) == ["anna", "ben"]


def test_new_clips_ask_for_nobody_who_was_packed_before(tmp_path: Path) -> None:
    """Whoever was adapted from other clips stays as they are, and whoever was deleted stays away."""
    shards = tiny.pack(tmp_path / "out" / "shards", "anna", "ben")
    (tmp_path / "clips").mkdir()
    for name in ("ben", "torn"):
        (tmp_path / "clips" / f"{name}.mp4").write_bytes(b"")
    command = AdaptCommand(clips=str(tmp_path / "clips"), checkpoint="run", out=str(tmp_path / "out"))
    assert _asked(command, shards, read_manifest(shards)) == ["ben"]  # torn was refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--search", "lr,bath"], "--search bath"),
        (["--search", "lr", "--samples", "1"], "--samples 1"),
        (["--search", "lr", "--plateau.frames", "0"], "--search with --plateau.frames 0"),
        (["--room", "0.5"], "--room 0.5: a field can't be smaller"),
        (
            ["--train.model.field.num-face", "9"],
            "--train.model.field.num-face: an adaptation has its checkpoint's model",
        ),
        (["--train.keep=3"], "--train.keep=3: an adaptation has its checkpoint's model and keeps no checkpoints"),
    ],
)
def test_settings_are_refused_before_anything_is_read(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        adapt.main(["clips", "--from", "/no/run", "--out", "/no/where", *words])


def test_of_clips_those_asked_for_are_packed_and_names_are_checked_before(tmp_path: Path, monkeypatch) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("anna", "ben", "cleo"):
        (clips / f"{name}.mp4").write_bytes(b"")
    packed: list[Path] = []
    monkeypatch.setattr(adapt, "pack", lambda found, *_, **__: packed.extend(found) or PackResult(nobody, {}))
    formats = {"size": 64, "fps": 25, "extractor": "mel", "id_model": EMBEDDING.model}
    nobody = read_manifest(tiny.pack(tmp_path / "any"))

    def asked(*names: str) -> AdaptCommand:
        return AdaptCommand(clips=str(clips), checkpoint="run", out=str(tmp_path / "out"), names=names)

    _packed(asked("cleo", "anna", "cleo"), formats)
    assert packed == [clips / "cleo.mp4", clips / "anna.mp4"]
    with pytest.raises(DataError, match=r"^--names bne: no clip in \S+ becomes this identity; did you mean 'ben'\?$"):
        _packed(asked("anna", "bne"), formats)
    assert len(packed) == 2


def test_a_field_of_demo_heads_is_refused_before_clips_are_packed(tmp_path: Path) -> None:
    (tmp_path / "anna.mp4").write_bytes(b"")
    command = AdaptCommand(clips=str(tmp_path), checkpoint="runs/demo", out=str(tmp_path / "out"))
    formats = {"size": 64, "fps": 25, "extractor": "mel", "id_model": "demo"}
    with pytest.raises(ConfigError, match=r"^--from runs/demo: .* told apart by demo, .*; pretrain on clips"):
        _packed(command, formats)
    assert not (tmp_path / "out").exists()


def test_a_clip_that_packing_refuses_is_told_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tiny.pack(tmp_path / "data", "anna"), tmp_path / "out"
    command = AdaptCommand(clips=data, checkpoint="run", out=str(out))
    (job,) = jobs = _jobs(command, Search(), data, read_manifest(data), "start", "5e")
    write_done(job)
    assert _adapted(command, jobs, {}) == 0
    assert _adapted(command, jobs, {"torn": "torn.mp4: can't be read"}) == 1
    said = capsys.readouterr().out
    assert "1 clips were refused in packing; why is above, and in results.csv" in said
    assert [line.split()[:2] for line in said.splitlines() if "torn" in line] == [["torn", "refused"]]
    assert "torn.mp4: can't be read" in (out / "results.csv").read_text()


def test_one_command_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    program = f"from fiag_dist.adaptation.alone import alone_in\nwith alone_in({str(tmp_path)!r}): input(print('in'))"
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "in\n"
        with pytest.raises(ConfigError, match="another fiag-dist adapt is at work here"), alone_in(str(tmp_path)):
            pass
        other.kill()
        other.wait()
    for _ in range(2):  # what died holds nothing, and neither does what ended
        with alone_in(str(tmp_path)):
            pass


def test_clips_for_a_checkpoint_that_hears_what_others_made_are_to_be_packed_first(tmp_path: Path) -> None:
    command = AdaptCommand(clips=str(tmp_path / "clips"), checkpoint="run", out=str(tmp_path / "out"))
    with pytest.raises(
        ConfigError, match=r"speech features that another program made \(file:aud_ds.npy\).*fiag-dist pack CLIPS"
    ):
        _packed(command, {"size": 256, "fps": 25, "extractor": "file:aud_ds.npy"})


def test_people_of_a_run_have_their_folder_for_themselves(tmp_path: Path) -> None:
    """The next evaluation of the run would take whoever else is there away."""
    run = tmp_path / "run"
    with training(tiny.pack(tmp_path / "data", "ball", "twin"), {}) as made:
        kept = {name: identity_tensors(made, name) for name in made.feed.names}
        saving.save(open_storage(run), checkpoint.FOLDER, 0, *made.shared(), kept, {"formats": {}}, Process())
    with pytest.raises(ConfigError, match=rf"^--out {run}/identities/: is where the people of a run are baked"):
        adapt.main([str(tmp_path / "data"), "--from", str(run), "--out", f"{run}/identities/"])
    assert not (run / "identities").exists()
