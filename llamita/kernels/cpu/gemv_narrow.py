"""The inner part of `gemv_quantized` for 4-bit codes on processors with sixteen registers of eight lanes (AVX2).

Must equal what `gemv_quantized` makes of all words of a block at once, to the last bit. Here one word after the other
is loaded, unpacked and multiplied: LLVM else loads a whole block first, and keeps sums in memory for want of registers.
Blocks of 8-bit codes, which memory limits, are read slower this way.
"""

from llamita.kernels.block_format import BlockFormat, Layout
from llamita.kernels.cpu import half_lanes as h
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.block_dots import dots_of
from llamita.kernels.cpu.gemm_panels import add_offset, add_symmetric
from llamita.kernels.cpu.runtime.program import Inline, inline

_LOW = 0x0F0F0F0F


def suits(layout: Layout) -> bool:
    """Whether blocks are multiplied this way."""
    return v.instructions().dot_u8s8 == "vpmaddubsw.256" and layout.bits == 4 and layout.values is None


def block_times_row(form: BlockFormat) -> Inline:
    """A function that adds the products of a tile's block with a row of x to their sums: (tile, block, x, total)."""
    layout, unpack = form.layout, inline(form.unpack)
    begin, _, _, gather, step, close = dots_of(layout)
    zero, head, size, eight = layout.zero_bits, layout.head, layout.block, layout.eight_blocks
    skipped = head + size - 64 * layout.bits  # from a head to the codes of its first block

    @inline
    def word(at: int, x: int, pairs: v.Vector) -> v.Vector:
        """Four columns, and those sixteen columns on."""
        codes = v.load_words(at)
        pairs = step(pairs, v.extract_bits(codes, 0, _LOW), v.broadcast_word(x))
        pairs = step(pairs, v.extract_bits(codes, 4, _LOW), v.broadcast_word(x + 16))
        h.fence()
        return pairs

    @inline
    def products(tile: int, block: int, x: int, total: v.Vector) -> v.Vector:
        at = tile + (block >> 3) * eight + (block & 7) * size + skipped
        pairs = word(at + 64, x + 4, word(at, x, gather(total)))
        return close(total, word(at + 192, x + 12, word(at + 128, x + 8, pairs)))

    @inline
    def symmetric(tile: int, block: int, x: int, total: v.Vector) -> v.Vector:
        dot = products(tile, block, x, begin(x + 44, zero))
        _, scale, _ = unpack(tile, block)
        return add_symmetric(dot, dot, x, scale, scale, total)

    @inline
    def offset(tile: int, block: int, x: int, total: v.Vector) -> v.Vector:
        dot = products(tile, block, x, v.zero_words())
        _, scale, minimum = unpack(tile, block)
        return add_offset(dot, dot, x, scale, minimum, total)

    return offset if layout.has_minimum else symmetric
