"""Run-time checks of every annotated shape and type, in tests only: wrong axes are caught at the call, not three functions later."""

from pathlib import Path

import beartype
import jaxtyping

checker = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
"""An int where a float is asked for is no mistake."""


def modules_with_shapes() -> list[str]:
    """Modules that annotate shapes. Kernels are left out: numba reads their functions' own code, not a wrapper."""
    root = Path(__file__).resolve().parents[1]
    return [
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in sorted((root / "fiag_dist").rglob("*.py"))
        if path.parent.name != "kernels" and "from jaxtyping import" in path.read_text()
    ]


def install() -> None:
    """Checks these modules from their first import on."""
    jaxtyping.install_import_hook(modules_with_shapes(), "shape_checks.checker")
