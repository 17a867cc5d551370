"""Packed matrix times activations in bytes, for GGML's formats.

Must equal reference.linear of the same codes up to the order of the fp32 sums; the sums inside a block are exact.

Arguments: stream, records of x (B, K/32), out fp32 (B, N), bias fp32 (N,) or 0, N, K, B, tiles of a chunk, whether out
is added to, and rows of x of a chunk. Chunks go over the tiles first, then over x.

With its gate, gated_...: streams of gate and up, records of x (B, K/32), records that come out (B, N/32), N (a multiple
of 32), K, B, and rows of x of a chunk, at least `panels.ROWS`: silu(gate x) * (up x).

A lookup has its own kernels, embed_...: ids int64 (B,), stream, out fp32 (B, K), K; a chunk is a row of the batch.
"""

import numpy as np

from llamita.kernels import formats, panels
from llamita.kernels import simd as v
from llamita.kernels.dense import put, put_wide
from llamita.kernels.elementwise import gated, to_bytes
from llamita.kernels.formats import Part
from llamita.kernels.layout import RECORD
from llamita.kernels.program import kernel, part


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
def _centred(opened, zero, x, total):
    words, scale, _ = opened
    dot = _all_dots(v.shifted(v.load_everywhere(x + 44), zero), words, x)
    return formats.add_centred(dot, dot, x, scale, scale, total)


@part
def _above(opened, zero, x, total):
    words, scale, minimum = opened
    dot = _all_dots(v.no_words(), words, x)
    return formats.add_above(dot, dot, x, scale, minimum, total)


@part
def _halves(opened, zero, x, total):
    words, first, second = opened
    low = _four_dots(v.shifted(v.load_everywhere(x + 36), zero), words[0], words[1], words[2], words[3], x)
    high = _four_dots(v.shifted(v.load_everywhere(x + 40), zero), words[4], words[5], words[6], words[7], x + 16)
    return formats.add_halves(low, high, x, first, second, total)


@part
def _put(total: v.Vector, out: int, bias: int, row: int, n: int, adds: int) -> None:
    """Write sixteen sums, or as many as there are rows left."""
    to, its = out + 4 * row, bias + 4 * row if bias else 0
    if row + 16 <= n:
        put_wide(to, total, its, adds)
        return
    for lane in range(n - row):
        put(to + 4 * lane, v.lane(total, lane), its + 4 * lane if its else 0, adds)


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
def _linear(open_block: Part, add: Part, four: Part, zero: int, size: int, at: int, chunk: int) -> None:
    """`size`: bytes of eight blocks of a tile."""
    stream, records, out, bias = v.read(at), v.read(at + 8), v.read(at + 16), v.read(at + 24)
    n, k, batch, tiles, adds = v.read(at + 32), v.read(at + 40), v.read(at + 48), v.read(at + 56), v.read(at + 64)
    lines, blocks, across = v.read(at + 72), k // 32, -(-n // (16 * tiles))
    first, line, bytes_of_tile = chunk // across * lines, blocks * RECORD, blocks * size // 8
    count, room = min(batch - first, lines), v.on_stack()
    records, out, begin = records + first * line, out + 4 * first * n, chunk % across * tiles * 16
    for row in range(begin, min(n, begin + 16 * tiles), 32 if count >= panels.ROWS else 16):
        tile = stream + row // 16 * bytes_of_tile
        if count >= panels.ROWS:
            beside = tile + bytes_of_tile if row + 16 < n else tile
            sums = panels.multiply(open_block, four, zero, size, (tile, beside), records, count, blocks, room)
            for i in range(count):
                both = sums + panels.place(i, count)
                _put(v.load(both), out + 4 * i * n, bias, row, n, adds)
                if row + 16 < n:
                    _put(v.load(both + 64), out + 4 * i * n, bias, row + 16, n, adds)
        else:
            for i in range(count):
                total = _one(open_block, add, zero, size, tile, records + i * line, blocks)
                _put(total, out + 4 * i * n, bias, row, n, adds)


@part
def _gated(open_block: Part, four: Part, zero: int, size: int, at: int, chunk: int) -> None:
    """Thirty-two columns of what comes out, which is in bytes at once."""
    gate, up, records, out = v.read(at), v.read(at + 8), v.read(at + 16), v.read(at + 24)
    n, k, batch, lines = v.read(at + 32), v.read(at + 40), v.read(at + 48), v.read(at + 56)
    blocks, across, bytes_of_tile = k // 32, n // 32, k // 32 * size // 8
    first, column, room = chunk // across * lines, chunk % across, v.on_stack()
    count, records = min(batch - first, lines), records + first * blocks * RECORD
    near = room + panels.ROOM
    for half in range(2):
        tile = (2 * column + half) * bytes_of_tile
        sums = panels.multiply(open_block, four, zero, size, (gate + tile, up + tile), records, count, blocks, room)
        for i in range(count):
            both = sums + panels.place(i, count)
            v.store(near + 128 * i + 64 * half, gated(v.load(both), v.load(both + 64)))
    for i in range(count):
        to_bytes(near + 128 * i, 32, out + ((first + i) * across + column) * RECORD)


