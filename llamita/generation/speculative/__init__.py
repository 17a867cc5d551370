"""Speculative decoding: proposers guess tokens, the model verifies them in one pass."""
