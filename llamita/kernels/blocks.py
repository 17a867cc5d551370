"""Packed matrix times activations in bytes, for GGML's formats.

Must equal reference.linear of the same codes up to the order of the fp32 sums; the sums inside a block are exact.

Arguments: stream, records of x (B, K/32), out fp32 (B, N), bias fp32 (N,) or 0, N, K, B, tiles of a chunk, whether out
is added to, and rows of x of a chunk. Chunks go over the tiles first, then over x.

A lookup has its own kernels, embed_...: ids int64 (B,), stream, out fp32 (B, K), K; a chunk is a row of the batch.

A format is one function, `open_...(tile, block)`: its eight words of codes, each four columns of sixteen rows, and two
vectors of scales. What the second is decides how a block is added: nothing, a minimum, or the scale of the last sixteen
columns.
"""

from typing import Any

import numpy as np

from llamita.kernels import simd as v
from llamita.kernels.elementwise import RECORD
from llamita.kernels.program import kernel, part

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
def _four_dots(total, a, b, c, d, x):
    """Sixteen columns."""
    total = v.dot4(v.dot4(total, a, v.load_everywhere(x)), b, v.load_everywhere(x + 4))
    return v.dot4(v.dot4(total, c, v.load_everywhere(x + 8)), d, v.load_everywhere(x + 12))


@part
def _all_dots(total, words, x):
    """Thirty-two columns."""
    total = _four_dots(total, words[0], words[1], words[2], words[3], x)
    return _four_dots(total, words[4], words[5], words[6], words[7], x + 16)


@part
def _add_centred(opened, zero, x, total):
    """Codes around a zero of two to the power `zero`."""
    words, scale, _ = opened
    dot = _all_dots(v.shifted(v.load_everywhere(x + 44), zero), words, x)
    return v.multiply_add(v.times(v.as_floats(dot), v.spread(v.read_fp32(x + 32))), scale, total)


@part
def _add_above(opened, zero, x, total):
    """Codes above a minimum."""
    words, scale, minimum = opened
    dot = v.multiply_add(
        v.as_floats(_all_dots(v.no_words(), words, x)), scale, v.times(v.as_floats(v.load_everywhere(x + 44)), minimum)
    )
    return v.multiply_add(dot, v.spread(v.read_fp32(x + 32)), total)


@part
def _add_halves(opened, zero, x, total):
    """Codes around a zero, with a scale for either half of the columns."""
    words, first, second = opened
    low = _four_dots(v.shifted(v.load_everywhere(x + 36), zero), words[0], words[1], words[2], words[3], x)
    high = _four_dots(v.shifted(v.load_everywhere(x + 40), zero), words[4], words[5], words[6], words[7], x + 16)
    dot = v.multiply_add(v.as_floats(high), second, v.times(v.as_floats(low), first))
    return v.multiply_add(dot, v.spread(v.read_fp32(x + 32)), total)


@part
def _put(total, at, out, bias, row, n, adds):
    """Write sixteen sums, or as many as there are rows left."""
    if row + 16 <= n:
        if bias:
            total = v.plus(total, v.load(bias + 4 * row))
        if adds:
            total = v.plus(total, v.load(out + 4 * row))
        v.store(out + 4 * row, total)
        return
    for lane in range(n - row):
        value = v.lane(total, lane)
        if bias:
            value += v.read_fp32(bias + 4 * (row + lane))
        if adds:
            value += v.read_fp32(out + 4 * (row + lane))
        v.write_fp32(out + 4 * (row + lane), value)


