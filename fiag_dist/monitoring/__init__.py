"""What a run tells its people: console, TensorBoard, metrics.jsonl, status.json, and their copies on S3."""
