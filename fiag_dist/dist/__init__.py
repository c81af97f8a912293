"""Ranks and their signs of life, the DeepSpeed engine, who owns which identity, and checkpoints that know no ranks."""
