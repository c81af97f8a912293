"""The paper's experiments: pages say what they should, what was run is not run again, and what makes no sense is refused."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny_identity
import tyro

from fiag_dist.adaptation import trial
from fiag_dist.config import AdaptConfig, PretrainConfig
from fiag_dist.configfile import from_dict, from_yaml, to_dict
from fiag_dist.errors import ConfigError
from fiag_dist.shards.manifest import read_manifest, write_manifest
from fiag_dist.storage import open_storage
from fiag_dist.training.settings import refuse_nonsense

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import paper
from paper_cells import Lab, Plan, merged
from paper_experiments import EXPERIMENTS
from paper_facts import FACTS
from paper_page import LMD, Column, Findings, bars, caption, write_page
from paper_study import CUBE, OWN_FIELD, WITHOUT_IDENTITY, Study, parts

ROOT = Path(__file__).parents[2]
PRETRAIN = """
train:
  frames_per_step: 2
  images_every: 0
  checkpoint_every: 0
  stages: {landmark_steps: 2}
  loss: {lpips: 0.0}
  model:
    field: {num_face: 300, num_mouth: 80, capacity_face: 300, capacity_mouth: 80}
"""
ADAPT = PRETRAIN.replace("frames_per_step: 2", "frames_per_step: 1").replace(
    "lpips: 0.0", "lpips: 0.0, triplet: 0.0, contrast: 0.0"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three people, and settings for a few steps."""
    home = tmp_path_factory.mktemp("paper")
    tiny_identity.pack(home / "shards", "anna", "bert", "carl")
    (home / "pretrain.yaml").write_text(PRETRAIN)
    (home / "adapt.yaml").write_text(ADAPT)
    return home


def words(home: Path, *experiments: str) -> list[str]:
    files = ["--pretrain-config", str(home / "pretrain.yaml"), "--adapt-config", str(home / "adapt.yaml")]
    places = ["--clips", str(home / "shards"), "--out", str(home / "out")]
    return [*experiments, *places, "--steps", "6", "--pretrain-steps", "6", "--num-held-out", "1", "--fast", *files]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_table_and_a_figure_from_training_to_page_and_once_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paper.main(words(home, "table8", "fig10"), isolated=False) == 0
    table, figure = ((home / "out" / f"{name}.md").read_text() for name in ("table8", "fig10"))
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:-1]
        for line in table.split("## In the paper")[0].splitlines()
        if "|" in line
    }
    assert {"adapted", "adapted, 4/3 of the steps", "from scratch"} <= set(rows)
    assert 5 < float(rows["adapted"][0]) < 60
    assert "| adapted | 30.07 |" in table
    assert "tested: carl. 6 steps of pretraining, 6 of adaptation" in table
    picture = cv2.imread(str(home / "out" / "fig10.png"))
    assert picture is not None
    assert picture.shape == (256, 3 * 128, 3)
    assert np.ptp(picture[:128]) > 50
    assert all(f"| {name} |" in figure for name in ("anna", "bert", "carl"))
    assert "3 pretrained on and tested, none adapted. 6 steps of pretraining (" in figure

    def again(*_: Any) -> None:
        raise AssertionError("what is there is made again")

    for module, name in (
        (trial, "train"),
        (sys.modules["paper_cells"], "_pretrain"),
        (sys.modules["paper_cells"], "_bake"),
    ):
        monkeypatch.setattr(module, name, again)
    assert paper.main(words(home, "table8", "fig10"), isolated=False) == 0
    assert (home / "out" / "table8.md").read_text().split("##")[1] == table.split("##")[1]


class Imagined(Lab):
    """Makes no cells, but invents their numbers: what is asked for is what counts."""

    def __init__(self, plan: Plan):
        super().__init__(plan)
        self.pretrained_with: list[tuple[Sequence[str], Any]] = []
        self.adapted_with: list[Any] = []

    def shards(self, seconds: float = 0.0, extractor: str = "whisper:3") -> str:
        return f"{extractor}_{seconds:g}"

    def need_clips(self, what: str) -> None:
        pass

    def pretrained(self, data: str, people: Sequence[str], seed: int, settings: Any = None) -> dict[str, Any]:
        self.pretrained_with.append((people, settings or {}))
        return {
            "run": "run",
            "gaussians_face": 900,
            "gaussians_mouth": 100,
            "bytes_of_a_gaussian": 92,
            "peak_mib": 500.0,
        }

    def adapted(self, data: str, name: str, start: str, seed: int, settings: Any = None) -> dict[str, Any]:
        self.adapted_with.append(settings or {})
        return {
            "full_psnr_db": 30.0 + seed,
            "head_psnr_db": 28.0 + seed,
            "lmd_px_at_512": 2.0,
            "folder": "x",
            "minutes": 1.0,
            "speech_score": 0.5,
            "nearest.full_psnr_db": 20.0,
        }

    def baked(self, run: str, forgotten: bool = False) -> dict[str, Any]:
        pictures = np.zeros((2 * 8, 3 * 8, 3), np.uint8)
        pictures[8:] = 90 if forgotten else 250  # truth is black
        cv2.imwrite(str(self.plan.out / "strip.png"), pictures)
        numbers = {"nearest_to_own_clip": 0.0 if forgotten else 1.0, "folder": str(self.plan.out)}
        return dict.fromkeys(("anna", "bert", "carl", "dora"), numbers)

    def rendered(self, folder: str) -> dict[str, Any]:
        return {"frames_per_s": 30.0, "peak_mib": 400.0}


