"""From the blocks of a GGUF file to the stream that kernels read, in one pass over both.

Must equal packed.pack of the blocks' codes, byte for byte.

A tile is written block after block. Of each of its rows a block's bytes are gathered four at a time, a lane a row, into
a place of its own (`words`, 64 bytes for each four); what is written are the same words with their bits in another
order. Where a tile has fewer rows the other lanes are zeros.

Arguments: blocks, their row for each row of the stream (int64) or 0 where they are in order, stream, rows, blocks of a
row, tiles of a chunk.
"""

from llamita.kernels import simd as v
from llamita.kernels.program import kernel, part

_NIBBLES = 0x0F0F0F0F


@part
def _four(at):
    """Four bytes at any address, without sign."""
    return v.lane_word(v.load_everywhere(at), 0)


@part
def _gather(words, source, count, lane, flip):
    """Put the next bytes of a row in its lane of so many words, some bits flipped."""
    for i in range(count):
        v.write_int32(words + 64 * i + 4 * lane, _four(source + 4 * i) ^ flip)


@part
def _copy(words, count, target):
    """Words as they are."""
    for i in range(count):
        v.store_words(target + 64 * i, v.load_words(words + 64 * i))


@part
def _put_halves(words, shift, target):
    """Sixteen bits of every lane of a word."""
    for i in range(8):
        two = v.read(words + 8 * i) >> shift
        v.write_int32(target + 4 * i, (two & 0xFFFF) | ((two >> 32) & 0xFFFF) << 16)


@part
def _put_nibbles(words, shift, target):
    """The low or the high halves of eight words: columns 0-15 become the low, 16-31 the high halves of four."""
    for i in range(4):
        low = v.bits(v.load_words(words + 64 * i), shift, _NIBBLES)
        high = v.bits(v.load_words(words + 64 * i + 256), shift, _NIBBLES)
        v.store_words(target + 64 * i, v.join(low, v.shifted(high, 4)))


@part
def _put_fifth(words, target):
    """32 bits in a row, of columns 0 to 31: bit g of byte b is that of column 4g + b."""
    bits, out = v.load_words(words), v.no_words()
    for column in range(32):
        out = v.join(out, v.shifted(v.bits(bits, column, 1), 8 * (column & 3) + (column >> 2)))
    v.store_words(target, out)


@part
def _put_high(words, count, shift, mask, step, target):
    """Bits of so many words, each in turn behind the last: of four columns each."""
    out = v.no_words()
    for i in range(count):
        out = v.join(out, v.shifted(v.bits(v.load_words(words + 64 * i), shift, mask), step * i))
    v.store_words(target, out)


@part
def _take_q8_0(words, source, lane):
    _gather(words, source, 1, lane, 0)
    _gather(words + 64, source + 2, 8, lane, 0x80808080)  # signed codes, from 0


@part
def _put_q8_0(words, target):
    _put_halves(words, 0, target)
    _copy(words + 64, 8, target + 32)


@part
def _take_q4_0(words, source, lane):
    _gather(words, source, 1, lane, 0)
    _gather(words + 64, source + 2, 4, lane, 0)


@part
def _put_q4_0(words, target):
    _put_halves(words, 0, target)
    _copy(words + 64, 4, target + 32)


@part
def _take_q4_1(words, source, lane):
    _gather(words, source, 1, lane, 0x80000000)  # the smallest weight's opposite
    _gather(words + 64, source + 4, 4, lane, 0)


@part
def _put_q4_1(words, target):
    _put_halves(words, 0, target)
    _put_halves(words, 16, target + 32)
    _copy(words + 64, 4, target + 64)


@part
def _take_q5_0(words, source, lane):
    _gather(words, source, 1, lane, 0)
    _gather(words + 64, source + 2, 5, lane, 0)


@part
def _put_q5_0(words, target):
    _put_halves(words, 0, target)
    _copy(words + 128, 4, target + 32)
    _put_fifth(words + 64, target + 288)


@part
def _take_q5_1(words, source, lane):
    _gather(words, source, 1, lane, 0x80000000)
    _gather(words + 64, source + 4, 5, lane, 0)


@part
def _put_q5_1(words, target):
    _put_halves(words, 0, target)
    _put_halves(words, 16, target + 32)
    _copy(words + 128, 4, target + 64)
    _put_fifth(words + 64, target + 320)


@part
def _put_factors(words, block, target):
    """A block's sub-scale and sub-minimum, 6 bits each: the last four have their top bits in the first four's."""
    scales, minima, late = v.load_words(words), v.load_words(words + 64), v.load_words(words + 128)
    shift = 8 * (block & 3)
    if block < 4:
        scale, minimum = v.bits(scales, shift, 63), v.bits(minima, shift, 63)
    else:
        scale = v.join(v.bits(late, shift, 15), v.shifted(v.bits(scales, shift + 6, 3), 4))
        minimum = v.join(v.bits(late, shift + 4, 15), v.shifted(v.bits(minima, shift + 6, 3), 4))
    v.store_chars(target, scale)
    v.store_chars(target + 16, minimum)


