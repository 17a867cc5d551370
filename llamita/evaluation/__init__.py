"""How good a model is: perplexity and bits per byte of a text, and the share of a task's cases that are right."""
