"""Compile kernels to machine code, cache the code on disk, and run kernels on several threads. Imports no Numba."""
