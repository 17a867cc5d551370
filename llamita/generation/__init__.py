"""Continuing token sequences: choosing tokens, knowing when to stop, and the loop around both."""
