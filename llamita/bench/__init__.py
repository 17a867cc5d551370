"""Measure ours beside the peers: same weights, same input, same threads, in turn."""
