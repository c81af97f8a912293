"""How much memory this process took."""

import re
from pathlib import Path


def peak_resident_mib() -> float:
    """Largest resident memory of this program so far, MiB. Unlike `ru_maxrss`, without what the process held before it became this program."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 2**10 if found else 0.0
