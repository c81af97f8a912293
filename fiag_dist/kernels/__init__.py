"""Compiled for the CPU with numba: rasterizing, grids, small networks, SSIM. Nothing here knows of heads."""
