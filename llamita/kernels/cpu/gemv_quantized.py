"""GEMV of a quantized matrix, packed as `packed_layout` says, with x as q8_blocks; for many rows `gemm_quantized`.

Must equal reference.product_quantized of the same codes bit for bit.
A q8_block is 48 bytes: 32 columns of x as int8, their scale, and their sums (see `q8_blocks`; ggml's block_q8_1).

A function here makes the kernel of one format, and `block_kernels` has them all. The arguments of `linear` are
LinearQuantized, those of `gated` GatedQuantized, those of `embed` Embed with a stream as its table.
"""

from collections.abc import Callable

import numpy as np

from llamita.kernels.block_format import BlockFormat
from llamita.kernels.cpu import gemm_quantized as gemm
from llamita.kernels.cpu import gemv_narrow as narrow
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Embed, GatedQuantized, LinearQuantized, offsets
from llamita.kernels.cpu.block_dots import Dots, dots_of, sixteen_columns
from llamita.kernels.cpu.constants import Q8_BLOCK
from llamita.kernels.cpu.functions import silu_times
from llamita.kernels.cpu.gemm_panels import ROOM, add_offset, add_symmetric, add_two_scales
from llamita.kernels.cpu.gemm_tiles import put, put_wide
from llamita.kernels.cpu.q8_blocks import quantize_blocks
from llamita.kernels.cpu.runtime.program import Inline, inline

LINEAR, GATED, EMBED = offsets(LinearQuantized), offsets(GatedQuantized), offsets(Embed)

Compute = Callable[[int, int], None]


def _one_symmetric(dots: Dots) -> Inline:
    begin, eight = dots.begin, _eight(dots)

    @inline
    def one(unpacked, zero, x, total):
        words, scale, _ = unpacked
        dot = eight(begin(x + 44, zero), words, x)
        return add_symmetric(dot, dot, x, scale, scale, total)

    return one


def _one_offset(dots: Dots) -> Inline:
    eight = _eight(dots)

    @inline
    def one(unpacked, zero, x, total):
        words, scale, minimum = unpacked
        dot = eight(v.zero_words(), words, x)
        return add_offset(dot, dot, x, scale, minimum, total)

    return one


def _one_two_scales(dots: Dots) -> Inline:
    begin, ready, four = dots.begin, dots.ready, sixteen_columns(dots)

    @inline
    def one(unpacked, zero, x, total):
        words, first, second = unpacked
        a, b, c, d = ready(words[0]), ready(words[1]), ready(words[2]), ready(words[3])
        low = four(begin(x + 36, zero), a, b, c, d, x)
        a, b, c, d = ready(words[4]), ready(words[5]), ready(words[6]), ready(words[7])
        high = four(begin(x + 40, zero), a, b, c, d, x + 16)
        return add_two_scales(low, high, x, first, second, total)

    return one


def _eight(dots: Dots) -> Inline:
    """Thirty-two columns."""
    ready, four = dots.ready, sixteen_columns(dots)

    @inline
    def eight(total, words, x):
        total = four(total, ready(words[0]), ready(words[1]), ready(words[2]), ready(words[3]), x)
        return four(total, ready(words[4]), ready(words[5]), ready(words[6]), ready(words[7]), x + 16)

    return eight


@inline
def _weight_symmetric(code, zero, scale, _, is_late):
    return scale * (code - (1 << zero))


@inline
def _weight_offset(code, zero, scale, minimum, is_late):
    return scale * code - minimum


@inline
def _weight_two_scales(code, zero, first, second, is_late):
    return (second if is_late else first) * (code - (1 << zero))


# By the algebra of a format's layout: a block times one row of x, and a single weight.
ONE: dict[str, Callable[[Dots], Inline]] = {
    "symmetric": _one_symmetric,
    "offset": _one_offset,
    "two_scales": _one_two_scales,
}
WEIGHT: dict[str, Inline] = {
    "symmetric": _weight_symmetric,
    "offset": _weight_offset,
    "two_scales": _weight_two_scales,
}


@inline
def _put(total: v.Vector, out: int, bias: int, row: int, n: int, adds: int) -> None:
    """Write sixteen sums, or fewer at the end of the matrix."""
    to, biases = out + 4 * row, bias + 4 * row if bias else 0
    if row + 16 <= n:
        put_wide(to, total, biases, adds)
        return
    for lane in range(n - row):
        put(to + 4 * lane, v.extract(total, lane), biases + 4 * lane if biases else 0, adds)


@inline
def _put_pair(sums: int, lines: int, out: int, bias: int, left: int, stride: int, adds: int) -> None:
    """Write the sums of two tiles and some rows of x, to rows of `stride` bytes. left: rows up to the matrix's end."""
    for i in range(lines if left >= 32 else 0):  # most matrices, without a question for each row
        both, to = sums + gemm.place(i, lines), out + i * stride
        put_wide(to, v.load(both), bias, adds)
        put_wide(to + 64, v.load(both + 64), bias + 64 if bias else 0, adds)
    for i in range(lines if left < 32 else 0):
        both, to = sums + gemm.place(i, lines), out + i * stride
        _put(v.load(both), to, bias, 0, left, adds)
        if left > 16:
            _put(v.load(both + 64), to, bias, 16, left, adds)


