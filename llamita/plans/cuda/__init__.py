"""Plans for NVIDIA's GPUs: layers on kernels of ours, and a decode step as one CUDA graph."""
