"""Gaussians to images, layers over a backdrop, and how alike two images are; which backend does it."""
