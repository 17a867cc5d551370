"""Numbers smaller than a byte, halves as bytes, powers of two, and C's rounding."""

import torch
from torch import Tensor


def round_half_away(x: Tensor) -> Tensor:
    """Round to the nearest integer, halves away from zero, as C's roundf does (torch.round takes them to even)."""
    size = x.abs()
    whole = size.floor()
    return torch.copysign(whole + (2 * (size - whole)).floor(), x)


def halves(raw: Tensor) -> Tensor:
    """Little-endian bytes (..., 2n) as fp16 (..., n); cloned, as they may begin at an odd address."""
    return raw.clone(memory_format=torch.contiguous_format).view(torch.float16)


def as_bytes(values: Tensor) -> Tensor:
    """The bytes of a tensor, along its last axis; cloned, as a single column may count as contiguous at any stride."""
    return values.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def negated(half: Tensor) -> Tensor:
    """fp16 with the sign bit flipped: unlike a negation this keeps every NaN's bits, so that it undoes itself."""
    return (half.view(torch.int16) ^ -0x8000).view(torch.float16)


def split_nibbles(packed: Tensor) -> Tensor:
    """Bytes (..., n) as their low nibbles, then their high ones: (..., 2n)."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def join_nibbles(codes: Tensor) -> Tensor:
    """Codes (..., 2n) below 16 as bytes (..., n): the first half low, the second high."""
    low, high = codes.chunk(2, dim=-1)
    return low | high << 4


def powers_of_two(exponents: Tensor) -> Tensor:
    """2 to the power of integers from -149 to 127, in fp32, exact also below its normal numbers."""
    wide = exponents.to(torch.int32)
    small = torch.ones_like(wide) << (wide + 149).clamp(0, 22)
    return torch.where(wide < -126, small, (wide + 127) << 23).view(torch.float32)


def split_five_bits(packed: Tensor) -> Tensor:
    """Bytes (..., 20), a fifth bit for each weight and then the pairs of low ones, as codes (..., 32)."""
    fifth = (packed[..., :4, None] >> bit_shifts(8, 1, packed) & 1).flatten(-2)
    return split_nibbles(packed[..., 4:]) | fifth << 4


def join_five_bits(codes: Tensor) -> Tensor:
    """The inverse of split_five_bits."""
    fifth = ((codes >> 4).unflatten(-1, (4, 8)) << bit_shifts(8, 1, codes)).sum(-1, dtype=torch.uint8)
    return torch.cat((fifth, join_nibbles(codes & 15)), dim=-1)


def bit_shifts(count: int, width: int, like: Tensor) -> Tensor:
    """Shifts (count,) to fields of `width` bits, from the lowest."""
    return torch.arange(0, count * width, width, dtype=torch.uint8, device=like.device)
