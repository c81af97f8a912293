"""Samples to tar files with a manifest, and back."""
