"""Quantization: layers with weights in GGML's block formats or int8, and recipes that choose each layer's format."""
