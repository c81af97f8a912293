"""The networks and the field (docs/model.md 2)."""