@part
def _take_q4_k(words, source, lane):
    _gather(words, source, 36, lane, 0)


@part
def _put_q4_k(words, target):
    _put_halves(words, 0, target)
    _put_halves(words, 16, target + 32)
    for block in range(8):
        at = target + 64 + 288 * block
        _put_factors(words + 64, block, at)
        _put_nibbles(words + 64 * (4 + 8 * (block >> 1)), 4 * (block & 1), at + 32)


@part
def _take_q5_k(words, source, lane):
    _gather(words, source, 44, lane, 0)


@part
def _put_q5_k(words, target):
    _put_halves(words, 0, target)
    _put_halves(words, 16, target + 32)
    for block in range(8):
        at = target + 64 + 352 * block
        _put_factors(words + 64, block, at)
        _put_nibbles(words + 64 * (12 + 8 * (block >> 1)), 4 * (block & 1), at + 32)
        _put_high(words + 256, 8, block, 0x01010101, 1, at + 288)


@part
def _take_q6_k(words, source, lane):
    _gather(words, source, 52, lane, 0)
    _gather(words + 64 * 52, source + 206, 1, lane, 0)  # the scale is its last two bytes, and perhaps the file's


@part
def _put_q6_k(words, target):
    _put_halves(words + 64 * 52, 16, target)
    for block in range(8):
        at, half, quarter = target + 32 + 416 * block, block >> 2, block & 3
        factors = v.load_words(words + 64 * (48 + (block >> 1)))
        v.store_chars(at, v.bits(factors, 16 * (block & 1), 255))
        v.store_chars(at + 16, v.bits(factors, 16 * (block & 1) + 8, 255))
        _put_nibbles(words + 64 * (16 * half + 8 * (quarter & 1)), 4 * (quarter >> 1), at + 32)
        high = words + 64 * (32 + 8 * half)
        _put_high(high, 4, 2 * quarter, 0x03030303, 2, at + 288)
        _put_high(high + 256, 4, 2 * quarter, 0x03030303, 2, at + 352)


@part
def _pack(take, put, size, room, at, chunk):
    """Blocks of `size` bytes, for sixteen rows `room` bytes in the stream."""
    raw, order, stream, rows = v.read(at), v.read(at + 8), v.read(at + 16), v.read(at + 24)
    blocks, tiles, words = v.read(at + 32), v.read(at + 40), v.on_stack()
    for i in range(53):
        v.store_words(words + 64 * i, v.no_words())
    for first in range(chunk * tiles * 16, min(rows, (chunk + 1) * tiles * 16), 16):
        lanes, to = min(16, rows - first), stream + (first >> 4) * blocks * room
        if lanes < 16:  # the last tile: what lanes held before goes
            for i in range(53):
                v.store_words(words + 64 * i, v.no_words())
        for block in range(blocks):
            for lane in range(lanes):
                row = v.read(order + 8 * (first + lane)) if order else first + lane
                take(words, raw + (row * blocks + block) * size, lane)
            put(words, to + block * room)


@kernel
def pack_q8_0(at: int, chunk: int) -> None:
    """Q8_0."""
    _pack(_take_q8_0, _put_q8_0, 34, 544, at, chunk)


@kernel
def pack_q4_0(at: int, chunk: int) -> None:
    """Q4_0."""
    _pack(_take_q4_0, _put_q4_0, 18, 288, at, chunk)


@kernel
def pack_q4_1(at: int, chunk: int) -> None:
    """Q4_1."""
    _pack(_take_q4_1, _put_q4_1, 20, 320, at, chunk)


@kernel
def pack_q5_0(at: int, chunk: int) -> None:
    """Q5_0."""
    _pack(_take_q5_0, _put_q5_0, 22, 352, at, chunk)


@kernel
def pack_q5_1(at: int, chunk: int) -> None:
    """Q5_1."""
    _pack(_take_q5_1, _put_q5_1, 24, 384, at, chunk)


@kernel
def pack_q4_k(at: int, chunk: int) -> None:
    """Q4_K."""
    _pack(_take_q4_k, _put_q4_k, 144, 2368, at, chunk)


@kernel
def pack_q5_k(at: int, chunk: int) -> None:
    """Q5_K."""
    _pack(_take_q5_k, _put_q5_k, 176, 2880, at, chunk)


@kernel
def pack_q6_k(at: int, chunk: int) -> None:
    """Q6_K."""
    _pack(_take_q6_k, _put_q6_k, 210, 3360, at, chunk)
