"""Blocks of 64 tokens of the cache for decode attention: where they are, and what comes next."""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Attend, Row, Sizes, offsets
from llamita.kernels.cpu.cache_rows import head_of, place_of, row_of
from llamita.kernels.cpu.constants import KEYS, TILE
from llamita.kernels.cpu.decode_queries import QUERIES
from llamita.kernels.cpu.runtime.program import inline
from llamita.kernels.cpu.weighted_values import Ahead

AT, SIZE, ROW = offsets(Attend), offsets(Sizes), offsets(Row)


@inline
def heads_of(at: int, chunk: int) -> tuple[int, int, int]:
    """Of a chunk: its row, its first head and how many it has; none for a chunk after the last."""
    sizes = v.read(at + AT.sizes)
    heads, span = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.span)
    parts = -(-heads // span)
    number, head = chunk // parts, chunk % parts * span
    last = v.read(sizes + SIZE.rows) - 1
    return row_of(at, min(number, last)), head, min(span, heads - head) if number <= last else 0


@inline
def first_block(at: int, sizes: int, dtype: int, chunk: int) -> tuple[int, int, int, int]:
    """Of a chunk: its row, its bytes in the cache before its first head, and its first block's first and last tokens.

    A chunk after the last has no tokens.
    """
    row, head, heads = heads_of(at, chunk)
    group, window = v.read(sizes + SIZE.group), v.read(sizes + SIZE.window)
    start, queries = v.read(row + ROW.start), v.read(row + ROW.tokens) * group
    late = start + (min(QUERIES // max(1, heads), queries) - 1) // group
    first = max(0, start - window + 1) // KEYS * KEYS
    end = min(first + KEYS, late + 1) if heads > 0 else first
    return row, e.size(dtype) * head_of(sizes, row, head), first, end


@inline
def find_offsets(row: int, sizes: int, size: int, first: int, end: int, is_line: bool, to: int) -> None:
    """The offsets in bytes of a block's tokens from `first` on, to `to`; -1 from `end` on."""
    stride = size * v.read(sizes + SIZE.slot_stride)
    for i in range(0, KEYS, 16):
        if is_line and first + i < end:
            begin = size * place_of(row, sizes, first + i)
            for lane in range(16):
                v.write(to + 8 * (i + lane), begin + stride * lane if first + i + lane < end else -1)
            continue
        for lane in range(i, i + 16):
            v.write(to + 8 * lane, size * place_of(row, sizes, first + lane) if first + lane < end else -1)


@inline
def pieces(keys: int, offsets: int, end: int) -> tuple[int, int, int, int]:
    """Where the sixteens of a block's `end` tokens begin; the last again for those after it."""
    last = max(0, end - 1) // TILE
    a, b = keys + v.read(offsets), keys + v.read(offsets + 8 * TILE * min(1, last))
    return a, b, keys + v.read(offsets + 8 * TILE * min(2, last)), keys + v.read(offsets + 8 * TILE * last)


@inline
def next_values(values: int, offsets: int, coming: int, is_tiled: int, nbytes: int) -> Ahead:
    """What to prefetch for each pair of values: of all sixteens side by side, as keys are; or values in their order."""
    half = nbytes // 2 if coming > 0 else 0
    if is_tiled:
        a, b, c, d = pieces(values, offsets, coming)
        return a, b, c, d, half, half, TILE * nbytes
    first = values + v.read(offsets)
    return first, first + half, first + 2 * half, first + 3 * half, half, 4 * half, max(0, coming - 2) * nbytes
