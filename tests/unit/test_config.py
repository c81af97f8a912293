"""Configuration: strict, typed, and defaults < YAML < flags."""

from pathlib import Path

import pytest

from fiag_dist import cli
from fiag_dist.config import AdaptConfig, PretrainConfig
from fiag_dist.configfile import changes, from_dict, from_yaml, load, to_dict, to_yaml
from fiag_dist.errors import ConfigError


def written(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_yield_to_yaml_and_yaml_to_flags(tmp_path: Path) -> None:
    path = written(tmp_path, "name: fromfile\ntrain: {steps: 70, seed: 3}\n")
    config = load(PretrainConfig, [path, "--train.steps", "90"])
    assert (config.name, config.train.seed, config.train.steps) == ("fromfile", 3, 90)
    assert config.train.frames_per_step == PretrainConfig().train.frames_per_step


def test_silence_of_a_file_keeps_the_defaults_of_the_nested_class(tmp_path: Path) -> None:
    config = load(AdaptConfig, [written(tmp_path, "train: {optim: {nets: 1e-3}}\n")])
    assert config.train.optim.nets == 1e-3
    assert config.train.optim.universal == AdaptConfig().train.optim.universal != PretrainConfig().train.optim.universal


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("nmae: x\n", "name"), ("train: {stpes: 3}\n", "steps"), ("train: {model: {motion: {fomr: direct}}}\n", "form")],
)
def test_unknown_key_names_the_nearest(tmp_path: Path, text: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key .*did you mean '{nearest}'"):
        from_yaml(PretrainConfig, written(tmp_path, text))


def test_an_unknown_key_ends_a_command_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", written(tmp_path, "train: {stpes: 3}\n")]) == 2
    assert "did you mean 'steps'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--train.keep", "-1"], "train.keep is -1; give 0 or more"),
        (["--init-identities", "0"], "init_identities is 0; give 1 or more"),
        (["--dry-run-world", "-1"], "dry_run_world is -1; give 0 or more"),
    ],
)
def test_a_number_that_can_not_be_meant_ends_a_command_in_a_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pretrain", *words]) == 2
    assert capsys.readouterr().err == f"fiag-dist: {says}\n"


def test_exponent_without_a_point_is_a_number(tmp_path: Path) -> None:
    value = from_yaml(PretrainConfig, written(tmp_path, "train: {loss: {motion: 1e-4}}\n")).train.loss.motion
    assert isinstance(value, float)
    assert value == 1e-4


@pytest.mark.parametrize(
    "tree",
    [
        {"train": {"steps": "many"}},
        {"train": {"steps": 1.5}},
        {"train": {"steps": True}},
        {"train": {"loss": {"ssim": "high"}}},
        {"train": {"raster": "vulkan"}},
        {"train": {"optim": {"means": [1e-4]}}},
        {"train": 3},
        {"identities": "anna"},
        {"name": 7},
        ["train"],
    ],
    ids=str,
)
def test_wrong_types_are_refused(tree: object) -> None:
    with pytest.raises(ConfigError):
        from_dict(PretrainConfig, tree)


def test_missing_file_and_broken_yaml_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        from_yaml(PretrainConfig, tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        from_yaml(PretrainConfig, written(tmp_path, "train: [1, 2"))
    (tmp_path / "latin.yaml").write_bytes("# Münster".encode("latin-1"))
    for name, reason in (("latin", "not UTF-8 text"), ("x" * 300, "File name too long")):
        with pytest.raises(ConfigError, match=rf"{name}.yaml: can't be read \({reason}\); "):
            from_yaml(PretrainConfig, tmp_path / f"{name}.yaml")


@pytest.mark.parametrize("cls", [PretrainConfig, AdaptConfig])
def test_what_is_written_reads_back_equal(tmp_path: Path, cls: type) -> None:
    flags = [
        "--train.steps",
        "7",
        "--train.optim.means",
        "1e-3",
        "1e-5",
        "--train.model.motion.universal-grid.finest",
        "96",
    ]
    config = load(cls, flags)
    text = to_yaml(config, "fiag-dist pretrain x.yaml")
    assert text.startswith("# fiag-dist pretrain x.yaml\n")
    assert from_yaml(cls, written(tmp_path, text)) == config
    assert config != cls()


def test_what_differs_is_named_with_both_values() -> None:
    before, now = to_dict(load(PretrainConfig, ["--train.steps", "7"])), to_dict(PretrainConfig(name="other"))
    del before["zero_stage"]  # an older file does not know it
    steps = PretrainConfig().train.steps
    assert changes(before, now) == {"name": ("pretrain", "other"), "train.steps": (7, steps)}
    assert changes(now, now) == {}
