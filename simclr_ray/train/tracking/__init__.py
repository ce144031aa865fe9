"""Repeats the rows of metrics.jsonl where people look: Weights & Biases and MLflow."""