@part
def _one(open_block: Part, add: Part, zero: int, size: int, tile: int, x: int, blocks: int) -> v.Vector:
    """A tile with one x, which is all that memory is asked for: it looks ahead."""
    total = v.no_floats()
    for block in range(blocks):
        v.fetch_ahead(tile + block * (size // 8), size // 8)
        total = add(open_block(tile, block), zero, x, total)
        x += RECORD
    return total


@part
def _four(open_block: Part, add: Part, zero: int, tile: int, x: int, blocks: int) -> tuple[v.Vector, ...]:
    """A tile with four x's: a block is opened once."""
    a = b = c = d = v.no_floats()
    line = blocks * RECORD
    for block in range(blocks):
        opened = open_block(tile, block)
        a, b = add(opened, zero, x, a), add(opened, zero, x + line, b)
        c, d = add(opened, zero, x + 2 * line, c), add(opened, zero, x + 3 * line, d)
        x += RECORD
    return a, b, c, d


@part
def _eight_at_once(open_block: Part, add: Part, zero: int, tile: int, x: int, blocks: int) -> tuple[v.Vector, ...]:
    """A tile with eight x's."""
    a = b = c = d = e = f = g = h = v.no_floats()
    line = blocks * RECORD
    for block in range(blocks):
        opened = open_block(tile, block)
        a, b = add(opened, zero, x, a), add(opened, zero, x + line, b)
        c, d = add(opened, zero, x + 2 * line, c), add(opened, zero, x + 3 * line, d)
        e, f = add(opened, zero, x + 4 * line, e), add(opened, zero, x + 5 * line, f)
        g, h = add(opened, zero, x + 6 * line, g), add(opened, zero, x + 7 * line, h)
        x += RECORD
    return a, b, c, d, e, f, g, h


@part
def _linear(open_block: Part, add: Part, zero: int, size: int, at: int, chunk: int) -> None:
    """`size`: bytes of eight blocks of a tile."""
    stream, records, out, bias = v.read(at), v.read(at + 8), v.read(at + 16), v.read(at + 24)
    n, k, batch, tiles, adds = v.read(at + 32), v.read(at + 40), v.read(at + 48), v.read(at + 56), v.read(at + 64)
    lines, blocks, across = v.read(at + 72), k // 32, -(-n // (16 * tiles))
    first, line = chunk // across * lines, blocks * RECORD
    last = min(batch, first + lines)
    for row in range(chunk % across * tiles * 16, min(n, (chunk % across + 1) * tiles * 16), 16):
        tile, b = stream + row // 16 * (blocks * size // 8), first
        while b < last:
            x, to = records + b * line, out + 4 * b * n
            if b + 8 <= last:
                sums = _eight_at_once(open_block, add, zero, tile, x, blocks)
                for i in range(8):
                    _put(sums[i], at, to + 4 * n * i, bias, row, n, adds)
                b += 8
            elif b + 4 <= last:
                four = _four(open_block, add, zero, tile, x, blocks)
                for i in range(4):
                    _put(four[i], at, to + 4 * n * i, bias, row, n, adds)
                b += 4
            else:
                _put(_one(open_block, add, zero, size, tile, x, blocks), at, to, bias, row, n, adds)
                b += 1


@part
def _centred(code, zero, scale, _, is_late):
    return scale * (code - (1 << zero))


@part
def _above(code, zero, scale, minimum, is_late):
    return scale * code - minimum


@part
def _halved(code, zero, first, second, is_late):
    return (second if is_late else first) * (code - (1 << zero))


@part
def _embed(open_block, weight, zero, size, at, chunk):
    """The weights of one row, taken out of its tile."""
    row, k = v.read(v.read(at) + 8 * chunk), v.read(at + 24)
    tile, out = v.read(at + 8) + row // 16 * (k // 32 * size // 8), v.read(at + 16) + 4 * k * chunk
    for block in range(k // 32):
        words, first, second = open_block(tile, block)
        first, second = v.lane(first, row % 16), v.lane(second, row % 16)
        for group in range(8):
            codes = v.lane_word(words[group], row % 16)
            for i in range(4):
                code = (codes >> (8 * i)) & 255
                v.write_fp32(out, weight(np.float32(code), zero, first, second, group >= 4))
                out += 4


@kernel
def linear_q8_0(at: int, chunk: int) -> None:
    """Q8_0."""
    _linear(open_q8_0, _add_centred, 7, 4352, at, chunk)


@kernel
def linear_q4_0(at: int, chunk: int) -> None:
    """Q4_0."""
    _linear(open_q4_0, _add_centred, 3, 2304, at, chunk)


@kernel
def linear_q4_1(at: int, chunk: int) -> None:
    """Q4_1."""
    _linear(open_q4_1, _add_above, 0, 2560, at, chunk)


@kernel
def linear_q5_0(at: int, chunk: int) -> None:
    """Q5_0."""
    _linear(open_q5_0, _add_centred, 4, 2816, at, chunk)


@kernel
def linear_q5_1(at: int, chunk: int) -> None:
    """Q5_1."""
    _linear(open_q5_1, _add_above, 0, 3072, at, chunk)


@kernel
def linear_q4_k(at: int, chunk: int) -> None:
    """Q4_K."""
    _linear(open_q4_k, _add_above, 0, 2368, at, chunk)


@kernel
def linear_q5_k(at: int, chunk: int) -> None:
    """Q5_K."""
    _linear(open_q5_k, _add_above, 0, 2880, at, chunk)


@kernel
def linear_q6_k(at: int, chunk: int) -> None:
    """Q6_K."""
    _linear(open_q6_k, _add_halves, 5, 3360, at, chunk)


@kernel
def embed_q8_0(at: int, chunk: int) -> None:
    """Q8_0."""
    _embed(open_q8_0, _centred, 7, 4352, at, chunk)


@kernel
def embed_q4_0(at: int, chunk: int) -> None:
    """Q4_0."""
    _embed(open_q4_0, _centred, 3, 2304, at, chunk)


@kernel
def embed_q4_1(at: int, chunk: int) -> None:
    """Q4_1."""
    _embed(open_q4_1, _above, 0, 2560, at, chunk)


@kernel
def embed_q5_0(at: int, chunk: int) -> None:
    """Q5_0."""
    _embed(open_q5_0, _centred, 4, 2816, at, chunk)


@kernel
def embed_q5_1(at: int, chunk: int) -> None:
    """Q5_1."""
    _embed(open_q5_1, _above, 0, 3072, at, chunk)


@kernel
def embed_q4_k(at: int, chunk: int) -> None:
    """Q4_K."""
    _embed(open_q4_k, _above, 0, 2368, at, chunk)


@kernel
def embed_q5_k(at: int, chunk: int) -> None:
    """Q5_K."""
    _embed(open_q5_k, _above, 0, 2880, at, chunk)


@kernel
def embed_q6_k(at: int, chunk: int) -> None:
    """Q6_K."""
    _embed(open_q6_k, _halved, 5, 3360, at, chunk)