class Asked(Lab):
    """Makes no cells, but notes by which key each would be remembered."""

    def _cell(self, kind: str, asked: Any, work: Any) -> dict[str, Any]:
        return {"key": (kind, json.dumps(asked, sort_keys=True))}


def plan_of(clips: str, out: Path) -> Plan:
    return Plan(
        clips=clips, out=out, steps=9, pretrain_steps=9, pretrain_config="configs/pretrain_cpu.yaml",
        adapt_config="configs/adapt_fast.yaml", ranks=1, metrics=(),
    )  # fmt: skip


def test_cells_of_other_footage_under_the_same_names_are_other_cells(tmp_path: Path) -> None:
    data = tiny_identity.pack(tmp_path / "data", "anna", "bert")
    lab = Asked(plan_of(data, tmp_path))

    def keys() -> list[Any]:
        return [lab.pretrained(data, ["bert"], 0)["key"], lab.adapted(data, "anna", "", 0)["key"]]

    before = keys()
    assert keys() == before
    manifest = read_manifest(data)
    others = [replace(e, meta=replace(e.meta, sha256="5e" * 32)) for e in manifest.identities]
    write_manifest(open_storage(data), replace(manifest, identities=others))
    assert all(now != then for now, then in zip(keys(), before, strict=True))


def test_a_page_names_the_code_of_each_cell(tmp_path: Path) -> None:
    lab = Lab(plan_of("clips", tmp_path))
    assert lab._cell("adapt", {"of": "now"}, lambda _: {"psnr": 1.0}) == {"psnr": 1.0}
    (path,) = (tmp_path / "cells").iterdir()
    made = json.loads(path.read_text())["made"]
    assert lab.origins == {made}
    path.write_text(path.read_text().replace(made, "a machine, 2026-01-01, commit abc"))
    lab.origins.clear()
    lab._cell("adapt", {"of": "now"}, lambda _: {})
    lab._cell("adapt", {"of": "later"}, lambda _: {})
    assert caption("clips", "all", 1, lab.origins).endswith(
        f"{'; '.join(sorted({made, 'a machine, 2026-01-01, commit abc'}))}."
    )


def test_shards_of_other_clips_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "anna.mp4").touch()
    lab = Lab(plan_of(str(tmp_path / "clips"), tmp_path / "out"))
    tiny_identity.pack(tmp_path / "out" / "shards" / "whisper_3_5s", "anna", "zoe")
    with pytest.raises(ConfigError, match="was made of other clips, zoe among them; give another --out"):
        lab.shards(5.0)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "fig10"])
def test_each_experiment_asks_for_settings_that_go_together_and_fills_its_page(tmp_path: Path, name: str) -> None:
    plan = Plan(
        clips="", out=tmp_path, steps=9, pretrain_steps=9, pretrain_config="", adapt_config="", ranks=1, metrics=()
    )
    lab = Imagined(plan)
    study = Study(
        lab=lab,
        taught=("anna", "bert"),
        tested=("carl", "dora"),
        seconds=5.0,
        seeds=2,
        extractors=("mel", "whisper:3"),
        prior_steps=(100, 300),
    )
    found = EXPERIMENTS[name](study)
    assert all(len(numbers) == 2 for numbers in found.rows.values())
    for _, settings in lab.pretrained_with:
        tree = merged(to_dict(from_yaml(PretrainConfig, ROOT / "configs/pretrain_cpu.yaml")), settings)
        refuse_nonsense(from_dict(PretrainConfig, tree).train)
    for settings in lab.adapted_with:
        from_dict(AdaptConfig, merged(to_dict(from_yaml(AdaptConfig, ROOT / "configs/adapt_fast.yaml")), settings))
    page = write_page(tmp_path, name, found, "made by hand").read_text()
    assert all(f"| {row} |" in page for row in (*found.rows, *FACTS[name].rows))
    assert ("| IE-Net taken away | 0% ± 0 |" in page) == (name == "likeness")
    assert "made by hand" in page
    told = {"prior": ", 100, 300 of adaptation", "likeness": "4 pretrained on and tested, none adapted"}.get(name)
    assert (told in found.made) if told else not found.made
    assert "±" in page
    assert (tmp_path / f"{name}.png").is_file() == (name in ("fig8", "likeness", "prior"))


