"""Packing many clips: what is finished is kept, what is bad is refused with its reason, and neither stops the others."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from test_gather import clips
from test_shards import FRAMES, SIZE, make

from fiag_dist import pack as pack_module
from fiag_dist.cluster import start_ray
from fiag_dist.config import PackConfig
from fiag_dist.errors import ConfigError, DataError, WeightsError
from fiag_dist.pack import pack
from fiag_dist.shards import progress as progress_module
from fiag_dist.shards.collection import Collection
from fiag_dist.shards.manifest import SourceEntry, read_manifest, write_manifest
from fiag_dist.shards.packing import Done, Work, pack_one
from fiag_dist.shards.progress import Far
from fiag_dist.storage import open_storage, retry
from fiag_dist.types import Frame, IdentityMeta

CFG = PackConfig(size=SIZE, extractor="mel", frames_per_shard=10, jobs=2)


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """One Ray for all of these tests, whose workers can import this file."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        start_ray()
    yield
    ray.shutdown()


def told(path: Path, cfg: PackConfig, name: str, progress: Callable) -> tuple[IdentityMeta, Iterator[Frame]]:
    """Stands in for a clip's packing: the clip's text says what happens. Runs in worker processes."""
    what = path.read_text()
    if what == "silent":
        raise DataError(f"{path.name}: no audio track; the mouth is driven by speech")
    if what == "killed":
        os._exit(9)
    if what == "bug":
        raise ZeroDivisionError("of ours")
    if what == "weights":
        raise WeightsError("face-landmarker: missing; run: fiag-dist weights fetch")
    progress("landmarks", 0.5)
    assert os.environ["OMP_NUM_THREADS"] == "1", "one thread a core, unless the user sets another number"
    meta, frames = make(name, len(what))
    still, K = np.diag([1, -1, -1, 1]).astype(np.float32), np.array([[150, 0, 16], [0, 150, 16], [0, 0, 1]], np.float32)
    still[2, 3] = 1.7
    report = {"clip": path.name, "timings": os.getpid(), "sound": {"late_s": -0.092, "fixed": what == "fine"}}
    report["seconds_left_out"] = {"beyond a cut or a gap": 2.4, "without a face": 0.2} if what == "fine" else {}
    heard = np.zeros((FRAMES, 29 if what == "deaf" else 80, 4), np.float16)
    meta = dataclasses.replace(meta, report=report, K=K, rest_landmarks=meta.rest_landmarks * 0.05, speech=heard)

    def stream() -> Iterator[Frame]:
        for frame in frames:
            if what == "halfway" and frame.index == 15:
                raise DataError(f"{path.name}: unreadable after 0.6 s")
            yield dataclasses.replace(frame, viewmat=still, K=K, landmarks=frame.landmarks * np.float16(0.05))

    return meta, stream()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, pack_module.PackResult, list[str]]:
    home = tmp_path_factory.mktemp("pack")
    folder = clips(home / "clips", anna="ok", bert="fine", carl="silent", dora="halfway", emil="bug")
    (folder / "notes.txt").write_text("not a clip")
    (folder / "._anna.mp4").write_text("what some systems leave beside files")
    lines: list[str] = []
    result = pack([folder], str(home / "out"), CFG, lines.append, told)
    return folder, str(home / "out"), result, lines


