"""One identity examined: beside what it must beat, with its own voice and with another's, in tables."""
