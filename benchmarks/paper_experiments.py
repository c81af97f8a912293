"""The paper's experiments: which cells each of them needs, and the table that they make."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from paper_cells import Lab, Numbers, Settings, gaussians_of, merged
from paper_page import (
    AUE,
    EYES,
    IMAGE,
    LAG,
    LMD,
    LPIPS,
    MINUTES,
    MOUTH,
    MOUTH_PSNR,
    SPEECH,
    SSIM,
    Column,
    Findings,
    bars,
    beside,
    curves,
)
from paper_study import CUBE, OWN_FIELD, WITHOUT_IDENTITY, Study, means, parts

from fiag_dist.errors import ConfigError
from fiag_dist.evaluation.examine import STRIP


def table1(study: Study) -> Findings:
    """Ours beside training from scratch, with our start and the paper's cube, and beside the nearest training frame."""
    lab, data = study.lab, study.lab.shards(study.seconds)

    def ours(seed: int) -> Numbers:
        run = lab.pretrained(lab.shards(), study.taught, seed)["run"]
        each = [lab.adapted(data, name, run, seed) for name in study.tested]
        speeds = [lab.rendered(numbers["folder"]) for numbers in each]
        return means([numbers | speed for numbers, speed in zip(each, speeds, strict=True)])

    rows = study.over_seeds(
        {
            "FIAG": ours,
            "from scratch, our start": lambda seed: study.adapted(data, "", seed),
            "from scratch, cube": lambda seed: study.adapted(data, "", seed, CUBE),
        }
    )
    prefix = "nearest."
    nearest = [{k.removeprefix(prefix): v for k, v in n.items() if k.startswith(prefix)} for n in rows["FIAG"]]
    columns = (*IMAGE, LPIPS, SSIM, LMD, *AUE, MOUTH, *SPEECH, MINUTES, Column("frames/s", "frames_per_s", ".1f"))
    return Findings(rows | {"nearest training frame, warped": nearest}, columns)


def table2(study: Study) -> Findings:
    """More seconds of footage, the same number of steps."""
    study.lab.need_clips("5, 10 and 20 s")
    lab = study.lab

    def row(seconds: float) -> Callable[[int], Numbers]:
        def make(seed: int) -> Numbers:
            run = lab.pretrained(lab.shards(), study.taught, seed)["run"]
            return study.adapted(lab.shards(seconds), run, seed)

        return make

    rows = study.over_seeds({f"{seconds} s": row(seconds) for seconds in (5, 10, 20)})
    remark = "The test frames are those that follow the footage, so they differ from row to row; a clip that is shorter gives all it has."
    return Findings(rows, (*IMAGE, SSIM, LMD, MOUTH, *SPEECH), [remark])


def table3(study: Study) -> Findings:
    """Another person's voice: who follows it, and when."""
    lab, data = study.lab, study.lab.shards(study.seconds)

    def row(name: str) -> Callable[[int], Numbers]:
        def make(seed: int) -> Numbers:
            return lab.adapted(data, name, lab.pretrained(lab.shards(), study.taught, seed)["run"], seed)

        return make

    columns = (
        Column("voice", "speech_voice"),
        Column("speech score", "speech_score"),
        Column("by chance", "speech_score_rolled"),
        Column("the voice's own video", "speech_score_true_video"),
        LAG,
        Column("opening in silence", "speech_opening_in_silence_eye_distances", ".3f"),
        Column("Sync-E", "speech_sync_e"),
        Column("Sync-C", "speech_sync_c"),
    )
    return Findings(study.over_seeds({name: row(name) for name in study.tested}), columns)


def table4(study: Study) -> Findings:
    """What the shared field, IE-Net and the IM-Nets are worth."""
    rows = study.over_seeds(
        {
            "exclusive field (EGF)": lambda seed: study.reconstructed(seed, adapting=OWN_FIELD),
            "without IM-Net": lambda seed: study.reconstructed(seed, parts(personal=False)),
            "without IE-Net": lambda seed: study.reconstructed(seed, WITHOUT_IDENTITY),
            "full": study.reconstructed,
        }
    )
    remark = "EGF: Gaussians and IE-Net of each person start anew, and only motion comes from the pretraining, which itself had the shared field."
    return Findings(rows, (*IMAGE, LPIPS, SSIM, LMD, MOUTH, *SPEECH), [remark])


def table5(study: Study) -> Findings:
    """Memory: flat in the number of people."""
    lab, everybody = study.lab, (*study.taught, *study.tested)

    def pretraining(num: int) -> Callable[[int], Numbers]:
        return lambda seed: lab.pretrained(lab.shards(), everybody[:num], seed)

    def adaptation(seed: int) -> Numbers:
        run = lab.pretrained(lab.shards(), study.taught, seed)["run"]
        return lab.adapted(lab.shards(study.seconds), study.tested[0], run, seed)

    counts = [num for num in (2, 4, 6, 8, 10) if num <= len(everybody)]
    rows = study.over_seeds(
        {
            "rendering": lambda seed: lab.rendered(adaptation(seed)["folder"]),
            "adaptation": adaptation,
            **{f"pretraining, {num} people": pretraining(num) for num in counts},
        }
    )
    remark = (
        "Peak memory of the process in MiB, the interpreter and libraries among it; with several ranks, of the first."
    )
    return Findings(
        rows, (Column("memory", "peak_mib", ".0f"), Column("Gaussians of the face", "gaussians_face", ".0f")), [remark]
    )


