"""What the paper's tables say of FIAG and of the methods nearest to it (RTX 3090, 512x512, DeepSpeech features, clips that we do not have)."""

from collections.abc import Mapping
from dataclasses import dataclass

SETTING = (
    "The paper's numbers: RTX 3090, 512x512, DeepSpeech features, clips of HDTF and others, five minutes each for pretraining on ten people; "
    "full frames from encoded videos; Sync-C by SyncNet. Compare trends, not digits."
)


@dataclass(frozen=True)
class Facts:
    """One table of the paper."""

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | str, ...]]
    """By name; where a row of ours has the same name, the two are compared."""


FACTS = {
    "table1": Facts(
        "Table I: self-reconstruction from 5 s",
        ("PSNR", "LPIPS", "SSIM", "LMD", "AUE upper", "AUE lower", "Sync-C", "training", "frames/s"),
        {
            "FIAG": (37.69, 0.0296, 0.9716, 2.095, 0.111, 0.174, 1.909, "16 min", 65.5),
            "InsTaG (adapted)": (35.90, 0.0375, 0.9610, 2.195, 0.156, 0.286, 1.741, "19 min", 80.3),
            "TalkingGaussian (from scratch)": (36.25, 0.0207, 0.9677, 2.140, 0.314, 0.087, 1.710, "36 min", 112.4),
        },
    ),
    "table2": Facts(
        "Table II: self-reconstruction from more footage",
        ("PSNR", "LMD", "Sync-C"),
        {"5 s": (37.69, 2.095, 1.909), "10 s": (36.60, 2.212, 1.206), "20 s": (35.76, 2.218, 0.905)},
    ),
    "table3": Facts(
        "Table III: another person's voice",
        ("Sync-E", "Sync-C"),
        {
            "FIAG, male, English": (10.133, 4.102),
            "FIAG, female, German": (11.776, 0.839),
            "InsTaG, male, English": (10.541, 3.638),
            "InsTaG, female, German": (11.778, 0.764),
        },
    ),
    "table4": Facts(
        "Table IV: ablation of the field",
        ("PSNR", "LPIPS", "LMD", "Sync-C"),
        {
            "exclusive field (EGF)": (36.28, 0.037, 3.239, 1.648),
            "without IM-Net": (36.69, 0.037, 2.088, 1.871),
            "without IE-Net": (35.21, 0.043, 2.409, 1.575),
            "full": (37.69, 0.030, 2.095, 1.909),
        },
    ),
    "table5": Facts(
        "Table V: memory, MB of a GPU",
        ("memory",),
        {
            "rendering": (1900.0,),
            "adaptation": (2264.0,),
            "pretraining, 2 people": (2302.0,),
            "pretraining, 4 people": (2294.0,),
            "pretraining, 6 people": (2310.0,),
            "pretraining, 8 people": (2318.0,),
            "pretraining, 10 people": (2330.0,),
        },
    ),
    "table6": Facts(
        "Table VI: ablation of motion and of the losses that tell people apart",
        ("PSNR", "LPIPS", "LMD", "Sync-C"),
        {
            "none": (35.63, 0.042, 2.261, 1.763),
            "IM-Net": (36.45, 0.035, 2.187, 1.828),
            "IM-Net, E": (37.05, 0.035, 2.155, 1.886),
            "IM-Net, E, L_t": (37.26, 0.034, 2.100, 1.886),
            "IM-Net, E, L_c": (37.45, 0.031, 2.151, 1.897),
            "IM-Net, L_t, L_c": (36.45, 0.035, 2.187, 1.844),
            "full": (37.69, 0.030, 2.095, 1.910),
        },
    ),
    "table7": Facts(
        "Table VII: speech features",
        ("PSNR", "LPIPS", "SSIM", "LMD", "AUE upper", "AUE lower", "Sync-C"),
        {
            "DeepSpeech": (37.69, 0.0296, 0.9716, 2.095, 0.111, 0.174, 1.909),
            "wav2vec2": (37.71, 0.0288, 0.9716, 2.101, 0.095, 0.206, 1.986),
            "HuBERT": (37.24, 0.0312, 0.9696, 2.131, 0.087, 0.238, 1.808),
            "AVE": (38.06, 0.0286, 0.9731, 2.153, 0.102, 0.166, 2.000),
        },
    ),
    "table8": Facts(
        "Table VIII: all of the footage",
        ("PSNR", "SSIM", "LMD", "Sync-C", "training"),
        {
            "adapted": (30.07, 0.905, 3.001, 0.686, "16 min"),
            "adapted, 4/3 of the steps": (30.12, 0.906, 3.032, 0.674, "24 min"),
            "from scratch": (29.63, 0.896, 2.968, 0.651, "36 min (TalkingGaussian)"),
        },
    ),
    "fig8": Facts(
        "Fig. 8 and 9: size of the field",
        ("Gaussians", "megabytes"),
        {
            "one field for all (GGF)": (10000.0, 1.7),
            "exclusive fields (EGF), sum": (662000.0, ""),
            "InsTaG, five people, sum": (80000.0, 8.4),
        },
    ),
    "fig10": Facts(
        "Fig. 10: everybody in one field, seconds of footage each",
        ("result",),
        {"20 people, 5 s each": ("coarse reconstructions",)},
    ),
    "likeness": Facts("Whom a recogniser takes renders for, with and without IE-Net", (), {}),
    "prior": Facts("What a pretraining is worth: steps of adaptation and of training from scratch", (), {}),
}
"""By experiment; the paper has no table for the last two.

Table I's from-scratch row is TalkingGaussian's, and the first two rows of Table VIII are FIAG-30K and FIAG-40K."""
