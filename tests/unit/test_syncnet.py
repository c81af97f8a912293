"""SyncNet's measure: the published file's tensors, windows and crops as its authors cut them, the offset's sign, and files that are something else."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fiag_dist import evaluate
from fiag_dist.errors import ConfigError, WeightsError
from fiag_dist.metrics import syncnet
from fiag_dist.metrics.faces import FaceFinder, Seen
from fiag_dist.metrics.panel import ALL, Panel, asked
from fiag_dist.metrics.syncnet import FEWEST, SHIFT, WINDOW, SyncNet, agreement

SHAPES = {
    "netcnnaud": {
        0: (64, 1, 3, 3), 4: (192, 64, 3, 3), 8: (384, 192, 3, 3), 11: (256, 384, 3, 3), 14: (256, 256, 3, 3), 18: (512, 256, 5, 4),
    },
    "netcnnlip": {
        0: (96, 3, 5, 7, 7), 4: (256, 96, 1, 5, 5), 8: (256, 256, 1, 3, 3), 11: (256, 256, 1, 3, 3), 14: (256, 256, 1, 3, 3),
        18: (512, 256, 1, 6, 6),
    },
    "netfcaud": {0: (512, 512), 3: (1024, 512)},
    "netfclip": {0: (512, 512), 3: (1024, 512)},
}  # fmt: skip
"""Weights of the published file by stack and place; behind each but the last of a stack of layers comes a batch normalisation."""


def published() -> dict[str, torch.Tensor]:
    """A file with the published names and shapes and random numbers, as torch before 0.4.1 wrote it."""
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for stack, layers in SHAPES.items():
        for place, shape in layers.items():
            size = float(np.prod(shape[1:])) ** -0.5
            tensors[f"{stack}.{place}.weight"] = size * torch.randn(shape, generator=draw)
            tensors[f"{stack}.{place}.bias"] = 0.1 * torch.randn(shape[0], generator=draw)
            if shape[0] != 1024:
                norm = f"{stack}.{place + 1}"
                tensors |= {f"{norm}.{name}": torch.ones(shape[0]) for name in ("weight", "running_var")}
                tensors |= {f"{norm}.{name}": torch.zeros(shape[0]) for name in ("bias", "running_mean")}
    return tensors


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    torch.save(published(), path, _use_new_zipfile_serialization=False)
    return path


def test_the_sound_s_network_is_that_of_the_published_names(file: Path) -> None:
    """Its convolutions again, by hand, from the tensors of the file."""
    tensors = torch.load(file)
    heard = torch.randn(3, 1, 13, 20)
    x = heard
    for place, padding in ((0, 1), (4, 1), (8, 1), (11, 1), (14, 1), (18, 0)):
        weight, bias = (tensors[f"netcnnaud.{place}.{name}"] for name in ("weight", "bias"))
        x = torch.relu(torch.conv2d(x, weight, bias, padding=padding) / (1 + 1e-5) ** 0.5)
        if place in (4, 14):
            x = torch.max_pool2d(x, 3, stride=(1, 2) if place == 4 else (2, 2))
    assert x.shape == (3, 512, 1, 1)
    x = torch.relu((x[:, :, 0, 0] @ tensors["netfcaud.0.weight"].T + tensors["netfcaud.0.bias"]) / (1 + 1e-5) ** 0.5)
    x = x @ tensors["netfcaud.3.weight"].T + tensors["netfcaud.3.bias"]
    with torch.no_grad():
        torch.testing.assert_close(SyncNet(file)._network.of_voice(heard), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("late", [-4, 0, 3])
def test_a_mouth_that_is_late_has_an_offset_above_zero(late: int) -> None:
    draw = torch.Generator().manual_seed(1)
    voice = torch.randn(80, 16, generator=draw)
    lips = torch.roll(voice, late, 0) + 0.1 * torch.randn(80, 16, generator=draw)
    sync = agreement(lips, voice)
    means = []
    for shift in range(-SHIFT, SHIFT + 1):  # the voice is this much later than the lips
        heard = [voice[i + shift].numpy() if 0 <= i + shift < 80 else np.zeros(16) for i in range(80)]
        means.append(np.mean([np.linalg.norm(a - b) for a, b in zip(lips.numpy(), heard, strict=True)]))
    assert sync.offset_ms == 40 * late == -40 * (np.argmin(means) - SHIFT)
    assert sync.distance == pytest.approx(min(means), abs=1e-4)
    assert sync.confidence == pytest.approx(sorted(means)[SHIFT] - min(means), abs=1e-4)
    assert sync.confidence > 3


def box(x: float, y: float, half: float) -> Seen:
    """A face whose landmarks lie in two corners of a square."""
    corners = np.array([[x - half, y - half], [x + half, y + half]], float)
    return Seen(np.repeat(corners, 239, 0), {})


def test_the_crop_has_room_below_and_beside_and_grey_beyond_the_picture() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[..., 0] = np.arange(100)  # red tells the column
    picture[..., 2] = 2 * np.arange(100)[:, None]  # blue tells the row
    crop = syncnet._crop(picture, 50, 40, 20)  # columns 22..78, rows 20..76
    assert crop.shape == (224, 224, 3)
    for channel, low, high in ((2, 22, 77), (0, 40, 150)):
        assert crop[..., channel].min() == low
        assert crop[..., channel].max() == high
    corner = syncnet._crop(picture, 5, 40, 20)  # columns -23..33
    assert (corner[:, :88] == 110).all()
    assert (corner[:, 100:, 1] == 0).all()


def test_a_frame_without_a_face_and_one_that_jumps_take_the_box_around_them() -> None:
    pictures = [np.full((64, 64, 3), i, np.uint8) for i in range(30)]
    faces = [box(32, 30, 10) for _ in pictures]
    steady = syncnet._crops(pictures, faces)
    faces[12], faces[20] = None, box(5, 60, 30)
    assert steady is not None
    np.testing.assert_array_equal(syncnet._crops(pictures, faces), steady)
    assert syncnet._crops(pictures, [None] * 30) is None


def test_each_window_of_pictures_is_judged_with_the_sound_of_its_time(file: Path, monkeypatch) -> None:
    """What enters the two networks, window by window: the embeddings are the middle of it, so that the measure says whether windows go together."""
    net = SyncNet(file)
    loud = np.repeat(np.random.default_rng(0).uniform(0.01, 1, FEWEST), 640)  # of each frame
    wav = (loud * np.sin(np.arange(len(loud)) * 0.6)).astype(np.float32)
    level = np.log(loud.reshape(FEWEST, 640).mean(1))
    shade = np.interp(level, (level.min(), level.max()), (0, 255)).round().astype(np.uint8)
    pictures = [np.full((64, 64, 3), value, np.uint8) for value in shade]
    seen = {"lips": [], "voice": []}

    def of_lips(frames: torch.Tensor) -> torch.Tensor:
        assert frames.shape[1:] == (3, WINDOW, 224, 224)
        seen["lips"].append(frames[:, 0, :, 112, 112])
        return frames[:, 0, :, 112, 112]

    def of_voice(cepstra: torch.Tensor) -> torch.Tensor:
        assert cepstra.shape[1:] == (1, 13, 4 * WINDOW)
        seen["voice"].append(cepstra[:, 0, 0].unflatten(1, (WINDOW, 4))[:, :, 1])  # the energy within each frame
        return torch.zeros(len(cepstra), WINDOW)

    monkeypatch.setattr(net._network, "of_lips", of_lips)
    monkeypatch.setattr(net._network, "of_voice", of_voice)
    assert net.judge(pictures, [box(32, 30, 10)] * FEWEST, wav, 25) is not None
    lips, voice = torch.cat(seen["lips"]).numpy(), torch.cat(seen["voice"]).numpy()
    assert lips.shape == voice.shape == (FEWEST - WINDOW, WINDOW)
    np.testing.assert_array_equal(lips, [shade[i : i + WINDOW] for i in range(FEWEST - WINDOW)])
    assert np.corrcoef(lips.ravel(), voice.ravel())[0, 1] > 0.95


def test_too_few_frames_another_rate_and_no_face_are_not_judged(file: Path) -> None:
    net, wav = SyncNet(file), np.zeros(16_000 * 3, np.float32)
    pictures, faces = [np.zeros((64, 64, 3), np.uint8)] * FEWEST, [box(32, 30, 10)] * FEWEST
    assert net.judge(pictures[1:], faces[1:], wav, 25) is None
    assert net.judge(pictures, faces, wav[:31_000], 25) is None
    assert net.judge(pictures, faces, wav, 30) is None
    assert net.judge(pictures, [None] * FEWEST, wav, 25) is None


def test_what_is_not_syncnet_is_refused_in_a_line(file: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing\.model: no such file; name syncnet_v2\.model"):
        SyncNet(tmp_path / "missing.model")
    text = tmp_path / "text.model"
    text.write_text("<html>not found</html>")
    with pytest.raises(WeightsError, match=r"text\.model: no tensors of that network"):
        SyncNet(text)
    other = tmp_path / "other.model"
    torch.save({"conv.weight": torch.zeros(1)}, other)
    with pytest.raises(
        WeightsError, match=r"other\.model: netcnnaud\.0\.weight is in the file or in the network alone"
    ):
        SyncNet(other)
    torch.save(torch.load(file) | {"netcnnaud.0.weight": torch.zeros(2)}, other)
    with pytest.raises(WeightsError, match=r"other\.model: no tensors of that network"):
        SyncNet(other)


def test_it_is_asked_for_by_its_weights() -> None:
    assert "sync" in ALL
    assert "sync" not in asked(False, "")
    assert asked(True, "", Path("w")) == ("psnr", "ssim", "sync")
    assert asked(False, "lmd,sync", Path("w")) == ("lmd", "sync")
    with pytest.raises(ConfigError, match=r"metric sync: .* --syncnet syncnet_v2\.model"):
        asked(False, "psnr,sync")


@pytest.mark.weights
def test_a_panel_that_can_not_be_had_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    close = FaceFinder.close
    monkeypatch.setattr(FaceFinder, "close", lambda finder: (close(finder), closed.append(finder)))
    with pytest.raises(WeightsError, match="no such file"):
        Panel(["psnr", "sync"], syncnet=tmp_path / "missing.model")
    assert len(closed) == 1


@pytest.mark.weights
def test_a_clip_that_is_too_short_for_it_is_said(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tiny_identity as tiny

    identity = tiny.make_identity(tmp_path / "ball", tiny.pack(tmp_path / "data"))
    assert evaluate.main([str(identity), "--metrics", "psnr", "--encoded", "--syncnet", str(file)]) == 0
    assert "Sync-C and Sync-E of test frames left out: they need 50 frames, 25 a second, and a face" in " ".join(
        capsys.readouterr().out.split()
    )
