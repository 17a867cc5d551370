"""The trainable matrices of one adapter in one layer."""

import math
from collections.abc import Mapping
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.adapters.config import LoraConfig


def sides(base_layer: nn.Module) -> tuple[int, int]:
    """What a layer reads and writes: (K, N) of a linear layer, (V, D) of an embedding."""
    if isinstance(base_layer, nn.Embedding):
        return base_layer.num_embeddings, base_layer.embedding_dim
    return cast("int", base_layer.in_features), cast("int", base_layer.out_features)


class LoraPair(nn.Module):
    """The matrices A (r, K) and B (N, r) of LoRA. B is 0 at first: the model stays as it is.

    name: the full name of the layer. base_layer: the layer, plain or quantized. like: has the dtype and the device.
    """

    names: ClassVar[Mapping[str, str]] = {"A": "lora_A.weight", "B": "lora_B.weight"}  # in peft's files

    def __init__(self, config: LoraConfig, name: str, base_layer: nn.Module, like: Tensor) -> None:
        super().__init__()
        rank, (columns, rows) = config.rank(name), sides(base_layer)
        self.A = nn.Parameter(like.new_empty(rank, columns))
        self.B = nn.Parameter(like.new_zeros(rows, rank))
        self.scaling, self.dropout = config.scaling(name), float(config.lora_dropout)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor, out: Tensor, base_layer: nn.Module) -> Tensor:
        """Add the adapter's product with x (..., K) to what the layer, and adapters before, make of x (..., N)."""
        return out + self.product(self.dropped(x)) * self.scaling

    def dropped(self, x: Tensor) -> Tensor:
        """x in the dtype of A, in training with dropout."""
        x = x.to(self.A.dtype)
        return F.dropout(x, self.dropout) if self.training and self.dropout else x

    def product(self, x: Tensor) -> Tensor:
        """B(A(x)) for x (..., K): (..., N)."""
        return F.linear(F.linear(x, self.A), self.B)

    def delta(self) -> Tensor:
        """The scaled product B A (N, K). 16-bit matrices are multiplied in fp32, as peft does it."""
        if self.A.dtype in (torch.float16, torch.bfloat16) and self.A.device.type == "cpu":
            return (self.B.float() @ self.A.float() * self.scaling).to(self.A.dtype)
        return self.B @ self.A * self.scaling

    def merged(self, weight: Tensor, base_weight: Tensor) -> Tensor:
        """The weight (N, K) with the adapter in it, rounded to its dtype; base_weight has no adapter in it."""
        return (weight + self.delta()).to(weight.dtype)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"r={self.A.shape[0]}, scaling={self.scaling:g}"
