"""Checkpoints on disk and on the hub: names to tensors and back, atomically; knows nothing of models."""
