"""Training: one loop for all tasks, exactly resumable."""
