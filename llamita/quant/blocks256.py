"""Blocks of 256 weights: Q4_K, Q5_K, Q6_K. One fp16 scale a block, sharpened by integers for 32 or 16 weights.

Each format is three functions: fit (weights -> codes), read (bytes -> codes), write (codes -> bytes).
Bytes and roundings are those of ggml/src/ggml-quants.c (quantize_row_q4_K_ref and its like).
"""

import torch
from torch import Tensor

from llamita.kernels.codes import Codes
from llamita.quant import search
from llamita.quant.bits import as_bytes, halves, join_nibbles, split_nibbles

SIZE = 256
FACTORS = 12  # bytes that hold the 6-bit scales and minima of Q4_K and Q5_K


def fit_q4_k(weight: Tensor) -> Codes:
    """Sixteen steps, tried at 21 widths from -1 to +1 step around the range of each 32 weights."""
    return _with_minimum(weight, bits=4, first=-1.0, tries=21)


def fit_q5_k(weight: Tensor) -> Codes:
    """32 steps, tried at 16 widths from -0.5 to +1 step around the range of each 32 weights."""
    return _with_minimum(weight, bits=5, first=-0.5, tries=16)


def fit_q6_k(weight: Tensor) -> Codes:
    """64 steps, tried at 19 widths from -0.9 to +0.9 steps around the largest of each 16 weights."""
    codes, scale, sub_scale = search.symmetric_blocks(weight.float().view(-1, SIZE))
    rows = weight.shape[0]
    return _symmetric_codes(codes.view(rows, -1), scale.view(rows, -1), sub_scale.view(rows, -1))


def _with_minimum(weight: Tensor, *, bits: int, first: float, tries: int) -> Codes:
    blocks = weight.float().view(-1, SIZE)
    codes, head, *factors = search.offset_blocks(blocks, levels=2**bits - 1, first=first, tries=tries)
    rows = weight.shape[0]
    sub_scale, sub_minimum = (factor.view(rows, -1) for factor in factors)
    return _offset_codes(codes.view(rows, -1), head.view(rows, -1, 2), sub_scale, sub_minimum, bits=bits)


def read_q4_k(raw: Tensor) -> Codes:
    """144 bytes: scale, minimum, 12 of factors, 4 times 32 pairs of codes."""
    blocks = raw.unflatten(-1, (-1, 144))
    codes = split_nibbles(blocks[..., 16:].unflatten(-1, (4, 32)))
    factors = _split_factors(blocks[..., 4:16])
    return _offset_codes(codes.flatten(-3), halves(blocks[..., :4]), *factors, bits=4)


def write_q4_k(codes: Codes) -> Tensor:
    """The inverse of read_q4_k."""
    pairs = join_nibbles(codes.codes.unflatten(-1, (-1, 4, 64))).flatten(-2)
    return torch.cat((_head(codes), _join_factors(codes), pairs), dim=-1).flatten(-2)


def read_q5_k(raw: Tensor) -> Codes:
    """176 bytes: scale, minimum, 12 of factors, 32 of fifth bits, 4 times 32 pairs of low codes."""
    blocks = raw.unflatten(-1, (-1, 176))
    low = split_nibbles(blocks[..., 48:].unflatten(-1, (4, 32))).unflatten(-1, (2, 32)).flatten(-3, -2)
    fifth = blocks[..., None, 16:48] >> _bit_places(8, 1, raw) & 1  # (N, blocks, 8, 32)
    factors = _split_factors(blocks[..., 4:16])
    return _offset_codes((low | fifth << 4).flatten(-3), halves(blocks[..., :4]), *factors, bits=5)


def write_q5_k(codes: Codes) -> Tensor:
    """The inverse of read_q5_k."""
    groups = codes.codes.unflatten(-1, (-1, 8, 32))
    fifth = ((groups >> 4) << _bit_places(8, 1, groups)).sum(-2, dtype=torch.uint8)
    pairs = join_nibbles((groups & 15).flatten(-2).unflatten(-1, (4, 64))).flatten(-2)
    return torch.cat((_head(codes), _join_factors(codes), fifth, pairs), dim=-1).flatten(-2)


