"""CPU kernels in Numba: each file holds some, and `isa` asks what the machine can do."""
