"""Products with quantized blocks in plain torch, on any device: for devices and formats without our kernels.

Near to `reference.product_quantized`, but sums go in torch's order.
"""

import torch
from torch import Tensor

from llamita.kernels.quantized_blocks import QuantizedBlocks
from llamita.kernels.reference import GROUP, quantize_activations


def linear(x: Tensor, codes: QuantizedBlocks, bias: Tensor | None = None) -> Tensor:
    """Activations (..., K) times the matrix (N, K), plus bias (N,): (..., N) in x's dtype, computed in fp32."""
    xq, xs = quantize_activations(x.reshape(-1, x.shape[-1]))
    scale, minimum = codes.factors()
    width = codes.shape[1] // scale.shape[1]
    out = torch.zeros(xq.shape[0], codes.shape[0], dtype=torch.float32, device=x.device)
    for group, start in enumerate(range(0, codes.shape[1], width)):
        part = xq[:, start : start + width].float()
        dot = part @ codes.numbers(slice(start, start + width)).t()  # exact: integers below 2**24
        value = dot * scale[:, group]
        if minimum is not None:
            value -= part.sum(-1, keepdim=True) * minimum[:, group]
        out += xs[:, start // GROUP, None] * value
    if bias is not None:
        out += bias.float()
    return out.to(x.dtype).view(*x.shape[:-1], codes.shape[0])


def rows(codes: QuantizedBlocks, index: Tensor) -> Tensor:
    """The rows of the matrix (N, K) that index (...) names: fp32 (..., K)."""
    return codes.take(index.reshape(-1)).dequantize().view(*index.shape, -1)
