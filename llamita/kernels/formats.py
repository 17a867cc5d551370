"""GGML's block formats as kernels work with them: how a block is opened, and how its products are added.

`open_...(tile, block)` gives a block's eight words of codes, each four columns of sixteen rows, and two vectors of
scales. The second are minima, or the scales of the last sixteen columns, or nothing, and so there are three ways to
`add_...` the dot products of the words with a record of x (see `elementwise`) to the sums so far.
"""

from typing import Any

from llamita.kernels import simd as v
from llamita.kernels.program import part

Part = Any  # a function that is compiled into a kernel
Opened = tuple[tuple[v.Vector, ...], v.Vector, v.Vector]


@part
def _eight(at):
    """Eight words of 8-bit codes."""
    return (
        v.load_words(at), v.load_words(at + 64), v.load_words(at + 128), v.load_words(at + 192),
        v.load_words(at + 256), v.load_words(at + 320), v.load_words(at + 384), v.load_words(at + 448),
    )  # fmt: skip


@part
def _halves(at):
    """Eight words of 4-bit codes."""
    a, b, c, d = v.load_words(at), v.load_words(at + 64), v.load_words(at + 128), v.load_words(at + 192)
    low = 0x0F0F0F0F
    return (
        v.bits(a, 0, low), v.bits(b, 0, low), v.bits(c, 0, low), v.bits(d, 0, low),
        v.bits(a, 4, low), v.bits(b, 4, low), v.bits(c, 4, low), v.bits(d, 4, low),
    )  # fmt: skip


@part
def _fifth(words, at):
    """The words with their fifth bits."""
    high, one = v.load_words(at), 0x01010101
    a, b, c, d, e, f, g, h = words
    return (
        v.join(a, v.shifted(v.bits(high, 0, one), 4)), v.join(b, v.shifted(v.bits(high, 1, one), 4)),
        v.join(c, v.shifted(v.bits(high, 2, one), 4)), v.join(d, v.shifted(v.bits(high, 3, one), 4)),
        v.join(e, v.shifted(v.bits(high, 4, one), 4)), v.join(f, v.shifted(v.bits(high, 5, one), 4)),
        v.join(g, v.shifted(v.bits(high, 6, one), 4)), v.join(h, v.shifted(v.bits(high, 7, one), 4)),
    )  # fmt: skip


@part
def _sixth(words, at):
    """The words with their fifth and sixth bits."""
    low, high, two = v.load_words(at), v.load_words(at + 64), 0x03030303
    a, b, c, d, e, f, g, h = words
    return (
        v.join(a, v.shifted(v.bits(low, 0, two), 4)), v.join(b, v.shifted(v.bits(low, 2, two), 4)),
        v.join(c, v.shifted(v.bits(low, 4, two), 4)), v.join(d, v.shifted(v.bits(low, 6, two), 4)),
        v.join(e, v.shifted(v.bits(high, 0, two), 4)), v.join(f, v.shifted(v.bits(high, 2, two), 4)),
        v.join(g, v.shifted(v.bits(high, 4, two), 4)), v.join(h, v.shifted(v.bits(high, 6, two), 4)),
    )  # fmt: skip


@part
def open_q8_0(tile: int, block: int) -> Opened:
    """Sixteen scales and 512 bytes of codes."""
    at = tile + block * 544
    scale = v.load_fp16(at)
    return _eight(at + 32), scale, scale


@part
def open_q4_0(tile: int, block: int) -> Opened:
    """Sixteen scales and 256 bytes of codes."""
    at = tile + block * 288
    scale = v.load_fp16(at)
    return _halves(at + 32), scale, scale


@part
def open_q4_1(tile: int, block: int) -> Opened:
    """Scales, minima, codes."""
    at = tile + block * 320
    return _halves(at + 64), v.load_fp16(at), v.load_fp16(at + 32)


@part
def open_q5_0(tile: int, block: int) -> Opened:
    """Scales, codes, fifth bits."""
    at = tile + block * 352
    scale = v.load_fp16(at)
    return _fifth(_halves(at + 32), at + 288), scale, scale


@part
def open_q5_1(tile: int, block: int) -> Opened:
    """Scales, minima, codes, fifth bits."""
    at = tile + block * 384
    return _fifth(_halves(at + 64), at + 320), v.load_fp16(at), v.load_fp16(at + 32)


@part
def _k_scales(head, at):
    """Scale times sub-scale, minimum times sub-minimum."""
    scale = v.times(v.load_fp16(head), v.as_floats(v.load_bytes(at)))
    return scale, v.times(v.load_fp16(head + 32), v.as_floats(v.load_bytes(at + 16)))


@part
def open_q4_k(tile: int, block: int) -> Opened:
    """Eight blocks behind one head of scales and minima."""
    head = tile + (block >> 3) * 2368
    at = head + 64 + (block & 7) * 288
    scale, minimum = _k_scales(head, at)
    return _halves(at + 32), scale, minimum


@part
def open_q5_k(tile: int, block: int) -> Opened:
    """The same with a word of fifth bits."""
    head = tile + (block >> 3) * 2880
    at = head + 64 + (block & 7) * 352
    scale, minimum = _k_scales(head, at)
    return _fifth(_halves(at + 32), at + 288), scale, minimum


@part
def open_q6_k(tile: int, block: int) -> Opened:
    """Two signed sub-scales, and two words of high bits."""
    head = tile + (block >> 3) * 3360
    at = head + 32 + (block & 7) * 416
    scale = v.load_fp16(head)
    first = v.times(scale, v.as_floats(v.load_chars(at)))
    return _sixth(_halves(at + 32), at + 288), first, v.times(scale, v.as_floats(v.load_chars(at + 16)))


@part
def add_centred(dot: v.Vector, _: v.Vector, x: int, scale: v.Vector, second: v.Vector, total: v.Vector) -> v.Vector:
    """Codes around a zero, which the dot takes into account."""
    return v.multiply_add(v.times(v.as_floats(dot), v.spread(v.read_fp32(x + 32))), scale, total)


@part
def add_above(dot: v.Vector, _: v.Vector, x: int, scale: v.Vector, minimum: v.Vector, total: v.Vector) -> v.Vector:
    """Codes above a minimum."""
    below = v.times(v.as_floats(v.load_everywhere(x + 44)), minimum)
    return v.multiply_add(v.multiply_add(v.as_floats(dot), scale, below), v.spread(v.read_fp32(x + 32)), total)


@part
def add_halves(low: v.Vector, high: v.Vector, x: int, first: v.Vector, second: v.Vector, total: v.Vector) -> v.Vector:
    """Codes around a zero, with a dot and a scale for either half of the columns."""
    both = v.multiply_add(v.as_floats(high), second, v.times(v.as_floats(low), first))
    return v.multiply_add(both, v.spread(v.read_fp32(x + 32)), total)
