"""The addresses of a row's keys and values in a cache: in contiguous slots, or in pages of a page table."""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Attend, Row, Sizes, offsets
from llamita.kernels.cpu.constants import TILE
from llamita.kernels.cpu.key_tiles import put_key, put_keys
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
def place_of(row: int, sizes: int, token: int) -> int:
    """The elements from a head's first on to a row's token, which may be before its first without a page table."""
    table, stride = v.read(row + ROW.table), v.read(sizes + SIZE.slot_stride)
    if table:
        bits = v.read(sizes + SIZE.page_bits)
        page = v.read(table + 8 * (token >> bits)) * v.read(sizes + SIZE.page_stride)
        return page + stride * (token & ((1 << bits) - 1))
    return stride * (v.read(row + ROW.first) + token)


@inline
def is_in_line(row: int, sizes: int, count: int) -> bool:
    """Whether `count` tokens (a power of two) from a multiple of `count` on lie in slots next to each other."""
    return v.read(row + ROW.table) == 0 or 1 << v.read(sizes + SIZE.page_bits) >= count


@inline
def store_token(dtype: int, at: int, row: int, head: int, token: int, scratch: int) -> None:
    """Rotate the key of a row's new token, and put it and its value into the cache. scratch: 1 KB to work in."""
    sizes, keys = v.read(at + AT.sizes), v.read(at + AT.keys)
    width, own = v.read(sizes + SIZE.width), v.read(row + ROW.start) + token
    to = head_of(sizes, row, head) + place_of(row, sizes, own)
    if v.read(sizes + SIZE.is_tiled):
        lane = own % TILE
        _rotate_key(dtype, at, row, head, token, scratch, 0)
        put_key(dtype, scratch, keys + e.size(dtype) * (to - lane * width), lane, width)
    else:
        _rotate_key(dtype, at, row, head, token, keys, to)
    _put_value(dtype, at, row, head, token, to)


@inline
def store_tile(dtype: int, at: int, row: int, head: int, token: int, scratch: int) -> None:
    """The same of sixteen new tokens, which fill a tile. scratch: 16 KB to work in."""
    sizes = v.read(at + AT.sizes)
    width, size = v.read(sizes + SIZE.width), e.size(dtype)
    to = head_of(sizes, row, head) + place_of(row, sizes, v.read(row + ROW.start) + token)
    for lane in range(TILE):
        _rotate_key(dtype, at, row, head, token + lane, scratch, lane * width)
        _put_value(dtype, at, row, head, token + lane, to + lane * width)
    put_keys(scratch, width * size, v.read(at + AT.keys) + size * to, width * size // 4)


@inline
def fills_tile(dtype: int, at: int, row: int, token: int, end: int) -> bool:
    """Whether a row's new tokens before `end` fill the tile that begins with this one, and `store_tile` can do it."""
    sizes = v.read(at + AT.sizes)
    begins = v.read(sizes + SIZE.is_tiled) and (v.read(row + ROW.start) + token) % TILE == 0
    return begins and token + TILE <= end and v.read(sizes + SIZE.width) * e.size(dtype) % 64 == 0


@inline
def _rotate_key(dtype, at, row, head, token, to, start):
    """Rotate the key of a new token, and write it from an element of `to` on."""
    sizes, number = v.read(at + AT.sizes), v.read(row + ROW.offset) + token
    heads, width = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.width)
    cosines, sines = v.read(at + AT.cosines) + 2 * width * number, v.read(at + AT.sines) + 2 * width * number
    one, key = v.extract_first(v.broadcast(1.0)), v.read(at + AT.k) + 4 * (number * heads + head) * width
    rotate(key, cosines, sines, width // 2, one, dtype, to, start)


@inline
def _put_value(dtype, at, row, head, token, to):
    """Write the value of a new token from an element of the cache on."""
    sizes, number = v.read(at + AT.sizes), v.read(row + ROW.offset) + token
    heads, width = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.width)
    value = v.read(at + AT.v) + 4 * (number * heads + head) * width
    for i in range(0, width, 16):
        e.put_wide(dtype, v.read(at + AT.values), to + i, v.load(value + 4 * i))
