"""fiag_dist: few-shot 3D talking heads on a shared Global Gaussian Field, as a distributed system."""

import os

# Idle OpenMP threads must sleep, not spin: 3 to 5 x on a busy machine. Read by the OpenMP runtime when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
