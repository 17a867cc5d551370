"""Models on several processes: one device mesh, and plans that shard a finished model over its dims."""
