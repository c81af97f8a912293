"""New clips to identities: one from start to folder, and many at once, with what they need and how they are tried again."""
