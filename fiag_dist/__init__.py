"""fiag_dist: few-shot 3D talking heads on a shared Global Gaussian Field, as a distributed system."""

import importlib
import os
from typing import Any

# Idle OpenMP threads must sleep, not spin: 3 to 5 x on a busy machine. But not before the next kernel of the same step is likely to have come,
# some tens of microseconds: on a quiet one, waking up costs a fifth of a step. Read by the OpenMP runtime when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`fiag_dist.Identity` and `fiag_dist.Staging`, imported when first asked for: importing the package alone stays quick."""
    homes = {"Identity": "synthesize", "Staging": "staging"}
    if name not in homes:
        raise AttributeError(f"module 'fiag_dist' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fiag_dist.acting.{homes[name]}"), name)
