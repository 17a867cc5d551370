"""Dot products of a block's columns with x: for each number of bits and instruction set the fastest exact method.

x is in -127..127. Sums begin with the correction for a format's zero, unless the method subtracts it from the codes.
"""

from typing import NamedTuple

from llamita.kernels.block_format import Layout
from llamita.kernels.cpu import dot_bytes
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.pieces import Builder, Value
from llamita.kernels.cpu.runtime.program import Inline, inline


class Dots(NamedTuple):
    """What a product with blocks is made of.

    begin(sum, zero): what products of columns are added to, where `sum` is the address of -x's sum and codes lie around
    two to the power `zero`. ready(word): what a word of codes becomes, once. Of `period` words (2, 4 or 8) products
    gather: gather = step(gather, word, x), which begins as open(total); then total = close(total, gather).
    """

    begin: Inline
    ready: Inline
    period: int
    open: Inline
    step: Inline
    close: Inline


@inline
def _zero_times_sum(at: int, zero: int) -> v.Vector:
    return v.shl(v.broadcast_word(at), zero)


@inline
def _no_sum(at: int, zero: int) -> v.Vector:
    return v.zero_words()


def _dot_s8s8(b: Builder, total: Value, weights: Value, x: Value) -> Value:
    emit = dot_bytes.DOT_S8S8.get(v.instructions().dot_u8s8, dot_bytes.dot_s8s8_in_integers)
    return emit(b, total, weights, x)


def _pair_products(b: Builder, codes: Value, x: Value) -> Value:
    return dot_bytes.pair_products(dot_bytes.PAIRS[v.instructions().dot_u8s8], b, codes, x)


def _add_up_pairs(b: Builder, total: Value, sums: Value) -> Value:
    return dot_bytes.add_up_pairs(dot_bytes.PAIRS[v.instructions().dot_u8s8], b, total, sums)


# Like simd.dot_u8s8, of signed bytes; the second are not -128.
dot_s8s8 = v.operation(v.Words(v.Words, v.Words, v.Words), _dot_s8s8)
# For instruction sets that multiply bytes in pairs, and codes of at most seven bits: two sums of 16 bits a lane.
pair_products = v.operation(v.Words(v.Words, v.Words), _pair_products)
add_pairs = v.operation(v.Words(v.Words, v.Words), dot_bytes.add_pairs)
add_up_pairs = v.operation(v.Words(v.Words, v.Words), _add_up_pairs)  # total + the two


@inline
def _as_it_is(word: v.Vector) -> v.Vector:
    return word


@inline
def _signed(word: v.Vector) -> v.Vector:
    """Codes around 128 as signed bytes."""
    return v.xor_words(word, 0x80808080)


@inline
def _total(total: v.Vector) -> v.Vector:
    return total


@inline
def _nothing(total: v.Vector) -> v.Vector:
    return v.zero_words()


@inline
def _add_unsigned(total: v.Vector, word: v.Vector, x: v.Vector) -> v.Vector:
    return v.dot_u8s8(total, word, x)


@inline
def _add_signed(total: v.Vector, word: v.Vector, x: v.Vector) -> v.Vector:
    return dot_s8s8(total, word, x)


@inline
def _add_pairs(pairs: v.Vector, word: v.Vector, x: v.Vector) -> v.Vector:
    return add_pairs(pairs, pair_products(word, x))


@inline
def _last(total: v.Vector, gather: v.Vector) -> v.Vector:
    return gather


@inline
def _add_up(total: v.Vector, pairs: v.Vector) -> v.Vector:
    return add_up_pairs(total, pairs)


UNSIGNED = Dots(_zero_times_sum, _as_it_is, 8, _total, _add_unsigned, _last)
SIGNED = Dots(_no_sum, _signed, 8, _total, _add_signed, _last)
# Pairs of products with x gather in 16 bits: 8 * 2 * 15 * 127, 4 * 2 * 31 * 127 and 2 * 2 * 63 * 127 are below 2**15.
BY_PAIRS: dict[int, Dots] = {
    4: Dots(_zero_times_sum, _as_it_is, 8, _nothing, _add_pairs, _add_up),
    5: Dots(_zero_times_sum, _as_it_is, 4, _nothing, _add_pairs, _add_up),
    6: Dots(_zero_times_sum, _as_it_is, 2, _nothing, _add_pairs, _add_up),
}


def dots_of(layout: Layout) -> Dots:
    """The way for a format."""
    way, bits = v.instructions().dot_u8s8, layout.byte_bits
    if bits == 8 and layout.zero_bits == 7 and way in dot_bytes.DOT_S8S8:
        return SIGNED
    return BY_PAIRS.get(bits, UNSIGNED) if way in dot_bytes.PAIRS else UNSIGNED


def sixteen_columns(dots: Dots) -> Inline:
    """A function that adds four ready words times one row of x, at an address, to a total."""
    _, _, period, begin, step, close = dots

    @inline
    def four(total, a, b, c, d, x):
        pairs = step(step(begin(total), a, v.broadcast_word(x)), b, v.broadcast_word(x + 4))
        if period == 2:
            total = close(total, pairs)
            pairs = begin(total)
        return close(total, step(step(pairs, c, v.broadcast_word(x + 8)), d, v.broadcast_word(x + 12)))

    return four
