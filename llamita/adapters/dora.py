"""DoRA: LoRA that also trains the length of each row of the weight (arXiv:2402.09353)."""

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.adapters.config import LoraConfig
from llamita.adapters.pair import LoraPair
from llamita.errors import UnsupportedError


class DoraPair(LoraPair):
    """A, B and the lengths of the rows, magnitude (N,): the weight is magnitude * (W + BA) / |W + BA|.

    At first it is W. Every pass computes the lengths |W + BA| again; no gradient passes through them, as in the paper.
    Raises UnsupportedError for a quantized layer, whose rows would be dequantized in every pass.
    """

    names: ClassVar = {**LoraPair.names, "magnitude": "lora_magnitude_vector"}

    def __init__(self, config: LoraConfig, name: str, base_layer: nn.Module, like: Tensor) -> None:
        super().__init__(config, name, base_layer, like)
        if not isinstance(base_layer, nn.Linear):
            raise UnsupportedError(f"{name} is quantized, and DoRA needs plain weights: set use_dora=False for LoRA")
        weight = base_layer.weight.detach()
        weight = getattr(weight, "full_tensor", lambda: weight)()  # of a DTensor, whose rows may be in parts
        self.magnitude = nn.Parameter(torch.linalg.norm(weight.to(like.dtype), dim=1))

    def forward(self, x: Tensor, out: Tensor, base_layer: nn.Module) -> Tensor:
        """Add what makes the layer's product with x (..., K) that of DoRA's weight, to `out` (..., N)."""
        base = cast("nn.Linear", base_layer)
        dropped, weight = self.dropped(x), base.weight.to(self.A.dtype)
        ratio = self.magnitude / self._lengths(weight)
        if self.training and self.dropout:
            plain = F.linear(dropped, weight)
        else:
            plain = out if base.bias is None else out - base.bias
        return out + ((ratio - 1) * plain + ratio * self.product(dropped) * self.scaling)

    def merged(self, weight: Tensor, base_weight: Tensor) -> Tensor:
        """The weight (N, K) with the adapter in it, rounded to its dtype."""
        delta = self.delta()
        lengths = torch.linalg.norm(base_weight + delta, dim=1)
        return ((self.magnitude / lengths).unsqueeze(1) * (weight + delta)).to(weight.dtype)

    @torch.no_grad()
    def _lengths(self, weight: Tensor) -> Tensor:
        product = F.linear(self.A.T.contiguous(), self.B).T  # in this order of sums it is peft's to the bit
        return torch.linalg.norm(weight + self.scaling * product, dim=1)
