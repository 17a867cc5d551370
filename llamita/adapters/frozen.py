"""Frozen weights in half the memory: those that bf16 holds exactly, as it does of most checkpoints, are kept in it.

Equals the same layer with its weight in fp32, to the bit, in fp32 and under autocast: the weight is widened, or not
even copied, where a product reads it. Under autocast torch would also keep a copy in bf16 of every frozen weight.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llamita.adapters.layer import LoraLayer
from llamita.attention.autocast import compute_dtype


class FrozenLinear(nn.Linear):
    """A linear layer whose weight is frozen, in fewer bits than its input; the product is in the input's dtype."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
        self.bias = layer.bias
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Multiply x (..., K), and add bias: (..., N)."""
        out = cast("Tensor", FrozenProduct.apply(x, self.weight))
        return out if self.bias is None else out + self.bias.to(out.dtype)


class FrozenProduct(torch.autograd.Function):
    """x times a weight that gets no gradient; keeps the weight alone, as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """x (..., K), weight (N, K) -> (..., N)."""
        ctx.dtype, ctx.out_of = compute_dtype(x), x.dtype
        ctx.save_for_backward(weight)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(ctx.dtype), weight.to(ctx.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient of x."""
        (weight,) = ctx.saved_tensors
        return (d_out @ weight.to(ctx.dtype)).to(ctx.out_of), None


def keep_in_halves(model: nn.Module) -> int:
    """Keep the frozen weights of layers with adapters in bf16 where that changes no bit of them; returns how many.

    Weights that other layers share stay as they are.
    """
    seen: dict[int, int] = {}
    for module in model.modules():
        for weight in module._parameters.values():
            seen[id(weight)] = seen.get(id(weight), 0) + 1
    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and _is_plain(module.base_layer)]
    found = [layer for layer in layers if seen[id(layer.base_layer.weight)] == 1 and _is_exact(layer.base_layer.weight)]
    for layer in found:
        layer.base_layer = FrozenLinear(cast("nn.Linear", layer.base_layer), torch.bfloat16)
    return len(found)


def _is_plain(base: nn.Module) -> bool:
    """Whether a base layer is torch's own, with one whole frozen weight."""
    if type(base) is not nn.Linear or base.weight.requires_grad or hasattr(base.weight, "__tensor_flatten__"):
        return False
    return base.weight.dtype == torch.float32


def _is_exact(weight: Any) -> bool:
    return bool((weight.to(torch.bfloat16).to(weight.dtype) == weight).all())  # --dry-run takes this for true
