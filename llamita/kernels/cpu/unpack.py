"""Packed blocks into registers: what the `unpack` functions of the formats share.

Eight words of codes, each of four columns of sixteen rows, a byte a code; `packed_layout` says how they lie in memory.
"""

from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.lookup import lookup
from llamita.kernels.cpu.runtime.program import inline

Words = tuple[v.Vector, ...]


@inline
def unpack_bytes(at: int) -> Words:
    """Eight words of 8-bit codes."""
    return (
        v.load_words(at), v.load_words(at + 64), v.load_words(at + 128), v.load_words(at + 192),
        v.load_words(at + 256), v.load_words(at + 320), v.load_words(at + 384), v.load_words(at + 448),
    )  # fmt: skip


@inline
def unpack_nibbles(at: int) -> Words:
    """Eight words of 4-bit codes."""
    a, b, c, d = v.load_words(at), v.load_words(at + 64), v.load_words(at + 128), v.load_words(at + 192)
    low = 0x0F0F0F0F
    return (
        v.extract_bits(a, 0, low), v.extract_bits(b, 0, low), v.extract_bits(c, 0, low), v.extract_bits(d, 0, low),
        v.extract_bits(a, 4, low), v.extract_bits(b, 4, low), v.extract_bits(c, 4, low), v.extract_bits(d, 4, low),
    )  # fmt: skip


@inline
def unpack_fifth_bits(words: Words, at: int) -> Words:
    """The words with the fifth bits that stand in one word."""
    high, one = v.load_words(at), 0x01010101
    a, b, c, d, e, f, g, h = words
    return (
        v.or_words(a, v.shl(v.extract_bits(high, 0, one), 4)), v.or_words(b, v.shl(v.extract_bits(high, 1, one), 4)),
        v.or_words(c, v.shl(v.extract_bits(high, 2, one), 4)), v.or_words(d, v.shl(v.extract_bits(high, 3, one), 4)),
        v.or_words(e, v.shl(v.extract_bits(high, 4, one), 4)), v.or_words(f, v.shl(v.extract_bits(high, 5, one), 4)),
        v.or_words(g, v.shl(v.extract_bits(high, 6, one), 4)), v.or_words(h, v.shl(v.extract_bits(high, 7, one), 4)),
    )  # fmt: skip


@inline
def unpack_sixth_bits(words: Words, at: int) -> Words:
    """The words with the fifth and sixth bits that stand in two words."""
    low, high, two = v.load_words(at), v.load_words(at + 64), 0x03030303
    a, b, c, d, e, f, g, h = words
    return (
        v.or_words(a, v.shl(v.extract_bits(low, 0, two), 4)), v.or_words(b, v.shl(v.extract_bits(low, 2, two), 4)),
        v.or_words(c, v.shl(v.extract_bits(low, 4, two), 4)), v.or_words(d, v.shl(v.extract_bits(low, 6, two), 4)),
        v.or_words(e, v.shl(v.extract_bits(high, 0, two), 4)), v.or_words(f, v.shl(v.extract_bits(high, 2, two), 4)),
        v.or_words(g, v.shl(v.extract_bits(high, 4, two), 4)), v.or_words(h, v.shl(v.extract_bits(high, 6, two), 4)),
    )  # fmt: skip


@inline
def unpack_values(words: Words, low: int, high: int) -> Words:
    """The words with each code replaced by its byte in a table of sixteen, as `Layout.table` has it."""
    a, b, c, d, e, f, g, h = words
    return (
        lookup(a, low, high), lookup(b, low, high), lookup(c, low, high), lookup(d, low, high),
        lookup(e, low, high), lookup(f, low, high), lookup(g, low, high), lookup(h, low, high),
    )  # fmt: skip


@inline
def unpack_k_scales(head: int, at: int) -> tuple[v.Vector, v.Vector]:
    """Scale times sub-scale, and minimum times sub-minimum."""
    scale = v.mul(v.load_fp16(head), v.to_fp32(v.load_uint8(at)))
    return scale, v.mul(v.load_fp16(head + 32), v.to_fp32(v.load_uint8(at + 16)))
