"""What follows from a config for attention; a file of its own, as every pass reads it."""


class AttentionFacts:
    """What follows from a config for attention."""

    __slots__ = ()

    head_dim: int
    attention_scale: float | None

    @property
    def softmax_scale(self) -> float:
        """What scores are multiplied by: `attention_scale`, or one over the root of the heads' width."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale
