"""Blocks of 32 weights: Q8_0, Q4_0, Q4_1. One fp16 scale a block, for Q4_1 also its smallest weight.

Each format is three functions: fit (weights -> codes), read (bytes -> codes), write (codes -> bytes).
Bytes and roundings are those of ggml/src/ggml-quants.c (quantize_row_q8_0_ref and its like).
"""

import torch
from torch import Tensor

from llamita.kernels.codes import Codes
from llamita.quant.bits import as_bytes, halves, join_nibbles, negated, round_half_away, split_nibbles

SIZE = 32


def _blocks(weight: Tensor) -> Tensor:
    return weight.float().unflatten(-1, (-1, SIZE))  # (N, blocks, 32)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0, 1 / scale)


def _extreme(blocks: Tensor) -> Tensor:
    """The first weight of each block that is farthest from 0, with its sign: (N, blocks, 1)."""
    return blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))


def fit_q8_0(weight: Tensor) -> Codes:
    """127 steps on either side of 0."""
    blocks = _blocks(weight)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    codes = round_half_away(blocks * _inverse(scale)) + 128
    return Codes(codes.to(torch.uint8).flatten(-2), bits=8, zero=128, scale=scale.half().flatten(-2))


def read_q8_0(raw: Tensor) -> Codes:
    """34 bytes: scale, 32 signed codes."""
    blocks = raw.unflatten(-1, (-1, 34))
    return Codes((blocks[..., 2:] ^ 128).flatten(-2), bits=8, zero=128, scale=halves(blocks[..., :2]).flatten(-2))


def write_q8_0(codes: Codes) -> Tensor:
    """The inverse of read_q8_0."""
    signed = codes.codes.unflatten(-1, (-1, SIZE)) ^ 128
    return torch.cat((as_bytes(codes.scale[..., None]), signed), dim=-1).flatten(-2)


def fit_q4_0(weight: Tensor) -> Codes:
    """Sixteen steps, of which the weight farthest from 0 takes the lowest: -8."""
    blocks = _blocks(weight)
    scale = _extreme(blocks) / -8
    codes = (blocks * _inverse(scale) + 8.5).trunc().clamp(0, 15)
    return Codes(codes.to(torch.uint8).flatten(-2), bits=4, zero=8, scale=scale.half().flatten(-2))


def read_q4_0(raw: Tensor) -> Codes:
    """18 bytes: scale, 16 pairs of codes."""
    blocks = raw.unflatten(-1, (-1, 18))
    codes = split_nibbles(blocks[..., 2:]).flatten(-2)
    return Codes(codes, bits=4, zero=8, scale=halves(blocks[..., :2]).flatten(-2))


def write_q4_0(codes: Codes) -> Tensor:
    """The inverse of read_q4_0."""
    pairs = join_nibbles(codes.codes.unflatten(-1, (-1, SIZE)))
    return torch.cat((as_bytes(codes.scale[..., None]), pairs), dim=-1).flatten(-2)


def fit_q4_1(weight: Tensor) -> Codes:
    """Sixteen steps from the smallest weight of the block to the largest."""
    blocks = _blocks(weight)
    least = blocks.amin(-1, keepdim=True)
    scale = (blocks.amax(-1, keepdim=True) - least) / 15
    codes = ((blocks - least) * _inverse(scale) + 0.5).trunc().clamp(0, 15)
    return _offset_codes(codes.to(torch.uint8).flatten(-2), torch.cat((scale, least), dim=-1).half())


def read_q4_1(raw: Tensor) -> Codes:
    """20 bytes: scale, smallest weight, 16 pairs of codes."""
    blocks = raw.unflatten(-1, (-1, 20))
    return _offset_codes(split_nibbles(blocks[..., 4:]).flatten(-2), halves(blocks[..., :4]))


def write_q4_1(codes: Codes) -> Tensor:
    """The inverse of read_q4_1."""
    assert codes.minimum is not None
    head = torch.stack((codes.scale, negated(codes.minimum)), dim=-1)
    pairs = join_nibbles(codes.codes.unflatten(-1, (-1, SIZE)))
    return torch.cat((as_bytes(head), pairs), dim=-1).flatten(-2)


def _offset_codes(codes: Tensor, head: Tensor) -> Codes:
    """head: fp16 (N, blocks, 2), scale and smallest weight; what is taken off is the latter's opposite."""
    scale, least = head.unbind(-1)
    return Codes(codes, bits=4, zero=0, scale=scale.contiguous(), minimum=negated(least.contiguous()))
