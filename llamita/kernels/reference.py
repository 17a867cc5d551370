"""Products with quantized matrices in plain torch: slow, and the measure of every kernel that computes them."""

import torch
from torch import Tensor

from llamita.kernels.codes import Codes

GROUP = 32  # columns that share an activation scale


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., K) as int8 (..., K) and fp32 scales (..., K/32): the largest of 32 becomes 127, halves go to even."""
    groups = x.float().unflatten(-1, (-1, GROUP))
    most = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(most > 0, most.new_tensor(127.0) / most, 0)
    return (groups * inverse).round().to(torch.int8).flatten(-2), (most / 127).squeeze(-1)


def linear(x: Tensor, codes: Codes, bias: Tensor | None = None) -> Tensor:
    """Activations (..., K) times the matrix (N, K), plus bias (N,): (..., N) in x's dtype, computed in fp32.

    Each group of columns: xs * (scale * sub_scale * dot(code - zero, xq) - minimum * sub_minimum * sum(xq)), where
    xq and xs are the activations as int8 and their scale; one group after the other is added.
    """
    xq, xs = quantize_activations(x.reshape(-1, x.shape[-1]))
    scale = _product(codes.scale, codes.sub_scale)
    minimum = None if codes.minimum is None else _product(codes.minimum, codes.sub_minimum)
    width = codes.shape[1] // scale.shape[1]
    out = torch.zeros(xq.shape[0], codes.shape[0], device=x.device)
    for group, start in enumerate(range(0, codes.shape[1], width)):
        part = xq[:, start : start + width].float()
        dot = part @ (codes.codes[:, start : start + width].float() - codes.zero).t()  # exact: integers below 2**24
        value = dot * scale[:, group]
        if minimum is not None:
            value -= part.sum(-1, keepdim=True) * minimum[:, group]
        out += xs[:, start // GROUP, None] * value
    if bias is not None:
        out += bias.float()
    return out.to(x.dtype).view(*x.shape[:-1], -1)


def rows(codes: Codes, index: Tensor) -> Tensor:
    """The rows of the matrix (N, K) that index (...) names: fp32 (..., K)."""
    return codes.take(index.reshape(-1)).dequantize().view(*index.shape, -1)


def _product(factor: Tensor, sub: Tensor | None) -> Tensor:
    """factor (N, blocks) times the finer sub (N, groups), in fp32."""
    if sub is None:
        return factor.float()
    return factor.float().repeat_interleave(sub.shape[1] // factor.shape[1], dim=1) * sub.float()
