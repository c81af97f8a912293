"""The web page that shows any moment of a speech from any side."""
