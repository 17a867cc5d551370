"""LoRA of an embedding: the rows of A belong to the ranks, its columns to the tokens."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from llamita.adapters.config import LoraConfig
from llamita.adapters.pair import LoraPair
from llamita.errors import UnsupportedError


class EmbeddingPair(LoraPair):
    """The matrices A (r, V) and B (D, r). A is 0 at first: the model stays as it is. Nothing is dropped out.

    Raises UnsupportedError for DoRA, and for a quantized embedding.
    """

    names: ClassVar = {"A": "lora_embedding_A", "B": "lora_embedding_B"}

    def __init__(self, config: LoraConfig, name: str, base_layer: nn.Module, like: Tensor) -> None:
        super().__init__(config, name, base_layer, like)
        if config.use_dora:
            raise UnsupportedError(
                f"{name} is an embedding, and DoRA adapts linear layers: leave it out of the targets"
            )
        nn.init.zeros_(self.A)
        nn.init.normal_(self.B)

    def forward(self, x: Tensor, out: Tensor, base_layer: nn.Module) -> Tensor:
        """Add the adapter's rows of the token ids x (...) to those of the embedding (..., D)."""
        assert isinstance(base_layer, nn.Embedding)
        return out + F.embedding(x, self.A.T, base_layer.padding_idx) @ self.B.T * self.scaling

    def delta(self) -> Tensor:
        """What the adapter adds to the weight (V, D)."""
        return super().delta().T

    def merged(self, weight: Tensor, base_weight: Tensor) -> Tensor:
        """The weight (V, D) with the adapter in it; as in peft, the adapter's part is rounded to its dtype first."""
        return weight + self.delta().to(weight.dtype)
