"""GPU kernels in Triton, each with a reference in plain torch, called by torch operations that run anywhere.

`operations` holds what to call and needs no Triton; the files of kernels are loaded when a tensor lies on a GPU.
"""
