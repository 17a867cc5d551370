"""Plans applied to a finished model: kernels, CUDA graphs, compiling, recomputing, batch invariance."""
