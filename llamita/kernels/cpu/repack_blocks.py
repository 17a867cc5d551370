"""Repack the blocks of a GGUF file into packed blocks, in one pass: what the formats' repacking kernels share.

Must equal packed_layout.pack of the blocks' codes, byte for byte.

A tile is written block after block. A format's `gather` copies a block's bytes of each row into the kernel's own
memory, four at a time: into the row's lane of a word of 64 bytes. Its `put` writes these words as packed blocks, with
their bits in another order. In a tile with fewer rows the other lanes are zeros.

Arguments: blocks, their row for each row of the stream (int64) or 0 where they are in order, stream, rows, blocks of a
row, tiles of a chunk.
"""

from collections.abc import Callable

from llamita.kernels.block_format import BlockFormat
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Pack, offsets
from llamita.kernels.cpu.runtime.program import inline

_NIBBLES = 0x0F0F0F0F
PACK = offsets(Pack)
_MOST_WORDS = 53  # that a format gathers


@inline
def _four(at):
    """Four bytes at any address, without sign."""
    return v.extract_word(v.broadcast_word(at), 0)


@inline
def gather_words(words: int, source: int, count: int, lane: int, flip: int) -> None:
    """Put the next bytes of a row in its lane of `count` words, the bits of `flip` flipped in each four."""
    for i in range(count):
        v.write_int32(words + 64 * i + 4 * lane, _four(source + 4 * i) ^ flip)


@inline
def copy_words(words: int, count: int, target: int) -> None:
    """Write words as they are."""
    for i in range(count):
        v.store_words(target + 64 * i, v.load_words(words + 64 * i))


@inline
def put_fp16(words: int, shift: int, target: int) -> None:
    """Write sixteen bits of every lane of a word."""
    for i in range(8):
        two = v.read(words + 8 * i) >> shift
        v.write_int32(target + 4 * i, (two & 0xFFFF) | ((two >> 32) & 0xFFFF) << 16)


@inline
def put_nibbles(words: int, shift: int, target: int) -> None:
    """Write the low or high halves of eight words: columns 0-15 become the low, 16-31 the high halves of four."""
    for i in range(4):
        low = v.extract_bits(v.load_words(words + 64 * i), shift, _NIBBLES)
        high = v.extract_bits(v.load_words(words + 64 * i + 256), shift, _NIBBLES)
        v.store_words(target + 64 * i, v.or_words(low, v.shl(high, 4)))


@inline
def put_fifth_bits(words: int, target: int) -> None:
    """Write a word of 32 bits in a row, of columns 0 to 31: bit g of byte b becomes that of column 4g + b."""
    bits, out = v.load_words(words), v.zero_words()
    for column in range(32):
        out = v.or_words(out, v.shl(v.extract_bits(bits, column, 1), 8 * (column & 3) + (column >> 2)))
    v.store_words(target, out)


@inline
def put_high_bits(words: int, count: int, shift: int, mask: int, step: int, target: int) -> None:
    """Write one word of the masked bits of several, those of the i-th word moved up by i times `step`."""
    out = v.zero_words()
    for i in range(count):
        out = v.or_words(out, v.shl(v.extract_bits(v.load_words(words + 64 * i), shift, mask), step * i))
    v.store_words(target, out)


@inline
def put_k_factors(words: int, block: int, target: int) -> None:
    """Write a block's 6-bit sub-scale and sub-minimum: the last four have their top bits in the first four's."""
    scales, minima, late = v.load_words(words), v.load_words(words + 64), v.load_words(words + 128)
    shift = 8 * (block & 3)
    if block < 4:
        scale, minimum = v.extract_bits(scales, shift, 63), v.extract_bits(minima, shift, 63)
    else:
        scale = v.or_words(v.extract_bits(late, shift, 15), v.shl(v.extract_bits(scales, shift + 6, 3), 4))
        minimum = v.or_words(v.extract_bits(late, shift + 4, 15), v.shl(v.extract_bits(minima, shift + 6, 3), 4))
    v.store_int8(target, scale)
    v.store_int8(target + 16, minimum)


@inline
def _pack(gather, put, size, packed_size, at, chunk):
    """Blocks of `size` bytes in the file, and for sixteen rows of `packed_size` in the stream."""
    raw, order, stream = v.read(at + PACK.blocks), v.read(at + PACK.order), v.read(at + PACK.stream)
    rows, blocks, tiles = v.read(at + PACK.rows), v.read(at + PACK.blocks_of_row), v.read(at + PACK.tiles)
    words = v.stack()
    for i in range(_MOST_WORDS):
        v.store_words(words + 64 * i, v.zero_words())
    for first in range(chunk * tiles * 16, min(rows, (chunk + 1) * tiles * 16), 16):
        lanes, to = min(16, rows - first), stream + (first >> 4) * blocks * packed_size
        if lanes < 16:  # the last tile: what lanes held before goes
            for i in range(_MOST_WORDS):
                v.store_words(words + 64 * i, v.zero_words())
        for block in range(blocks):
            for lane in range(lanes):
                row = v.read(order + 8 * (first + lane)) if order else first + lane
                gather(words, raw + (row * blocks + block) * size, lane)
            put(words, to + block * packed_size)


def pack(form: BlockFormat) -> Callable[[int, int], None]:
    """The repacking of a format's blocks."""
    gather, put, size, packed_size = inline(form.gather), inline(form.put), form.nbytes, form.packed_nbytes

    def compute(at: int, chunk: int) -> None:
        _pack(gather, put, size, packed_size, at, chunk)

    return compute
