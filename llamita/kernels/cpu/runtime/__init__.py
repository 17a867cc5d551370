"""How kernels become machine code, are kept, and run on several threads. Loads no Numba."""