@part
def _weight_centred(code, zero, scale, _, is_late):
    return scale * (code - (1 << zero))


@part
def _weight_above(code, zero, scale, minimum, is_late):
    return scale * code - minimum


@part
def _weight_halved(code, zero, first, second, is_late):
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
    _linear(formats.open_q8_0, _centred, panels.four_centred, 7, 4352, at, chunk)


@kernel
def linear_q4_0(at: int, chunk: int) -> None:
    """Q4_0."""
    _linear(formats.open_q4_0, _centred, panels.four_centred, 3, 2304, at, chunk)


@kernel
def linear_q4_1(at: int, chunk: int) -> None:
    """Q4_1."""
    _linear(formats.open_q4_1, _above, panels.four_above, 0, 2560, at, chunk)


@kernel
def linear_q5_0(at: int, chunk: int) -> None:
    """Q5_0."""
    _linear(formats.open_q5_0, _centred, panels.four_centred, 4, 2816, at, chunk)


@kernel
def linear_q5_1(at: int, chunk: int) -> None:
    """Q5_1."""
    _linear(formats.open_q5_1, _above, panels.four_above, 0, 3072, at, chunk)


@kernel
def linear_q4_k(at: int, chunk: int) -> None:
    """Q4_K."""
    _linear(formats.open_q4_k, _above, panels.four_above, 0, 2368, at, chunk)


@kernel
def linear_q5_k(at: int, chunk: int) -> None:
    """Q5_K."""
    _linear(formats.open_q5_k, _above, panels.four_above, 0, 2880, at, chunk)


@kernel
def linear_q6_k(at: int, chunk: int) -> None:
    """Q6_K."""
    _linear(formats.open_q6_k, _halves, panels.four_halves, 5, 3360, at, chunk)


@kernel
def gated_q8_0(at: int, chunk: int) -> None:
    """Q8_0."""
    _gated(formats.open_q8_0, panels.four_centred, 7, 4352, at, chunk)


@kernel
def gated_q4_0(at: int, chunk: int) -> None:
    """Q4_0."""
    _gated(formats.open_q4_0, panels.four_centred, 3, 2304, at, chunk)


@kernel
def gated_q4_1(at: int, chunk: int) -> None:
    """Q4_1."""
    _gated(formats.open_q4_1, panels.four_above, 0, 2560, at, chunk)


@kernel
def gated_q5_0(at: int, chunk: int) -> None:
    """Q5_0."""
    _gated(formats.open_q5_0, panels.four_centred, 4, 2816, at, chunk)


@kernel
def gated_q5_1(at: int, chunk: int) -> None:
    """Q5_1."""
    _gated(formats.open_q5_1, panels.four_above, 0, 3072, at, chunk)


@kernel
def gated_q4_k(at: int, chunk: int) -> None:
    """Q4_K."""
    _gated(formats.open_q4_k, panels.four_above, 0, 2368, at, chunk)


@kernel
def gated_q5_k(at: int, chunk: int) -> None:
    """Q5_K."""
    _gated(formats.open_q5_k, panels.four_above, 0, 2880, at, chunk)


@kernel
def gated_q6_k(at: int, chunk: int) -> None:
    """Q6_K."""
    _gated(formats.open_q6_k, panels.four_halves, 5, 3360, at, chunk)


@kernel
def embed_q8_0(at: int, chunk: int) -> None:
    """Q8_0."""
    _embed(formats.open_q8_0, _weight_centred, 7, 4352, at, chunk)


@kernel
def embed_q4_0(at: int, chunk: int) -> None:
    """Q4_0."""
    _embed(formats.open_q4_0, _weight_centred, 3, 2304, at, chunk)


@kernel
def embed_q4_1(at: int, chunk: int) -> None:
    """Q4_1."""
    _embed(formats.open_q4_1, _weight_above, 0, 2560, at, chunk)


@kernel
def embed_q5_0(at: int, chunk: int) -> None:
    """Q5_0."""
    _embed(formats.open_q5_0, _weight_centred, 4, 2816, at, chunk)


@kernel
def embed_q5_1(at: int, chunk: int) -> None:
    """Q5_1."""
    _embed(formats.open_q5_1, _weight_above, 0, 3072, at, chunk)


@kernel
def embed_q4_k(at: int, chunk: int) -> None:
    """Q4_K."""
    _embed(formats.open_q4_k, _weight_above, 0, 2368, at, chunk)


@kernel
def embed_q5_k(at: int, chunk: int) -> None:
    """Q5_K."""
    _embed(formats.open_q5_k, _weight_above, 0, 2880, at, chunk)


@kernel
def embed_q6_k(at: int, chunk: int) -> None:
    """Q6_K."""
    _embed(formats.open_q6_k, _weight_halved, 5, 3360, at, chunk)
