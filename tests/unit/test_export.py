"""Exported .ply files: read by another reader and rendered, they are what we render."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import av
import clipmaker
import gsply
import numpy as np
import pytest
import tiny_identity as tiny
import torch
from plyfile import PlyData
from rights import as_nobody
from test_render import write_wav

from fiag_dist import export
from fiag_dist.acting.rehearsal import Rehearsal
from fiag_dist.acting.synthesize import Identity
from fiag_dist.errors import ConfigError, DataError
from fiag_dist.images.raster import rasterize, view_colors
from fiag_dist.model.head import Person
from fiag_dist.types import Camera, Gaussians, Rendering


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("export")
    tiny.make_identity(home / "ball", tiny.pack(home / "data"), motion_scale=3.0)
    write_wav(home / "speech.wav", 0.4)
    return home


@pytest.fixture(scope="module")
def ball(home: Path) -> Identity:
    return Identity.load(home / "ball")


def read(path: Path) -> Gaussians:
    """As any viewer does it: fields by name, f_rest channel by channel."""
    rows = PlyData.read(path)["vertex"]

    def columns(stem: str, count: int) -> np.ndarray:
        return np.stack([rows[f"{stem}_{i}"] for i in range(count)], 1)

    num_rest = sum(name.startswith("f_rest") for name in rows.data.dtype.names) // 3
    values = {
        "means": np.stack([rows["x"], rows["y"], rows["z"]], 1),
        "quats": columns("rot", 4),
        "log_scales": columns("scale", 3),
        "opacities": np.array(rows["opacity"]),
        "sh_dc": columns("f_dc", 3),
        "sh_rest": columns("f_rest", 3 * num_rest).reshape(-1, 3, num_rest).transpose(0, 2, 1),
    }
    return Gaussians(**{name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()})


def read_by_a_splat_library(path: Path) -> Gaussians:
    """As gsply understands it, which knows nothing of us."""
    rows = gsply.plyread(path)
    names = {
        "means": "means",
        "quats": "quats",
        "log_scales": "scales",
        "opacities": "opacities",
        "sh_dc": "sh0",
        "sh_rest": "shN",
    }
    return Gaussians(
        **{ours: torch.from_numpy(np.ascontiguousarray(getattr(rows, theirs))) for ours, theirs in names.items()}
    )


def rendered(g: Gaussians) -> Rendering:
    K = torch.tensor([[600.0, 0, 64], [0, 600, 64], [0, 0, 1]])
    turn = torch.tensor([[0.8, 0, -0.6, 0], [0, 1, 0, 0], [0.6, 0, 0.8, 0], [0, 0, 0, 1]])  # colours depend on the view
    camera = Camera(torch.from_numpy(tiny.viewmat(16)) @ turn, K, 128, 128)
    colors = view_colors(g.sh_dc, g.sh_rest, g.means, camera)
    return rasterize(
        g.means, g.quats, torch.exp(g.log_scales), torch.sigmoid(g.opacities), colors, camera, torch.zeros(3)
    )


def same(path: Path, expected: Gaussians) -> None:
    ours = rendered(expected)
    assert float(ours.alpha.mean()) > 0.02
    for reader in (read, read_by_a_splat_library):
        error = (ours.image - rendered(reader(path)).image).abs()
        assert error.mean() < 1e-5
        assert error.quantile(0.999) < 1e-3


def test_read_back_a_file_renders_what_we_render(home: Path, ball: Identity, tmp_path: Path) -> None:
    rest = Rehearsal(ball.actor).rest
    for branch in ("face", "mouth", "merged"):
        out = tmp_path / f"{branch}.ply"
        assert export.main([str(home / "ball"), "--out", str(out), "--branch", branch]) == 0
        same(out, export.chosen(rest, branch, export.setback_m(rest)))
    merged = read(tmp_path / "merged.ply")
    assert len(merged) == len(rest.face) + len(rest.mouth)
    torch.testing.assert_close(merged.quats.norm(dim=1), torch.ones(len(merged)))


def test_a_merged_mouth_does_not_grow_through_the_lips(ball: Identity) -> None:
    rest = Rehearsal(ball.actor).rest
    grown = replace(rest.mouth, means=rest.mouth.means + torch.tensor([0.0, 0.0, 0.05]), sh_dc=rest.mouth.sh_dc + 5)
    person = Person(rest.face, grown)
    face, mouth = rendered(person.face), rendered(grown)
    layered = face.image + (1 - face.alpha) * mouth.image
    plain, set_back = (
        (rendered(export.chosen(person, "merged", back)).image - layered).abs().mean()
        for back in (0.0, export.setback_m(person))
    )
    assert plain > 0.002
    assert set_back < 0.2 * plain
    assert 0.05 < export.setback_m(person) <= 0.06


def test_a_frame_is_that_of_the_rendering(home: Path, ball: Identity, tmp_path: Path) -> None:
    argv = [str(home / "ball"), "--audio", str(home / "speech.wav"), "--branch", "face"]
    assert export.main([*argv, "--frame", "7", "--out", str(tmp_path / "7.ply")]) == 0
    frames = tmp_path / "frames.v2"
    with pytest.raises(ConfigError, match="a folder for the numbered files, which must be there if its name has a dot"):
        export.main([*argv, "--sequence", "5:9", "--out", str(frames)])
    frames.mkdir()
    assert export.main([*argv, "--sequence", "5:9", "--out", str(frames)]) == 0
    names = sorted(path.name for path in frames.iterdir())
    assert names == [f"{i:06d}.ply" for i in range(5, 9)]
    one, seventh = read(tmp_path / "7.ply"), read(frames / "000007.ply")
    torch.testing.assert_close(one.means, seventh.means)
    assert export.main([*argv, "--sequence", "4:9", "--out", str(frames)]) == 0, "the same, and one more"
    with pytest.raises(
        ConfigError, match=r"frames\.v2: holds 3 other \.ply files \(000004\.ply \.\.\.\), which would be"
    ):
        export.main([*argv, "--sequence", "7:9", "--out", str(frames)])
    people: list[Person] = list(export.frames(ball, Rehearsal(ball.actor), home / "speech.wav", 5, 9))
    same(tmp_path / "7.ply", people[2].face)
    assert (one.means - read(frames / "000005.ply").means).abs().max() > 1e-5, "speech moves it"
    silent = next(export.frames(ball, Rehearsal(ball.actor), None, 7, 8))
    assert (one.means - silent.face.means).abs().max() > 1e-5


def test_a_frame_that_only_the_headers_lack_is_there(home: Path, tmp_path: Path) -> None:
    """Bare AAC says nothing of its length; FFmpeg takes 10 s that begin with noise for 4."""
    samples = np.zeros(160_000, np.float32)
    samples[:16_000] = np.random.default_rng(0).uniform(-0.6, 0.6, 16_000)
    with av.open(str(tmp_path / "speech.aac"), "w") as container:
        clipmaker._encode_sound(container, container.add_stream("aac", rate=16_000, layout="mono"), samples)
    argv = [str(home / "ball"), "--audio", str(tmp_path / "speech.aac"), "--frame"]
    assert export.main([*argv, "249", "--out", str(tmp_path / "249.ply")]) == 0
    with pytest.raises(ConfigError, match=r"frame 253: .* ends before it"):
        export.main([*argv, "253", "--out", str(tmp_path / "253.ply")])


def test_the_header_is_that_of_other_writers(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.ply"
    export.main([str(home / "ball"), "--out", str(out)])
    data = PlyData.read(out)
    assert (data.text, data.byte_order) == (False, "<")
    names = [p.name for p in data["vertex"].properties]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:-8] == [f"f_rest_{i}" for i in range(9)]
    assert names[-8:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert "synthetic, identity ball, neutral" in data.comments[0]


def test_mistakes_are_named(home: Path, tmp_path: Path) -> None:
    ball, ply = [str(home / "ball")], ["--out", str(tmp_path / "x.ply")]
    folder = ["--out", str(tmp_path / "x")]
    (tmp_path / "scans").mkdir()
    for theirs in ("scan.ply", "scans/000001.ply"):
        (tmp_path / theirs).write_text("ply\nformat ascii 1.0\ncomment my own\n")
    cases = [
        ([*ball, *folder], r"ends in \.ply"),
        ([*ball, *ply, "--frame", "-1"], "a number from 0"),
        ([*ball, *ply, "--frame", "10", "--audio", str(home / "speech.wav")], "ends before it"),
        ([*ball, *folder, "--sequence", "5"], "A:B with 0 <= A < B"),
        ([*ball, *folder, "--sequence", "5:5"], "A:B with 0 <= A < B"),
        ([*ball, *folder, "--sequence", "0:\u00b2"], "A:B with 0 <= A < B"),
        ([*ball, *folder, "--sequence", "5:6", "--frame", "3"], "one of the two"),
        ([*ball, *ply, "--sequence", "5:6"], "a folder for the numbered files"),
        ([*ball, *folder, "--sequence", "8:20", "--audio", str(home / "speech.wav")], "frame 19: .* ends before it"),
        ([*ball, "--out", str(tmp_path / "scan.ply")], r"scan\.ply: is there, and not from fiag-dist export"),
        ([*ball, "--sequence", "0:2", "--out", str(tmp_path / "scans")], r"000001\.ply: is there, and not from"),
        ([str(tmp_path), *ply], r"no identity\.json"),
        (["s3://b/ids/anna", *ply], r"^s3://b/ids/anna: .* aws s3 cp --recursive s3://b/ids/anna anna$"),
        (
            [*ball, *ply, "--audio", "s3://b/a.wav"],
            r"^s3://b/a\.wav: .* copy it here first: aws s3 cp s3://b/a\.wav a\.wav$",
        ),
        ([*ball, "--out", "s3://b/x.ply"], r"^s3://b/x\.ply: .* aws s3 cp x\.ply s3://b/x\.ply$"),
    ]
    for argv, message in cases:
        with pytest.raises((ConfigError, DataError), match=message) as caught:
            export.main(argv)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["000001.ply", "scan.ply", "scans"]


def test_only_names_that_are_there_are_looked_at(home: Path, tmp_path: Path) -> None:
    """A million frames took minutes, and their names the memory, before anything was said."""
    (tmp_path / "000001.ply").write_text("ply\nformat ascii 1.0\ncomment my own\n")
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=r"000001\.ply: is there, and not from fiag-dist export"):
            export.main([str(home / "ball"), "--sequence", "0:200000", "--out", str(tmp_path)])
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_place_that_takes_no_files_is_one_line(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    long = "n" * 252
    for argv, message in (
        (
            ["--out", "closed/x.ply"],
            r"^closed/x\.ply: can't be written \(Permission denied\); check the rights there, or",
        ),
        (
            ["--out", "closed", "--sequence", "0:2"],
            r"^closed: can't be written \(Permission denied\); check the rights",
        ),
        (["--out", f"{long}.ply"], rf"^{long}\.ply: can't be written \(File name too long\); make room, or give"),
    ):
        with as_nobody(), pytest.raises(DataError, match=message):
            export.main([str(home / "ball"), *argv])
