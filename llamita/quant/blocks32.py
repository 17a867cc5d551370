"""Blocks of 32 weights: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1. One fp16 scale a block, for those in _1 also its smallest weight.

Each format is three functions: fit (weights -> codes), read (bytes -> codes), write (codes -> bytes).
Bytes and roundings are those of ggml/src/ggml-quants.c (quantize_row_q8_0_ref and its like).
"""

import torch
from torch import Tensor

from llamita.kernels.codes import Codes
from llamita.quant.bits import as_bytes, halves, join_nibbles, negated, round_half_away, split_nibbles

SIZE = 32


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
    return _fit_symmetric(weight, bits=4)


def read_q4_0(raw: Tensor) -> Codes:
    """18 bytes: scale, 16 pairs of codes."""
    blocks = raw.unflatten(-1, (-1, 18))
    return _symmetric_codes(split_nibbles(blocks[..., 2:]), blocks[..., :2], bits=4)


def write_q4_0(codes: Codes) -> Tensor:
    """The inverse of read_q4_0."""
    pairs = join_nibbles(codes.codes.unflatten(-1, (-1, SIZE)))
    return torch.cat((as_bytes(codes.scale[..., None]), pairs), dim=-1).flatten(-2)


def fit_q5_0(weight: Tensor) -> Codes:
    """32 steps, of which the weight farthest from 0 takes the lowest: -16."""
    return _fit_symmetric(weight, bits=5)


def read_q5_0(raw: Tensor) -> Codes:
    """22 bytes: scale, 32 fifth bits, 16 pairs of low codes."""
    blocks = raw.unflatten(-1, (-1, 22))
    return _symmetric_codes(_five_bits(blocks[..., 2:]), blocks[..., :2], bits=5)


def write_q5_0(codes: Codes) -> Tensor:
    """The inverse of read_q5_0."""
    return torch.cat((as_bytes(codes.scale[..., None]), _written_five_bits(codes)), dim=-1).flatten(-2)


def fit_q4_1(weight: Tensor) -> Codes:
    """Sixteen steps from the smallest weight of the block to the largest."""
    return _fit_offset(weight, bits=4)


def read_q4_1(raw: Tensor) -> Codes:
    """20 bytes: scale, smallest weight, 16 pairs of codes."""
    blocks = raw.unflatten(-1, (-1, 20))
    return _offset_codes(split_nibbles(blocks[..., 4:]), halves(blocks[..., :4]), bits=4)


def write_q4_1(codes: Codes) -> Tensor:
    """The inverse of read_q4_1."""
    pairs = join_nibbles(codes.codes.unflatten(-1, (-1, SIZE)))
    return torch.cat((_offset_head(codes), pairs), dim=-1).flatten(-2)


def fit_q5_1(weight: Tensor) -> Codes:
    """32 steps from the smallest weight of the block to the largest."""
    return _fit_offset(weight, bits=5)


def read_q5_1(raw: Tensor) -> Codes:
    """24 bytes: scale, smallest weight, 32 fifth bits, 16 pairs of low codes."""
    blocks = raw.unflatten(-1, (-1, 24))
    return _offset_codes(_five_bits(blocks[..., 4:]), halves(blocks[..., :4]), bits=5)


def write_q5_1(codes: Codes) -> Tensor:
    """The inverse of read_q5_1."""
    return torch.cat((_offset_head(codes), _written_five_bits(codes)), dim=-1).flatten(-2)


def _blocks(weight: Tensor) -> Tensor:
    return weight.float().unflatten(-1, (-1, SIZE))  # (N, blocks, 32)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0, 1 / scale)


def _fit_symmetric(weight: Tensor, *, bits: int) -> Codes:
    blocks, half = _blocks(weight), 2 ** (bits - 1)
    # The first weight of each block that is farthest from 0, with its sign.
    scale = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)) / -half
    codes = (blocks * _inverse(scale) + (half + 0.5)).trunc().clamp(0, 2 * half - 1)
    return _symmetric_codes(codes.to(torch.uint8), as_bytes(scale.half()), bits=bits)


def _fit_offset(weight: Tensor, *, bits: int) -> Codes:
    blocks, levels = _blocks(weight), 2**bits - 1
    least = blocks.amin(-1, keepdim=True)
    scale = (blocks.amax(-1, keepdim=True) - least) / levels
    codes = ((blocks - least) * _inverse(scale) + 0.5).trunc().clamp(0, levels)
    return _offset_codes(codes.to(torch.uint8), torch.cat((scale, least), dim=-1).half(), bits=bits)


def _symmetric_codes(codes: Tensor, scale: Tensor, *, bits: int) -> Codes:
    """codes: (N, blocks, 32); scale: the bytes of an fp16, (N, blocks, 2)."""
    return Codes(codes.flatten(-2), bits=bits, zero=2 ** (bits - 1), scale=halves(scale).flatten(-2))


def _offset_codes(codes: Tensor, head: Tensor, *, bits: int) -> Codes:
    """head: fp16 (N, blocks, 2), scale and smallest weight; what is taken off is the latter's opposite."""
    scale, least = head.unbind(-1)
    codes = codes.flatten(-2)
    return Codes(codes, bits=bits, zero=0, scale=scale.contiguous(), minimum=negated(least.contiguous()))


def _offset_head(codes: Codes) -> Tensor:
    assert codes.minimum is not None
    return as_bytes(torch.stack((codes.scale, negated(codes.minimum)), dim=-1))


def _five_bits(packed: Tensor) -> Tensor:
    """Bytes (N, blocks, 20), a fifth bit for each weight and then the pairs of low ones, as codes (N, blocks, 32)."""
    fifth = (packed[..., :4, None] >> _places(packed) & 1).flatten(-2)
    return split_nibbles(packed[..., 4:]) | fifth << 4


def _written_five_bits(codes: Codes) -> Tensor:
    """The inverse of _five_bits."""
    blocks = codes.codes.unflatten(-1, (-1, SIZE))
    fifth = ((blocks >> 4).unflatten(-1, (4, 8)) << _places(blocks)).sum(-1, dtype=torch.uint8)
    return torch.cat((fifth, join_nibbles(blocks & 15)), dim=-1)


def _places(like: Tensor) -> Tensor:
    """The eight bits of a byte, from the lowest."""
    return torch.arange(8, dtype=torch.uint8, device=like.device)
