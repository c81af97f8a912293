"""An identity on its own: baked and loaded, rehearsed, staged over its backdrop, driven by speech to frames and video, signed."""