def table6(study: Study) -> Findings:
    """Motion's personal parts, and the losses that tell people apart."""
    variants = {
        "none": parts(personal=False, hook=False, triplet=False),
        "IM-Net": parts(hook=False, triplet=False, contrast=False),
        "IM-Net, E": parts(triplet=False, contrast=False),
        "IM-Net, E, L_t": parts(contrast=False),
        "IM-Net, E, L_c": parts(triplet=False),
        "IM-Net, L_t, L_c": parts(hook=False),
        "full": None,
    }
    rows = study.over_seeds(
        {name: lambda seed, variant=variant: study.reconstructed(seed, variant) for name, variant in variants.items()}
    )
    return Findings(rows, (*IMAGE, LPIPS, LMD, MOUTH, *SPEECH))


def table7(study: Study) -> Findings:
    """Speech features."""
    study.lab.need_clips("speech features")
    lab = study.lab

    def row(extractor: str) -> Callable[[int], Numbers]:
        def make(seed: int) -> Numbers:
            run = lab.pretrained(lab.shards(0.0, extractor), study.taught, seed)["run"]
            return study.adapted(lab.shards(study.seconds, extractor), run, seed)

        return make

    rows = study.over_seeds({extractor: row(extractor) for extractor in study.extractors})
    return Findings(rows, (*IMAGE, LPIPS, SSIM, LMD, *AUE, MOUTH, *SPEECH))


def table8(study: Study) -> Findings:
    """All of each person's footage, and a third more steps."""
    lab, data = study.lab, study.lab.shards()
    more: Settings = {"train": {"steps": round(lab.plan.steps * 4 / 3)}}

    def row(settings: Settings | None) -> Callable[[int], Numbers]:
        def make(seed: int) -> Numbers:
            return study.adapted(data, lab.pretrained(data, study.taught, seed)["run"], seed, settings)

        return make

    rows = {
        "adapted": row(None),
        "adapted, 4/3 of the steps": row(more),
        "from scratch": lambda s: study.adapted(data, "", s),
    }
    return Findings(study.over_seeds(rows), (*IMAGE, SSIM, LMD, MOUTH, *SPEECH, MINUTES))


def fig8(study: Study) -> Findings:
    """One field for two, for four and for all, against a field for each."""
    lab, data, everybody = study.lab, study.lab.shards(), len(study.taught)
    lonely = merged(WITHOUT_IDENTITY, {"train": {"loss": {"contrast": 0.0}}})
    all_of_them, each = "one field for all (GGF)", "exclusive fields (EGF), sum"

    def shared(num: int) -> Callable[[int], Numbers]:
        return lambda seed: _sizes([lab.pretrained(data, study.taught[:num], seed)])

    def exclusive(seed: int) -> Numbers:
        return _sizes([lab.pretrained(data, [name], seed, lonely) for name in study.taught])

    fewer = {f"one field for {num}": shared(num) for num in (2, 4) if num < everybody}
    rows = study.over_seeds({**fewer, all_of_them: shared(everybody), each: exclusive})
    counts = {name: float(np.mean([n["gaussians"] for n in numbers])) for name, numbers in rows.items()}
    remark = (
        f"Reuse: {1 - counts[all_of_them] / counts[each]:.1%} (paper: 98.5 %). {everybody} people. EGF: a pretraining of each by itself, without IE-Net, "
        "for as many steps. Fields grow to their capacity at most (train.model.field). Memory: peak of the training, of the largest where there are several."
    )
    columns = (
        Column("Gaussians", "gaussians", ".0f"),
        Column("megabytes", "megabytes"),
        Column("memory, MiB", "peak_mib", ".0f"),
    )
    return Findings(rows, columns, [remark], bars(counts, "Gaussians"))


def fig10(study: Study) -> Findings:
    """Everybody in one field with seconds of footage each: how each looks straight from it."""
    lab, data = study.lab, study.lab.shards(study.seconds)
    everybody = sorted((*study.taught, *study.tested))
    baked = [lab.baked(lab.pretrained(data, everybody, seed)["run"]) for seed in range(study.seeds)]
    rows = {name: [numbers[name] for numbers in baked] for name in everybody}
    first = _first_pairs(lab, baked[0], everybody)
    num = gaussians_of(baked[0][everybody[0]]["folder"])
    remark = f"{len(everybody)} people in {num} Gaussians. Above: truth; below: rendered, not adapted; one test frame of each."
    return Findings(rows, (*IMAGE, SSIM, LPIPS), [remark], beside(first), study.made_together())


