"""The addresses of a row's keys and values in a cache: in contiguous slots, or in pages of a page table."""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Attend, Row, Sizes, offsets
from llamita.kernels.cpu.rotary import rotate
from llamita.kernels.cpu.runtime.program import inline

AT, SIZE, ROW = offsets(Attend), offsets(Sizes), offsets(Row)
ROW_BYTES = 64


@inline
def row_of(at: int, number: int) -> int:
    """The address of a row's `Row`."""
    return v.read(at + AT.rows) + ROW_BYTES * number


@inline
def row_of_entry(at: int, entries: int, number: int) -> tuple[int, int]:
    """Of an entry of `Attend.blocks` or `Attend.tiles`: the row's address, and the token."""
    entry = entries + 16 * number
    return row_of(at, v.read(entry)), v.read(entry + 8)


@inline
def head_of(sizes: int, row: int, head: int) -> int:
    """The element where a key/value head of a row begins in the cache."""
    return v.read(row + ROW.row) * v.read(sizes + SIZE.row_stride) + head * v.read(sizes + SIZE.head_stride)


@inline
def slot_of(row: int, sizes: int, token: int) -> int:
    """The slot of a row's token, which may be before its first where there is no page table."""
    table = v.read(row + ROW.table)
    if table:
        bits = v.read(sizes + SIZE.page_bits)
        return (v.read(table + 8 * (token >> bits)) << bits) + (token & ((1 << bits) - 1))
    return v.read(row + ROW.first) + token


@inline
def is_in_line(row: int, sizes: int, count: int) -> bool:
    """Whether `count` tokens (a power of two) from a multiple of `count` on lie in slots next to each other."""
    return v.read(row + ROW.table) == 0 or 1 << v.read(sizes + SIZE.page_bits) >= count


@inline
def store_token(dtype: int, at: int, row: int, head: int, token: int) -> None:
    """Rotate the key of a row's new token, and put it and its value into the cache."""
    sizes = v.read(at + AT.sizes)
    heads, width = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.width)
    number, half = v.read(row + ROW.offset) + token, width // 2
    slot = slot_of(row, sizes, v.read(row + ROW.start) + token)
    to, new = head_of(sizes, row, head) + slot * v.read(sizes + SIZE.slot_stride), 4 * (number * heads + head) * width
    cosines, sines = v.read(at + AT.cosines) + 4 * half * number, v.read(at + AT.sines) + 4 * half * number
    one = v.extract_first(v.broadcast(1.0))
    rotate(v.read(at + AT.k) + new, cosines, sines, half, one, dtype, v.read(at + AT.keys), to)
    for i in range(0, width, 16):
        e.put_wide(dtype, v.read(at + AT.values), to + i, v.load(v.read(at + AT.v) + new + 4 * i))
