"""Classifier-free guidance: away from what another prompt would have written (arXiv:2306.17806)."""

from torch import Tensor

from llamita.generation.decode import ModelRunner

MOST = 1e15  # what exaggerates more would leave no numbers


class Guidance:
    """Exaggerates the difference that the prompt makes over a negative one, whose texts are read beside it.

    scale: 1 changes nothing, more exaggerates. feed: of the negative prompts, a row for each text.
    """

    def __init__(self, scale: float, feed: ModelRunner) -> None:
        self.scale = min(max(scale, -MOST), MOST)
        self.feed = feed

    def __call__(self, logits: Tensor) -> Tensor:
        """Guided log probabilities for logits (B, V)."""
        without = self.feed.native().log_softmax(-1)  # in its dtype, as transformers does
        return self.scale * (logits.log_softmax(-1) - without) + without

    def append(self, step: Tensor) -> None:
        """Put the chosen tokens (B,) behind the negative texts too."""
        self.feed.append(step)
