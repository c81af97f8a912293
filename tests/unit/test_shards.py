"""Shards: what is written is read back, by our readers and by plain webdataset; damage is named before it is trained on."""

import dataclasses
import io
import json
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from made_shards import FRAMES, PER_SHARD, SIZE, make, write_two

from fiag_dist.errors import DataError
from fiag_dist.shards import inspect
from fiag_dist.shards.folder import marked
from fiag_dist.shards.manifest import NAME, SourceEntry, read_manifest, write_manifest
from fiag_dist.shards.reader import FrameReader, iter_frames, read_meta
from fiag_dist.shards.writer import write_identity
from fiag_dist.storage import Storage, open_storage
from fiag_dist.types import Frame, IdentityMeta

SCHEMA = Path(__file__).parents[2] / "shards" / "manifest.schema.json"


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    """Two identities, `anna` and `bert`, of three shards each."""
    store = open_storage(tmp_path / "data")
    write_two(store)
    return store


def same(a: Frame, b: Frame) -> None:
    for item in dataclasses.fields(Frame):
        left, right = getattr(a, item.name), getattr(b, item.name)
        if item.name == "image":
            assert np.abs(left.astype(int) - right).max() <= 12
        elif isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, item.name
            np.testing.assert_array_equal(left, right, err_msg=item.name)
        else:
            assert left == right, item.name


def test_stream_and_random_access_give_the_frames_back(store: Storage) -> None:
    _, frames = make("bert", 1)
    entry = read_manifest(store).entry("bert")
    assert [s.num_frames for s in entry.shards] == [10, 10, 3]
    assert (entry.split.train, entry.split.test) == (20, 3)
    streamed = list(iter_frames(store, entry))
    reader = FrameReader(store, entry)
    assert len(streamed) == len(reader) == FRAMES
    for position in np.random.default_rng(0).permutation(FRAMES):
        same(streamed[position], frames[position])
        same(reader.frame(position), frames[position])
    assert [f.index for f in iter_frames(store, entry, "test")] == [21, 22, 23]
    assert reader.train.tolist() == list(range(20))
    assert reader.test.tolist() == [20, 21, 22]
    assert reader.index.tolist() == [f.index for f in frames]
    np.testing.assert_array_equal(reader.blink, np.array([f.blink for f in frames], np.float32))
    np.testing.assert_array_equal(reader.mouth_open, np.array([f.mouth_open for f in frames], np.float32))
    with pytest.raises(IndexError):
        reader.frame(FRAMES)


def test_meta_round_trip(store: Storage) -> None:
    meta, _ = make("anna")
    read = read_meta(store, read_manifest(store).entry("anna"))
    for item in dataclasses.fields(IdentityMeta):
        left, right = getattr(meta, item.name), getattr(read, item.name)
        if item.name == "wav":
            np.testing.assert_allclose(left, right, atol=1 / 32767)
        elif item.name == "thumbnail":
            assert np.abs(left.astype(int) - right).max() <= 12
        elif isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, item.name
            np.testing.assert_array_equal(left, right, err_msg=item.name)
        else:
            assert left == right, item.name


def test_plain_webdataset_reads_the_shards(store: Storage, tmp_path: Path) -> None:
    from webdataset.compat import WebDataset  # and nothing of fiag_dist below

    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    urls = [str(tmp_path / "data" / s["file"]) for i in manifest["identities"] for s in i["shards"]]
    samples = [*WebDataset(urls, shardshuffle=False).decode("rgb8")]  # type: ignore
    assert len(samples) == 2 * FRAMES
    sample = samples[6]
    assert sample["__key__"] == "anna/000007"
    assert sample["jpg"].shape == (SIZE, SIZE, 3)
    assert sample["audio.npy"].shape == (8, 4, 2)
    assert sample["landmarks.npy"].shape == (478, 3)
    assert sample["id.npy"].shape == (16,)
    assert sample["json"]["frame"] == 7
    assert sample["json"]["split"] == "train"
    assert np.shape(sample["json"]["camera"]) == (4, 4)
    assert sample["mask.png"].max() <= 5
    meta = next(iter(WebDataset(str(tmp_path / "data/anna/meta.tar"), shardshuffle=False)))
    assert {"wav", "plate.png", "thumbnail.jpg", "arrays.npz", "tracks.npz", "report.json"} <= set(meta)
    assert np.load(io.BytesIO(meta["arrays.npz"]), allow_pickle=False)["viewmats"].shape == (FRAMES, 4, 4)


