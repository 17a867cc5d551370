"""Speculative decoding: proposers draft tokens, the model verifies them in one pass."""
