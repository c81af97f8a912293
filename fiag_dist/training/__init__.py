"""From packed clips to a trained head, and back to an identity folder; the same for pretraining and adaptation."""
