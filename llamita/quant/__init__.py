"""Weights of few bits: GGML's block formats, layers that compute with them, recipes of which layer takes which."""
