"""Plans for a finished model: kernels, CUDA graphs, torch.compile, gradient checkpointing, batch invariance."""
