"""Plans for NVIDIA's GPUs: layers on our kernels, and a decode step as one CUDA graph."""
