"""Sound and video files in and out, by PyAV."""
