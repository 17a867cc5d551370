"""From logits to tokens: the processors that shape the distribution, and the samplers that draw from it."""
