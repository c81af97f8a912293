"""Each metric on its own."""
