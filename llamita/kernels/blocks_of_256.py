"""What ggml's K-quants share: blocks of 256 weights, one fp16 scale each, times integers for 32 or 16 weights."""

import torch
from torch import Tensor

from llamita.kernels import block_search
from llamita.kernels.bits import as_bytes
from llamita.kernels.quantized_blocks import QuantizedBlocks

SIZE = 256


def fit_offset(weight: Tensor, *, bits: int, first: float, tries: int) -> QuantizedBlocks:
    """Steps above a minimum, tried at several widths around the range of each 32 weights (Q4_K, Q5_K)."""
    blocks = weight.float().view(-1, SIZE)
    codes, head, *factors = block_search.offset_blocks(blocks, levels=2**bits - 1, first=first, tries=tries)
    rows = weight.shape[0]
    sub_scale, sub_minimum = (factor.view(rows, -1) for factor in factors)
    return offset_codes(codes.view(rows, -1), head.view(rows, -1, 2), sub_scale, sub_minimum, bits=bits)


def offset_codes(codes: Tensor, head: Tensor, sub_scale: Tensor, sub_minimum: Tensor, *, bits: int) -> QuantizedBlocks:
    """head: fp16 (N, blocks, 2), scale and minimum."""
    scale, minimum = (half.contiguous() for half in head.unbind(-1))
    return QuantizedBlocks(
        codes, bits=bits, zero=0, scale=scale, minimum=minimum, sub_scale=sub_scale, sub_minimum=sub_minimum
    )


def offset_head(codes: QuantizedBlocks) -> Tensor:
    """Scale and minimum as the four bytes (N, blocks, 4) of a file."""
    assert codes.minimum is not None
    return as_bytes(torch.stack((codes.scale, codes.minimum), dim=-1))


def split_factors(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes (N, blocks, 12) as eight scales and eight minima of 6 bits a block: two of (N, 8 * blocks).

    The first eight bytes hold the first four of each, and in their top bits those of the last four, whose low bits
    are the last four bytes.
    """
    scales, minima, low = packed.unflatten(-1, (3, 4)).unbind(-2)
    late_scales = low & 15 | (scales >> 6) << 4
    late_minima = low >> 4 | (minima >> 6) << 4
    all_scales = torch.cat((scales & 63, late_scales), dim=-1).flatten(-2)
    return all_scales, torch.cat((minima & 63, late_minima), dim=-1).flatten(-2)


def join_factors(codes: QuantizedBlocks) -> Tensor:
    """The inverse of split_factors."""
    assert codes.sub_scale is not None
    assert codes.sub_minimum is not None
    scales, late_scales = codes.sub_scale.unflatten(-1, (-1, 2, 4)).unbind(-2)
    minima, late_minima = codes.sub_minimum.unflatten(-1, (-1, 2, 4)).unbind(-2)
    tops = (scales | (late_scales >> 4) << 6, minima | (late_minima >> 4) << 6)
    return torch.cat((*tops, late_scales & 15 | (late_minima & 15) << 4), dim=-1)
