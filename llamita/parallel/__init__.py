"""Plans applied to a finished model: CUDA graphs, compiling, sharding, recomputing."""