def test_good_clips_are_packed_and_bad_ones_say_why(packed) -> None:
    _, out, result, lines = packed
    manifest = read_manifest(out)
    assert manifest == result.manifest
    assert manifest.names == ["anna", "bert"]
    assert (manifest.size, manifest.audio.extractor, manifest.audio.dim) == (SIZE, "mel", 80)
    assert result.refused == {
        "carl": "carl.mp4: no audio track; the mouth is driven by speech",
        "dora": "dora.mp4: unreadable after 0.6 s",
        "emil": "unexpected ZeroDivisionError: of ours",
    }
    assert len([line for line in lines if "clips done" not in line]) == 6, "a line a clip and the table"
    assert sum("packed 23 frames" in line for line in lines) == 2
    (moved,) = [line for line in lines[:-1] if "sound put right, it was 92 ms early" in line]
    assert " bert: " in moved
    assert moved.endswith("; left out: 2.4 s beyond a cut or a gap")
    assert "unreadable after" in lines[-1]
    store = open_storage(out)
    assert json.loads(store.read("anna/report.json"))["clip"] == "anna.mp4"
    assert store.read("anna/contact_sheet.png").startswith(b"\x89PNG")
    assert manifest.entry("anna").num_frames == FRAMES


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"size": 255}, "size 255: the rule is an even number of pixels, 48 to 2048; for example --size 256"),
        ({"size": 0}, "size 0: the rule is an even number"),
        ({"fps": 0}, "fps 0: the rule is 1 frame a second or more"),
        ({"max_seconds": -1.0}, "max_seconds -1.0: the rule is 0"),
        ({"min_seconds": -1.0}, "min_seconds -1.0: the rule is 0"),
        ({"focal_ratio": 0.0}, "focal_ratio 0.0: the rule is more than 0"),
        ({"test_share": 0.0}, "test_share 0.0: the rule is more than 0 and less than 1"),
        ({"test_share": 1.0}, "for example --test-share 0.09091"),
        ({"frames_per_shard": 0}, "frames_per_shard 0: the rule is 1 or more; for example --frames-per-shard 1000"),
        ({"jobs": -1}, "jobs -1: the rule is 0"),
        ({"fps": 241}, "fps 241: the rule is 240 frames a second or less; for example --fps 25"),
        ({"frames_per_shard": 10_001}, "frames_per_shard 10001: the rule is 10000 or less"),
        ({"max_seconds": 1.5}, "max_seconds 1.5: the rule is 0 (all of a clip), or min_seconds (2) or more"),
        ({"max_seconds": math.inf}, "max_seconds inf: the rule is a finite number"),
        ({"min_seconds": math.nan}, "min_seconds nan: the rule is a finite number"),
        ({"focal_ratio": math.inf}, "focal_ratio inf: the rule is a finite number"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_starts(tmp_path: Path, setting: dict, line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        pack([clips(tmp_path / "clips", anna="ok")], str(tmp_path / "out"), dataclasses.replace(CFG, **setting))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_place_that_takes_no_files_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lines = clips(tmp_path / "clips", anna="ok"), []
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(pack_module, "fingerprint", lambda path: pytest.fail("clips were read"))
    with pytest.raises(DataError, match=r"/file/out: takes no files \(.*\); nothing was packed, give another --out$"):
        pack([folder], str(tmp_path / "file" / "out"), CFG, lines.append, told)
    with pytest.raises(DataError, match=r"/file: is a file; --out is a folder for the shards$"):
        pack([folder], str(tmp_path / "file"), CFG, lines.append, told)
    assert not lines


def test_again_nothing_is_done_for_what_is_unchanged(packed, tmp_path: Path) -> None:
    _, out, result, _ = packed
    lines: list[str] = []
    kept = clips(tmp_path / "kept", anna="ok", bert="fine")
    # no packer could be sent to a worker: none may be needed
    again = pack([kept], out, dataclasses.replace(CFG, jobs=7), lines.append, lambda *_: pytest.fail("packed again"))
    assert again.manifest == result.manifest
    assert [line for line in lines if "unchanged, skipped" in line] == lines[:2]


def test_changed_and_unfinished_ones_are_packed_again_and_a_dead_worker_takes_none_along(
    packed, tmp_path: Path
) -> None:
    _, out, result, _ = packed
    folder = clips(tmp_path / "next", anna="ok", bert="finer", fritz="killed", gerd="ok")
    (tmp_path / "next" / "gerd.mov").write_text("another gerd")
    open_storage(out).delete("anna/entry.json")
    done = pack([folder], out, CFG, lambda _: None, told)
    again, refused = done.manifest, done.refused
    assert again.names == ["anna", "bert"]
    assert again.entry("anna") == result.manifest.entry("anna"), "the same frames give the same bytes"
    assert again.entry("bert").shards != result.manifest.entry("bert").shards
    assert "died twice" in refused["fritz"]
    assert "2 clips have this name" in refused["gerd"]


def test_what_somebody_agreed_to_stays_with_the_footage(tmp_path: Path) -> None:
    folder, out = clips(tmp_path / "clips", anna="ok", bert="fine"), str(tmp_path / "out")

    def notes(consent: str = "", **settings: object) -> list[str]:
        done = pack([folder], out, dataclasses.replace(CFG, **settings), lambda _: None, told, consent=consent)
        return [entry.consent for entry in done.manifest.identities]

    assert notes("by letter") == ["by letter"] * 2
    assert notes(frames_per_shard=9) == ["by letter"] * 2, "packed anew, the same people in the same clips"
    assert notes("by phone", frames_per_shard=9) == ["by phone"] * 2, "nothing is packed, the note is new"
    storage = open_storage(out)
    manifest = read_manifest(storage)
    write_manifest(
        storage, dataclasses.replace(manifest, identities=[])
    )  # as where somebody stops while all are packed
    clips(folder, bert="another clip")
    assert notes(frames_per_shard=8) == ["by phone", ""], "nobody agreed to a clip that was put in place of the old one"


def test_features_that_another_program_made_anew_are_packed_again(tmp_path: Path) -> None:
    folder, out = clips(tmp_path / "clips", anna="ok"), str(tmp_path / "out")
    settings = dataclasses.replace(CFG, extractor="file:{folder}/{stem}.npy")

    def packed_again(value: float) -> bool:
        np.save(folder / "anna.npy", np.full((FRAMES, 4, 80), value, np.float32))
        lines: list[str] = []
        pack([folder], out, settings, lines.append, told)
        return not any("unchanged, skipped" in line for line in lines)

    assert [packed_again(value) for value in (1.0, 1.0, 2.0)] == [True, False, True]


def test_what_is_there_stays_and_must_have_the_same_format(packed, tmp_path: Path) -> None:
    _, out, _, _ = packed
    only = clips(tmp_path / "only", anna="ok")
    assert pack([only], out, CFG, lambda _: None, told).manifest.names == ["anna", "bert"]
    with pytest.raises(DataError, match=r"holds 1 identity of 48x48 at 25 fps with mel speech .* another --out"):
        pack([only], out, dataclasses.replace(CFG, size=64), lambda _: None, told)


def test_what_is_packed_meanwhile_stays(tmp_path: Path) -> None:
    early, late, out = clips(tmp_path / "a", anna="ok"), clips(tmp_path / "b", bert="ok"), str(tmp_path / "out")

    def meanwhile(line: str) -> None:
        if line.startswith("[1/1] anna"):
            pack([late], out, CFG, lambda _: None, told)

    assert pack([early], out, CFG, meanwhile, told).manifest.names == ["anna", "bert"]
    assert read_manifest(out).names == ["anna", "bert"]


def test_what_concerns_all_clips_stops_everything(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="weights fetch"):
        pack([clips(tmp_path / "clips", a="weights")], str(tmp_path / "out"), CFG, lambda _: None, told)


def test_no_usable_clip(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", a="ok")
    (folder / "a.mov").write_text("ok")
    lines: list[str] = []
    with pytest.raises(DataError, match=r"none of 1 clips can be used; a: 2 clips have this name"):
        pack([folder], str(tmp_path / "out"), CFG, lines.append, told)
    assert "refused" in lines[-1]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_cannot_be_read_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", a="ok")
    (folder / "circle.mp4").symlink_to("circle.mp4")
    (folder / "unreadable.mp4").symlink_to("/proc/self/mem")  # reads fail for root, too
    result = pack([folder], str(tmp_path / "out"), CFG, lambda _: None, told)
    assert result.manifest.names == ["a"]
    assert "circle.mp4: can't be read (Too many levels of symbolic links)" in result.refused["circle"]
    assert "unreadable.mp4: can't be read (Input/output error)" in result.refused["unreadable"]


def test_a_file_name_that_is_no_text_can_be_printed(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", a="ok")
    (folder / os.fsdecode(b"Jos\xe9.mp4")).write_text("silent")
    (folder / os.fsdecode(b"Ren\xe9.mp4")).symlink_to("/proc/self/mem")
    with (tmp_path / "lines").open("w", encoding="utf-8", errors="strict") as lines:
        result = pack([folder], str(tmp_path / "out"), CFG, lambda line: print(line, file=lines), told)
    assert read_manifest(str(tmp_path / "out")).names == ["a"]
    assert len(result.refused) == 2
    said = (tmp_path / "lines").read_text()
    assert all(name in said for name in (r"Jos\udce9.mp4: no audio track", r"Ren\udce9.mp4: can't be read"))


def test_features_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", a="ok", b="deaf")
    result = pack([folder], str(tmp_path / "out"), CFG, lambda _: None, told)
    assert result.refused == {
        "b": "b.mp4: speech features [29, 4], the other clips have [80, 4]; make them by the same program"
    }


def test_a_refused_clip_leaves_nothing_behind(packed) -> None:
    _, out, _, _ = packed
    assert open_storage(out).children() == ["anna/", "bert/", "manifest.json"]


def test_nothing_but_what_packing_writes_is_deleted(tmp_path: Path) -> None:
    """`pack clips --out clips`: anna's clip lies in a folder of her name, in carl's lies what somebody needs, in dora's what a system leaves."""
    folder = clips(tmp_path / "clips", bert="ok", carl="ok", dora="halfway")
    mine = [clips(folder / "anna", anna="ok") / "anna.mp4", folder / "carl" / "z" / "bert-000000.tar"]
    mine.append(folder / "dora" / ".DS_Store")
    for file in mine[1:]:
        file.parent.mkdir(parents=True)
        file.write_text("ok")
    unfinished = folder / "dora" / ".part-0123"
    unfinished.write_text("half")
    result = pack([folder], str(folder), CFG, lambda _: None, told)
    assert result.manifest.names == ["bert"]
    assert [file.read_text() for file in mine] == ["ok"] * 3
    assert not unfinished.exists()
    rule = "lies where its shards would go, and is none of them; give another --out"
    assert result.refused == {
        "anna": f"{folder}/anna/anna.mp4 {rule}",
        "carl": f"{folder}/carl/z/bert-000000.tar {rule}",
        "dora": "dora.mp4: unreadable after 0.6 s",
    }
    assert [file.name for file in (folder / "dora").iterdir()] == [".DS_Store"], (
        "what was written before it failed goes"
    )


@pytest.mark.parametrize("why", ["another name", "silent"])
def test_shards_of_before_stay_when_their_clip_is_refused(tmp_path: Path, why: str) -> None:
    folder, out = clips(tmp_path / "clips", anna="ok", bert="ok"), str(tmp_path / "out")
    before = pack([folder / "anna.mp4"], out, CFG, lambda _: None, told).manifest
    if why == "another name":
        (folder / "anna.mov").write_text("ok")
    else:
        clips(folder, anna=why)
    lines: list[str] = []
    result = pack([folder], out, CFG, lines.append, told)
    assert result.manifest.names == ["anna", "bert"]
    assert read_manifest(out).entry("anna") == before.entry("anna")
    assert result.refused["anna"].endswith("; the shards of before stay")
    assert "refused" in next(line for line in lines[-1].splitlines() if " anna " in line)
    paths = [path for path in folder.iterdir() if path.stem == "anna"]
    with pytest.raises(DataError, match="none of 1 clips can be used"):
        pack(paths, out, CFG, lambda _: None, told)
    assert read_manifest(out).names == ["anna", "bert"], "nor is it lost when no other clip was given"


def test_shards_that_were_begun_anew_are_gone_when_their_clip_is_refused(tmp_path: Path) -> None:
    folder, out = clips(tmp_path / "clips", anna="ok", bert="ok"), str(tmp_path / "out")
    pack([folder], out, CFG, lambda _: None, told)
    clips(folder, anna="halfway")
    assert pack([folder], out, CFG, lambda _: None, told).manifest.names == ["bert"]
    assert open_storage(out).children() == ["bert/", "manifest.json"]


def test_two_packs_of_one_person_do_not_touch_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = clips(tmp_path / "clips", anna="silent"), str(tmp_path / "out")
    storage = open_storage(out)
    source = SourceEntry(file="anna.mp4", bytes=2, sha256="", settings="")
    work = Work(folder / "anna.mp4", "anna", out, CFG, source, (80, 4))
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    with storage.claim("anna"):
        storage.write("anna/anna-000000.tar", b"another's")
        late = pack_one(work, told, lambda stage, share: None)
        assert storage.list() == ["anna/anna-000000.tar"]
    assert late.entry is None
    assert "another process is writing there; wait until it has ended" in late.reason
    assert "no audio track" in pack_one(work, told, lambda stage, share: None).reason, "the claim has ended"
    assert storage.list() == ["anna/anna-000000.tar"], "nothing was written, so nothing is taken away"


def test_a_pack_that_was_refused_names_what_another_finished_meanwhile(tmp_path: Path) -> None:
    folder, out = clips(tmp_path / "clips", anna="silent", bert="ok"), str(tmp_path / "out")
    other = clips(tmp_path / "other", anna="ok")

    def meanwhile(line: str) -> None:
        if " anna: refused" in line:
            pack([other], out, CFG, lambda _: None, told)

    assert pack([folder], out, CFG, meanwhile, told).manifest.names == ["anna", "bert"]


def test_what_nodes_of_a_cluster_do_not_share_is_said(packed, tmp_path: Path) -> None:
    _, out, result, _ = packed
    here, entry = open_storage(out), result.manifest.entry("anna")
    assert entry.source
    formats = dataclasses.replace(result.manifest, identities=[])
    assert Collection(here, formats, frozenset()).arrived(Done(entry)).entry == entry
    elsewhere = Collection(open_storage(tmp_path / "other"), formats, frozenset()).arrived(Done(entry))
    assert elsewhere.entry is None
    assert "give an --out that all nodes share" in elsewhere.reason
    work = Work(tmp_path / "anna.mp4", "anna", str(tmp_path / "out"), CFG, entry.source, (80, 4))
    assert f"{work.path}: no such file on " in pack_one(work, told, lambda stage, share: None).reason


def test_stopped_what_is_finished_stays(tmp_path: Path) -> None:
    folder, out = clips(tmp_path / "clips", a="ok", b="ok"), str(tmp_path / "out")
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if line.startswith("[1/2]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack([folder], out, dataclasses.replace(CFG, jobs=1), stop, told)
    assert lines[-1].startswith("stopped: 1 of 2 clips are finished and stay")
    again: list[str] = []
    assert pack([folder], out, CFG, again.append, told).manifest.names == ["a", "b"]
    assert "a: unchanged, skipped" in again


def test_a_clip_of_another_name_is_named(packed) -> None:
    entry = packed[2].manifest.entry("anna")
    cyrillic = dataclasses.replace(entry, source=dataclasses.replace(entry.source, file="Иван.MOV"))
    assert "of Иван.MOV" in pack_module._table({"clip-cc078195": Done(cyrillic)}, set())
    assert ".mp4" not in pack_module._table({"anna": Done(entry)}, set())


def test_a_reason_is_shown_as_it_is() -> None:
    reason = "[name] in /b[/b]"
    assert reason in pack_module._table({"a": Done(None, reason)}, set())


def test_a_line_says_how_far_the_clips_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    source = SourceEntry(file="x.mp4", bytes=1000, sha256="", settings="")
    big = dataclasses.replace(source, bytes=2000)
    todo = [Work(Path(f"{n}.mp4"), n, "", CFG, s, (80, 4)) for n, s in (("a", source), ("b", big), ("c", source))]
    far = Far(todo)
    assert far.line({}) == "0 of 3 clips done"
    now[0] += 300
    far.finished.add(0)
    assert far.line({0: 0.2, 1: 0.5}) == "1 of 3 clips done; b 50%; about 5 min left"
    alone = Far(todo[:1])
    now[0] += 90
    assert alone.line({0: 0.9}) == "a 90%; about 10 s left"
