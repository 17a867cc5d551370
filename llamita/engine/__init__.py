"""The engine: many requests at once, batched continuously over a paged cache."""