@inline
def _tile(
    fetch: Inline, one: Inline, size: int, tile: int, x: int, blocks: int
) -> v.Vector:  # fmt: skip
    """A tile times one row of x. Here memory is the limit, so the tile is prefetched."""
    total = v.zero_fp32()
    for block in range(blocks):
        fetch(tile + block * (size // 8))
        total = one(tile, block, x, total)
        x += Q8_BLOCK
    return total


@inline
def _linear(
    fetch: Inline, one: Inline, multiply: Inline, fewest: int, size: int, at: int, chunk: int
) -> None:  # fmt: skip
    """fewest: rows of x that `multiply` takes. size: bytes of eight blocks of a tile."""
    stream, q8_blocks = v.read(at + LINEAR.stream), v.read(at + LINEAR.q8_blocks)
    out, bias, adds = v.read(at + LINEAR.out), v.read(at + LINEAR.bias), v.read(at + LINEAR.adds)
    n, k, batch = v.read(at + LINEAR.rows), v.read(at + LINEAR.columns), v.read(at + LINEAR.batch)
    tiles, chunk_rows = v.read(at + LINEAR.tiles), v.read(at + LINEAR.batch_of_chunk)
    blocks, across = k // 32, -(-n // (16 * tiles))
    first, row_bytes, bytes_of_tile = chunk // across * chunk_rows, blocks * Q8_BLOCK, blocks * size // 8
    count, scratch = min(batch - first, chunk_rows), v.stack()
    q8_blocks, out, begin = q8_blocks + first * row_bytes, out + 4 * first * n, chunk % across * tiles * 16
    for row in range(begin, min(n, begin + 16 * tiles), 32 if count >= fewest else 16):
        tile = stream + row // 16 * bytes_of_tile
        if count >= fewest:
            second = tile + bytes_of_tile if row + 16 < n else tile
            to = out + 4 * row
            sums = multiply((tile, second), bytes_of_tile, q8_blocks, count, blocks, to, 4 * n, scratch)
            _put_pair(sums, count, to, bias + 4 * row if bias else 0, n - row, 4 * n, adds)
        else:
            for i in range(count):
                total = _tile(fetch, one, size, tile, q8_blocks + i * row_bytes, blocks)
                _put(total, out + 4 * i * n, bias, row, n, adds)


@inline
def _gated(multiply: Inline, size: int, at: int, chunk: int) -> None:
    """Thirty-two columns of the result, which are quantized at once."""
    gate, up, out = v.read(at + GATED.gate), v.read(at + GATED.up), v.read(at + GATED.out)
    n, k, batch = v.read(at + GATED.rows), v.read(at + GATED.columns), v.read(at + GATED.batch)
    q8_blocks, chunk_rows = v.read(at + GATED.q8_blocks), v.read(at + GATED.batch_of_chunk)
    blocks, across, bytes_of_tile = k // 32, n // 32, k // 32 * size // 8
    first, column, scratch = chunk // across * chunk_rows, chunk % across, v.stack()
    count, q8_blocks = min(batch - first, chunk_rows), q8_blocks + first * blocks * Q8_BLOCK
    gated_rows = scratch + ROOM
    for half in range(2):
        tile = (2 * column + half) * bytes_of_tile
        sums = multiply((gate + tile, up + tile), 0, q8_blocks, count, blocks, 0, 0, scratch)
        for i in range(count):
            both = sums + gemm.place(i, count)
            v.store(gated_rows + 128 * i + 64 * half, silu_times(v.load(both), v.load(both + 64)))
    quantize_blocks(gated_rows, 128, out + (first * across + column) * Q8_BLOCK, across * Q8_BLOCK, count)


@inline
def _embed(unpack, weight, zero, size, at, chunk):
    """The weights of one row, taken out of its tile."""
    row, k = v.read(v.read(at + EMBED.ids) + 8 * chunk), v.read(at + EMBED.columns)
    tile = v.read(at + EMBED.table) + row // 16 * (k // 32 * size // 8)
    out = v.read(at + EMBED.out) + 4 * k * chunk
    for block in range(k // 32):
        words, first, second = unpack(tile, block)
        first, second = v.extract(first, row % 16), v.extract(second, row % 16)
        for group in range(8):
            codes = v.extract_word(words[group], row % 16)
            for i in range(4):
                code = (codes >> (8 * i)) & 255
                v.write_fp32(out, weight(np.float32(code), zero, first, second, group >= 4))
                out += 4


def block_times_row(block_format: BlockFormat) -> Inline:
    """A function that adds the products of a tile's block with a row of x to their sums: (tile, block, x, total)."""
    layout, unpack = block_format.layout, inline(block_format.unpack)
    if narrow.suits(layout):
        return narrow.block_times_row(block_format)
    one, zero = ONE[layout.algebra](dots_of(layout)), layout.zero_bits

    @inline
    def block_times_row(tile, block, x, total):
        return one(unpack(tile, block), zero, x, total)

    return block_times_row


def linear(block_format: BlockFormat) -> Compute:
    """The product with a matrix of a format."""
    one, size = block_times_row(block_format), block_format.layout.eight_blocks
    multiply, fewest = gemm.multiplier(block_format), gemm.fewest(block_format)
    # The processor's own prefetcher reads faster than instructions do, but stops at the end of each page of 4 KiB: one
    # line of every four, not a page ahead, takes it to the next in time. By measurement.
    fetch = v.prefetcher(3072, size // 8, level=2, step=256)

    def compute(at: int, chunk: int) -> None:
        _linear(fetch, one, multiply, fewest, size, at, chunk)

    return compute


def gated(block_format: BlockFormat) -> Compute:
    """The gated pair of products, of two matrices of a format."""
    multiply, size = gemm.multiplier(block_format), block_format.layout.eight_blocks

    def compute(at: int, chunk: int) -> None:
        _gated(multiply, size, at, chunk)

    return compute


def embed(block_format: BlockFormat) -> Compute:
    """The look-up of rows of a matrix of a format."""
    layout, unpack = block_format.layout, inline(block_format.unpack)
    weight, zero, size = WEIGHT[layout.algebra], layout.zero_bits, layout.eight_blocks

    def compute(at: int, chunk: int) -> None:
        _embed(unpack, weight, zero, size, at, chunk)

    return compute