def read_q6_k(raw: Tensor) -> Codes:
    """210 bytes: 128 of low nibbles, 64 of high pairs of bits, 16 signed factors, scale; twice 128 weights."""
    blocks = raw.unflatten(-1, (-1, 210))
    low = split_nibbles(blocks[..., :128].unflatten(-1, (2, 64))).unflatten(-1, (4, 32))
    high = blocks[..., 128:192].unflatten(-1, (2, 1, 32)) >> _bit_places(4, 2, raw) & 3  # (N, blocks, 2, 4, 32)
    factors = blocks[..., 192:208].contiguous().view(torch.int8).flatten(-2)
    return _symmetric_codes((low | high << 4).flatten(-4), halves(blocks[..., 208:]).flatten(-2), factors)


def write_q6_k(codes: Codes) -> Tensor:
    """The inverse of read_q6_k."""
    assert codes.sub_scale is not None
    groups = codes.codes.unflatten(-1, (-1, 2, 4, 32))
    low = join_nibbles((groups & 15).flatten(-2)).flatten(-2)
    high = ((groups >> 4) << _bit_places(4, 2, groups)).sum(-2, dtype=torch.uint8).flatten(-2)
    factors = as_bytes(codes.sub_scale.unflatten(-1, (-1, 16)))
    return torch.cat((low, high, factors, as_bytes(codes.scale[..., None])), dim=-1).flatten(-2)


def _bit_places(count: int, width: int, like: Tensor) -> Tensor:
    """Shifts (count, 1) to fields of `width` bits."""
    return torch.arange(0, count * width, width, dtype=torch.uint8, device=like.device)[:, None]


def _offset_codes(codes: Tensor, head: Tensor, sub_scale: Tensor, sub_minimum: Tensor, *, bits: int) -> Codes:
    """head: fp16 (N, blocks, 2), scale and minimum."""
    scale, minimum = (half.contiguous() for half in head.unbind(-1))
    return Codes(codes, bits=bits, zero=0, scale=scale, minimum=minimum, sub_scale=sub_scale, sub_minimum=sub_minimum)


def _symmetric_codes(codes: Tensor, scale: Tensor, sub_scale: Tensor) -> Codes:
    return Codes(codes, bits=6, zero=32, scale=scale, sub_scale=sub_scale)


def _head(codes: Codes) -> Tensor:
    assert codes.minimum is not None
    return as_bytes(torch.stack((codes.scale, codes.minimum), dim=-1))


def _split_factors(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes (N, blocks, 12) as eight scales and eight minima of 6 bits a block: two of (N, 8 * blocks).

    The first eight bytes hold the first four of each, and in their top bits those of the last four, whose low bits
    are the last four bytes.
    """
    scales, minima, low = packed.unflatten(-1, (3, 4)).unbind(-2)
    late_scales = low & 15 | (scales >> 6) << 4
    late_minima = low >> 4 | (minima >> 6) << 4
    all_scales = torch.cat((scales & 63, late_scales), dim=-1).flatten(-2)
    return all_scales, torch.cat((minima & 63, late_minima), dim=-1).flatten(-2)


def _join_factors(codes: Codes) -> Tensor:
    """The inverse of _split_factors."""
    assert codes.sub_scale is not None
    assert codes.sub_minimum is not None
    scales, late_scales = codes.sub_scale.unflatten(-1, (-1, 2, 4)).unbind(-2)
    minima, late_minima = codes.sub_minimum.unflatten(-1, (-1, 2, 4)).unbind(-2)
    tops = (scales | (late_scales >> 4) << 6, minima | (late_minima >> 4) << 6)
    return torch.cat((*tops, late_scales & 15 | (late_minima & 15) << 4), dim=-1)