def test_the_same_frames_give_the_same_bytes(store: Storage, tmp_path: Path) -> None:
    again = write_identity(open_storage(tmp_path / "again"), *make("anna"), PER_SHARD)
    assert again == read_manifest(store).entry("anna")


def test_manifest_fits_its_schema(store: Storage) -> None:
    manifest = read_manifest(store)
    source = SourceEntry(file="a.mp4", bytes=3, sha256="0" * 64, settings="abc")
    entry = dataclasses.replace(manifest.entry("anna"), source=source)
    write_manifest(store, dataclasses.replace(manifest, identities=[entry, manifest.entry("bert")]))
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(json.loads(store.read("manifest.json")), schema)
    assert read_manifest(store).entry("anna").source == source
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"version": 1}, schema)


def on_disk(store: Storage, file: str) -> Path:
    return Path(store.url, file)


def truncate(store: Storage, file: str, to: int) -> None:
    path = on_disk(store, file)
    path.write_bytes(path.read_bytes()[:to])


def test_truncated_shard_is_named_with_its_sizes(store: Storage) -> None:
    manifest = read_manifest(store)
    entry = manifest.entry("bert")
    shard = entry.shards[1]
    truncate(store, shard.file, 5120)
    message = rf"bert/bert-000001.tar: 5120 bytes found, {shard.bytes} .*manifest.*; run: fiag-dist shards verify"
    with pytest.raises(DataError, match=message):
        read_manifest(store)
    reader = FrameReader(store, entry)
    reader.frame(0)
    with pytest.raises(DataError, match=message):
        reader.frame(10)
    with pytest.raises(DataError, match=message):
        list(iter_frames(store, entry))


def test_shard_that_shrinks_under_an_open_reader(store: Storage) -> None:
    entry = read_manifest(store).entry("anna")
    reader = FrameReader(store, entry)
    reader.frame(0)
    truncate(store, entry.shards[0].file, 512 * 20)
    with pytest.raises(DataError, match=rf"10240 bytes found, {entry.shards[0].bytes} expected"):
        reader.frame(9)


@pytest.mark.parametrize("file", ["anna/anna-000000.tar", "anna/meta.tar"])
def test_changed_bytes_are_never_trained_on(store: Storage, file: str) -> None:
    entry = read_manifest(store).entry("anna")
    path = on_disk(store, file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    read_manifest(store)  # sizes are right
    message = rf"shard {store.url}/{file}: SHA-256 .*it is not what the manifest names; run: fiag-dist shards verify"
    with pytest.raises(DataError, match=message):
        read_meta(store, entry) if file.endswith("meta.tar") else list(iter_frames(store, entry))
    with pytest.raises(DataError, match=message):
        FrameReader(store, entry).frame(0)


def test_vanished_shard_is_named(store: Storage) -> None:
    entry = read_manifest(store).entry("anna")
    reader = FrameReader(store, entry)
    reader.frame(0)
    on_disk(store, entry.shards[0].file).unlink()
    with pytest.raises(
        DataError, match=r"anna-000000.tar: no such file, but the manifest names it; run: fiag-dist sha"
    ):
        reader.frame(1)


def test_missing_things_say_what_is_there_and_what_to_do(store: Storage, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/manifest.json: no such file .*is missing or empty.*fiag-dist pack"):
        read_manifest(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"holds data/"):
        read_manifest(str(tmp_path))
    with pytest.raises(DataError, match=r"'ana' is not in the manifest; did you mean 'anna'"):
        read_manifest(store).entry("ana")
    tree = json.loads(store.read("manifest.json"))
    store.write("manifest.json", json.dumps(tree | {"version": 9}).encode())
    with pytest.raises(DataError, match=r"version 9, this program reads version 2"):
        read_manifest(store)
    tree["identities"][1]["shards"][0]["bytes"] = "many"
    store.write("manifest.json", json.dumps(tree).encode())
    with pytest.raises(DataError, match=r"identities\[1\]: shards\[0\]: bytes: 'many' has the wrong type"):
        read_manifest(store)
    store.write("manifest.json", b"{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_manifest(store)


def test_threads_share_a_reader(store: Storage) -> None:
    entry = read_manifest(store).entry("anna")
    _, frames = make("anna")
    reader = FrameReader(store, entry)
    positions = np.random.default_rng(0).integers(0, FRAMES, 200).tolist()
    with ThreadPoolExecutor(4) as pool:
        for position, frame in zip(positions, pool.map(reader.frame, positions), strict=True):
            same(frame, frames[position])
    same(pickle.loads(pickle.dumps(reader)).frame(3), frames[3])


def test_a_reader_keeps_no_frame(store: Storage) -> None:
    def held() -> int:
        """Bytes that calls from here took and hold; other threads of this process take some too."""
        mine = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, __file__, all_frames=True)])
        return sum(trace.size for trace in mine.traces)

    reader = FrameReader(store, read_manifest(store).entry("anna"))
    one = sum(len(value) for value in reader.sample(0).values())
    tracemalloc.start(25)
    reader.frame(0)
    before = held()
    for position in range(FRAMES):  # of all three files, the first of which is open already
        reader.sample(position)
    after = held()
    kept = [reader.sample(position) for position in range(FRAMES)]
    assert held() - after > FRAMES / 2 * one, "what is kept is seen"
    tracemalloc.stop()
    assert after - before < FRAMES / 2 * one
    del kept


