"""CPU kernels in Numba and GPU kernels in Triton, each with a plain reference; loaded only where they are used."""