def likeness(study: Study) -> Findings:
    """Whom a recogniser takes the renders of everybody in one field for: as trained, after IE-Net was taken away, and trained without one."""
    lab, data = study.lab, study.lab.shards(study.seconds)
    everybody = sorted((*study.taught, *study.tested))

    def baked(seed: int, forgotten: bool = False, variant: Settings | None = None) -> Numbers:
        return lab.baked(lab.pretrained(data, everybody, seed, variant)["run"], forgotten)

    def row(forgotten: bool = False, variant: Settings | None = None) -> Callable[[int], Numbers]:
        return lambda seed: means([*baked(seed, forgotten, variant).values()])

    rows = study.over_seeds(
        {
            "as trained": row(),
            "IE-Net taken away": row(forgotten=True),
            "trained without IE-Net": row(variant=WITHOUT_IDENTITY),
            "trained without IE-Net and IM-Nets": row(variant=merged(WITHOUT_IDENTITY, parts(personal=False))),
        }
    )
    columns = (
        Column("nearest to their own clip", "nearest_to_own_clip", ".0%"),
        Column("cosine to it", "cosine_to_own_clip", ".3f"),
        Column("to the nearest other clip", "cosine_to_another", ".3f"),
        *IMAGE,
    )
    remark = (
        "Taken away: IE-Net's offsets are 0, and everybody moves the canonical field with their own IM-Net. "
        "Above: truth; in the middle: as trained; below: IE-Net taken away."
    )
    whole, without = (_first_pairs(lab, baked(0, forgotten), everybody) for forgotten in (False, True))
    rows_of = [np.concatenate([pair, other[len(other) // 2 :]]) for pair, other in zip(whole, without, strict=True)]
    return Findings(rows, columns, [remark], beside(rows_of, 384), study.made_together())


def prior(study: Study) -> Findings:
    """How soon an adaptation is as good as training from scratch, with our start and with the paper's."""
    lab, data = study.lab, study.lab.shards(study.seconds)
    starts: dict[str, Settings] = {"adapted": {}, "from scratch, our start": {}, "from scratch, cube": CUBE}

    def cells(start: str, steps: int, seed: int) -> list[Numbers]:
        run = lab.pretrained(lab.shards(), study.taught, seed)["run"] if start == "adapted" else ""
        settings = merged(starts[start], {"train": {"steps": steps}})
        return [lab.adapted(data, name, run, seed, settings) for name in study.tested]

    def row(start: str, steps: int) -> Callable[[int], Numbers]:
        return lambda seed: means(cells(start, steps, seed))

    budgets = study.prior_steps
    rows = study.over_seeds({f"{start}, {steps} steps": row(start, steps) for steps in budgets for start in starts})
    lines = {
        start: {k: float(np.mean([n["head_psnr_db"] for n in rows[f"{start}, {k} steps"]])) for k in budgets}
        for start in starts
    }
    remarks = []
    for start, steps in ((other, steps) for steps in budgets for other in starts if other != "adapted"):
        gains = _gains(study.tested, cells("adapted", steps, 0), cells(start, steps, 0))
        remarks.append(f"What adaptation has over training {start}, {steps} steps, first seed: {gains}.")
    columns = (*IMAGE, MOUTH_PSNR, SSIM, LMD, MOUTH, EYES)
    made = study.made(f"{', '.join(map(str, budgets))} of adaptation")
    return Findings(rows, columns, remarks, curves(lines, "head PSNR"), made)


EXPERIMENTS: dict[str, Callable[[Study], Findings]] = {
    make.__name__: make
    for make in (table1, table2, table3, table4, table5, table6, table7, table8, fig8, fig10, likeness, prior)
}


def _first_pairs(lab: Lab, baked: Numbers, names: Sequence[str]) -> list[np.ndarray]:
    """Of each identity, truth above render in the first frame of its strip, RGB. Raises ConfigError when pictures of an earlier run are gone."""
    strips = [cv2.imread(str(Path(baked[name]["folder"]) / STRIP)) for name in names]
    if any(strip is None for strip in strips):
        raise ConfigError(
            f"{lab.plan.out}: pictures of an earlier run are gone; delete {lab.plan.out}/cells to make them again"
        )
    return [strip[:, : strip.shape[0] // 2, ::-1] for strip in strips if strip is not None]


def _gains(people: Sequence[str], ours: Sequence[Numbers], others: Sequence[Numbers]) -> str:
    """What the first have over the second, in words, person by person."""

    def gain(column: Column, mine: Numbers, other: Numbers) -> str:
        one, two = mine.get(column.key), other.get(column.key)
        return "" if one is None or two is None else f"{column.title} {one - two:+.2f}"

    said = []
    for name, mine, other in zip(people, ours, others, strict=True):
        found = [gain(column, mine, other) for column in (IMAGE[1], MOUTH_PSNR, LMD, MOUTH)]
        said.append(f"{name} ({', '.join(filter(None, found))})")
    return "; ".join(said)


def _sizes(runs: Sequence[Numbers]) -> Numbers:
    counts = [run["gaussians_face"] + run["gaussians_mouth"] for run in runs]
    held = [count * run["bytes_of_a_gaussian"] for count, run in zip(counts, runs, strict=True)]
    peak = max(run["peak_mib"] for run in runs)
    return {"gaussians": sum(counts), "megabytes": sum(held) / 1e6, "peak_mib": peak}
