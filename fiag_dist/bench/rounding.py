"""Numbers as reports write them."""

import math
from pathlib import Path
from typing import Any


def rounded(value: Any) -> Any:
    """Floats to four significant digits; what JSON lacks (paths, and numbers that are not finite) as text. Goes into dicts, lists and tuples."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return str(value) if isinstance(value, Path) else value
