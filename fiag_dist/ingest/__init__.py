"""A clip to samples: faces, poses, expressions, masks, speech, a person's embedding and what lies behind the head."""