def test_show_lays_out_the_stored_bytes(store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert inspect.main(["ls", store.url]) == 0
    assert "bert" in capsys.readouterr().out
    out = tmp_path / "sample"
    assert inspect.main(["show", store.url, "--identity", "bert", "--frame", "2", "--out", str(out)]) == 0
    assert (out / "bert-000002.jpg").read_bytes() in store.read("bert/bert-000000.tar")
    assert len(list(out.iterdir())) == 7
    with pytest.raises(DataError, match=r"it has frames 0\.\.22"):
        inspect.main(["show", store.url, "--frame", "99"])
    with pytest.raises(DataError, match=r"writing failed: .*; check the disk and the path$"):
        inspect.main(["show", store.url, "--out", str(out / "bert-000002.jpg" / "below")])


def test_who_is_taken_out_is_gone_and_the_others_are_whole(store: Storage, capsys: pytest.CaptureFixture) -> None:
    kept = {path: store.read(path) for path in store.list("bert")}
    with pytest.raises(DataError, match="annna"):
        inspect.main(["remove", store.url, "anna", "annna"])
    assert store.list("anna"), "a name that is not there takes nobody out"
    assert inspect.main(["remove", store.url, "anna"]) == 0
    assert "anna: 23 frames taken out" in capsys.readouterr().out
    assert read_manifest(store).names == ["bert"]
    assert not store.exists("anna")
    assert {path: store.read(path) for path in store.list("bert")} == kept
    assert inspect.main(["verify", store.url]) == 0


def test_names_and_empty_clips_are_refused(tmp_path: Path) -> None:
    store = open_storage(tmp_path)
    with pytest.raises(DataError, match=r"identity name '\.\./x'"):
        write_identity(store, dataclasses.replace(make("x")[0], name="../x"), [], PER_SHARD)
    with pytest.raises(DataError, match="no frames"):
        write_identity(store, make("x")[0], [], PER_SHARD)


@pytest.mark.parametrize("name", ["../../victim", "/victim", "a/b", "", ".", "anna\n", "x" * 65])
def test_names_that_are_no_folders_are_not_read(store: Storage, name: str) -> None:
    tree = json.loads(store.read("manifest.json"))
    tree["identities"][1]["name"] = name
    store.write("manifest.json", json.dumps(tree).encode())
    with pytest.raises(DataError, match=r"manifest.json: identity name '.*: use 1-64 letters.*; pack again"):
        read_manifest(store, check=False)


@pytest.mark.parametrize("file", ["../victim.tar", "anna/../../victim.tar", "/victim.tar"])
def test_files_outside_the_folder_are_not_read(store: Storage, file: str) -> None:
    for place in ("meta", "shards"):
        tree = json.loads(store.read("manifest.json"))
        entry = tree["identities"][1]
        (entry["meta"] if place == "meta" else entry["shards"][0])["file"] = file
        store.write("manifest.json", json.dumps(tree).encode())
        with pytest.raises(DataError, match=rf"manifest.json: path '{file}': must be relative.*; pack again"):
            read_manifest(store, check=False)


def test_a_mark_that_names_another_identity_is_none(store: Storage) -> None:
    entry = read_manifest(store).entry("anna")
    for name, finished in (("anna", entry), ("bert", None), ("../../victim", None)):
        mark = dataclasses.asdict(dataclasses.replace(entry, name=name))
        store.write("anna/entry.json", json.dumps(mark).encode())
        assert marked(store, store.sizes(), "anna") == finished


def test_the_schema_knows_the_rule_for_names() -> None:
    pattern = json.loads(SCHEMA.read_text())["$defs"]["identity"]["properties"]["name"]["pattern"]
    assert pattern == f"^{NAME.pattern}$"
