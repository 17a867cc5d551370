"""What ggml's formats of 32 weights share: one scale a block, and in those of _1 its smallest weight.

Roundings are those of ggml/src/ggml-quants.c (quantize_row_q4_0_ref and its like).
"""

import torch
from torch import Tensor

from llamita.kernels.bits import as_bytes, halves, negated
from llamita.kernels.block_format import Layout
from llamita.kernels.quantized_blocks import QuantizedBlocks

SIZE = 32


def blocks_of(weight: Tensor) -> Tensor:
    """Weights (N, K) in fp32, block by block: (N, blocks, 32)."""
    return weight.float().unflatten(-1, (-1, SIZE))


def inverse(scale: Tensor) -> Tensor:
    """1 / scale, or 0 for a scale of 0."""
    return torch.where(scale == 0, 0, 1 / scale)


def fit_symmetric(weight: Tensor, *, bits: int) -> QuantizedBlocks:
    """Steps on either side of 0, of which the weight farthest from it takes the lowest."""
    blocks, half = blocks_of(weight), 2 ** (bits - 1)
    # The first weight of each block that is farthest from 0, with its sign.
    scale = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)) / -half
    codes = (blocks * inverse(scale) + (half + 0.5)).trunc().clamp(0, 2 * half - 1)
    return symmetric_codes(codes.to(torch.uint8), as_bytes(scale.half()), bits=bits)


def fit_offset(weight: Tensor, *, bits: int) -> QuantizedBlocks:
    """Steps from the smallest weight of the block to the largest."""
    blocks, levels = blocks_of(weight), 2**bits - 1
    least = blocks.amin(-1, keepdim=True)
    scale = (blocks.amax(-1, keepdim=True) - least) / levels
    codes = ((blocks - least) * inverse(scale) + 0.5).trunc().clamp(0, levels)
    return offset_codes(codes.to(torch.uint8), torch.cat((scale, least), dim=-1).half(), bits=bits)


def symmetric_codes(codes: Tensor, scale: Tensor, *, bits: int) -> QuantizedBlocks:
    """codes: (N, blocks, 32); scale: the bytes of an fp16, (N, blocks, 2)."""
    return QuantizedBlocks(codes.flatten(-2), bits=bits, zero=2 ** (bits - 1), scale=halves(scale).flatten(-2))


def value_codes(layout: Layout, codes: Tensor, scale: Tensor) -> QuantizedBlocks:
    """codes: (N, K), which stand for the layout's values; scale: (N, K / 32)."""
    values = layout.values_on(codes.device)
    return QuantizedBlocks(codes, bits=layout.bits, zero=layout.zero, scale=scale, values=values)


def offset_codes(codes: Tensor, head: Tensor, *, bits: int) -> QuantizedBlocks:
    """head: fp16 (N, blocks, 2), scale and smallest weight; what is taken off is the latter's opposite."""
    scale, least = head.unbind(-1)
    codes = codes.flatten(-2)
    return QuantizedBlocks(codes, bits=bits, zero=0, scale=scale.contiguous(), minimum=negated(least.contiguous()))


def offset_head(codes: QuantizedBlocks) -> Tensor:
    """Scale and smallest weight as the four bytes (N, blocks, 4) of a file."""
    assert codes.minimum is not None
    return as_bytes(torch.stack((codes.scale, negated(codes.minimum)), dim=-1))
