"""Blocks of queries and keys of whole sequences: what attention in training is made of, forward and backward.

All products are tiles of eight rows by 32 columns, whose left side is broadcast and whose right side is read in
vectors. In pairs, for a processor with bf16 dot products, two elements lie in each word, and sums are still fp32.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.accumulators import (
    Eight,
    add_columns,
    add_products,
    load_eight_apart,
    no_eight,
    store_eight_apart,
)
from llamita.kernels.cpu.constants import QUERIES
from llamita.kernels.cpu.runtime.program import inline

TILE_ROWS = 8
FLOATS = 4 * QUERIES  # bytes of an fp32 for each query
HALVES = 2 * QUERIES


@inline
def multiply(
    is_paired: bool, left: int, row: int, step: int, right: int, apart: int, next: int, count: int,
    sums: tuple[Eight, Eight],
) -> tuple[Eight, Eight]:  # fmt: skip
    """Add to two times eight vectors the products of `count` words.

    left: of eight rows, `row` bytes apart, words `step` bytes apart. right: vectors `next` bytes apart, and the second
    ones `apart` bytes on.
    """
    one, two = sums
    if is_paired:  # sixteen sums fit into the registers of every machine that has these products
        for i in range(count):
            one = add_products(one, v.load_words(right + i * next), left + i * step, row)
            two = add_products(two, v.load_words(right + apart + i * next), left + i * step, row)
        return one, two
    for i in range(count):
        one = add_columns(one, v.load(right + i * next), left + i * step, row)
    for i in range(count):
        two = add_columns(two, v.load(right + apart + i * next), left + i * step, row)
    return one, two


@inline
def score(is_paired: bool, rows: int, columns: int, width: int, count: int, out: int) -> None:
    """Products of `count` rows (H,) and 32 columns (2, H, 16): fp32 (count, 32)."""
    words = width // 2 if is_paired else width
    for i in range(0, count, TILE_ROWS):
        sums = no_eight(), no_eight()
        one, two = multiply(is_paired, rows + 4 * words * i, 4 * words, 4, columns, 64 * words, 64, words, sums)
        store_eight_apart(out + FLOATS * i, FLOATS, one)
        store_eight_apart(out + FLOATS * i + 64, FLOATS, two)


@inline
def add_product(
    is_paired: bool, left: int, row: int, step: int, right: int, count: int, rows: int, width: int, sums: int
) -> None:
    """Add to sums fp32 (rows, H) the products of words (rows, count) with (count, H)."""
    for i in range(0, rows, TILE_ROWS):
        for column in range(0, 4 * width, 128):
            to = sums + 4 * width * i + column
            held = load_eight_apart(to, 4 * width), load_eight_apart(to + 64, 4 * width)
            one, two = multiply(is_paired, left + row * i, row, step, right + column, 64, 4 * width, count, held)
            store_eight_apart(to, 4 * width, one)
            store_eight_apart(to + 64, 4 * width, two)


@inline
def copy_rows(dtype: int, is_paired: bool, x: int, step: int, count: int, rows: int, width: int, to: int) -> None:
    """The first `count` rows (H,), `step` bytes apart, as they are or in fp32, one after the other; then rows of 0."""
    for row in range(rows):
        at = x + step * row
        for i in range(0, width, 32):
            one = two = v.zero_fp32()
            if row < count:
                if is_paired:
                    one = v.load(at + 2 * i)
                else:
                    one, two = e.wide(dtype, at, i), e.wide(dtype, at, i + 16)
            v.store(to, one)
            to += 64
            if not is_paired:
                v.store(to, two)
                to += 64


@inline
def pair_rows(x: int, rows: int, width: int, to: int) -> None:
    """Rows bf16 (rows, H) as words (rows/2, H) of two rows."""
    for _ in range(0, rows, 2):
        for i in range(0, 2 * width, 32):
            low, high = v.load_uint16(x + i), v.load_uint16(x + 2 * width + i)
            v.store_words(to + 2 * i, v.or_words(low, v.shl(high, 16)))
        x += 4 * width
        to += 4 * width


@inline
def transpose_rows(x: int, words: int, to: int) -> None:
    """Rows of words (32, words) as columns (2, words, 16)."""
    for half in range(2):
        for i in range(0, words, 16):
            v.transpose(x + 4 * (16 * half * words + i), 4 * words, to + 64 * (half * words + i))


@inline
def put_rows(dtype: int, sums: int, count: int, width: int, scale: v.Vector, out: int, step: int) -> None:
    """Sums fp32 (count, H) times a scale, as rows `step` bytes apart."""
    for row in range(count):
        for i in range(0, width, 16):
            e.put_wide(dtype, out + step * row, i, v.mul(v.load(sums + 4 * (row * width + i)), scale))


@inline
def read_starts(of: int, count: int, starts: int) -> None:
    """The first keys int64 (32,) of a block's queries; the last one's is repeated."""
    for i in range(QUERIES):
        v.write(starts + 8 * i, v.read(of + 8 * min(i, count - 1)))