def test_likeness_shows_everybody_with_and_without(tmp_path: Path) -> None:
    plan = Plan(
        clips="", out=tmp_path, steps=9, pretrain_steps=9, pretrain_config="", adapt_config="", ranks=1, metrics=()
    )
    study = Study(
        lab=Imagined(plan), taught=("anna", "bert", "carl"), tested=("dora",), seconds=5.0, seeds=1, extractors=(),
        prior_steps=(),
    )  # fmt: skip
    picture = EXPERIMENTS["likeness"](study).picture
    assert picture is not None
    assert picture.shape == (384, 4 * 128, 3)
    assert [int(picture[row].mean()) for row in (60, 190, 320)] == [0, 250, 90]


def test_variants_leave_out_what_they_say() -> None:
    base = to_dict(from_yaml(PretrainConfig, ROOT / "configs/pretrain_cpu.yaml"))

    def train(settings: Any) -> Any:
        return from_dict(PretrainConfig, merged(base, settings)).train

    assert train(parts()) == train({})
    bare = train(parts(personal=False, hook=False, triplet=False))
    assert (bare.model.motion.personal, bare.model.motion.hook_k, bare.loss.triplet, bare.loss.contrast) == (
        False,
        0,
        0,
        0,
    )
    assert train(parts(hook=False)).model.motion == merged_motion(train({}))
    assert not train(WITHOUT_IDENTITY).model.identity.enabled
    assert train(CUBE).model.field.init == "cube"
    assert from_dict(AdaptConfig, OWN_FIELD).own_field


def merged_motion(train: Any) -> Any:
    return type(train.model.motion)(**{**vars(train.model.motion), "hook_k": 0})


def test_a_page_says_where_trends_differ(tmp_path: Path) -> None:
    ours = {"full": [{"psnr": 30.0, "lmd_px_at_512": 2.0}], "without IE-Net": [{"psnr": 31.0, "lmd_px_at_512": 2.5}]}
    page = write_page(tmp_path, "table4", Findings(ours, (Column("PSNR", "psnr"), LMD)), "").read_text()
    assert "Trends that differ: PSNR of without IE-Net and full (here 31 and 30)." in page
    ours["full"][0]["psnr"] = 32.0
    assert "Trends" not in write_page(tmp_path, "table4", Findings(ours, (Column("PSNR", "psnr"), LMD)), "").read_text()


def test_bars_are_as_long_as_their_numbers() -> None:
    picture = bars({"one": 100.0, "many": 400.0}, "Gaussians")
    inked = [(picture[y] == (70, 110, 170)).all(-1).sum() for y in (20, 64)]
    assert inked[1] / inked[0] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["table2"], "holds shards, but 5, 10 and 20 s are packed anew"),
        (["table7"], "holds shards, but speech features"),
        (["fig8", "--held-out", "dora"], "--held-out dora: not in"),
        (["fig8", "--num-held-out", "2"], "two or more must be left"),
        (["fig8", "--seeds", "0"], "seeds is 0; give 1 or more"),
        (["fig8", "--num-held-out", "0"], "num_held_out is 0; give 1 or more"),
        (["fig8", "--tested", "dora"], "--tested dora: not held out"),
    ],
)
def test_mistakes_are_one_line(home: Path, arguments: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        paper.main(["--clips", str(home / "shards"), "--out", str(home / "other"), "--num-held-out", "1", *arguments])


def test_commands_of_the_documents_are_understood() -> None:
    texts = [(ROOT / path).read_text() for path in ("docs/paper.md", "benchmarks/README.md", "benchmarks/paper.py")]
    commands = [found for text in texts for found in re.findall(r"python benchmarks/paper.py ([^`\n]+)", text)]
    assert len(commands) >= 5
    for command in commands:
        assert tyro.cli(paper.PaperCommand, args=command.split()).experiments


def test_every_table_of_the_paper_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(FACTS) == set(EXPERIMENTS)
    with pytest.raises(SystemExit):
        paper.main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in EXPERIMENTS)
    for facts in FACTS.values():
        assert all(len(row) == len(facts.columns) for row in facts.rows.values())
