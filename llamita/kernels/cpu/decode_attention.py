"""Decode attention, for few new tokens in each row: rotate and store them; each then sees the tokens up to itself.

Must equal reference.attention bit for bit, and so `prefill_attention`. Arguments: `Attend`. H is a multiple of 16, at
most 256. A chunk is some key/value heads of a row with their query heads, so the cache is read once for all of them.

Keys are taken 64 at a time, counted from the row's own first token, in tiles where a lane is a key (`key_tiles`). Of
the values a lane is a column. Both add two products at a time, the second first, as `simd.dot_bf16` does.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Attend, Row, Sizes, offsets
from llamita.kernels.cpu.cache_blocks import find_offsets, first_block, heads_of, next_values, pieces
from llamita.kernels.cpu.cache_rows import head_of, is_in_line, store_token
from llamita.kernels.cpu.constants import KEYS, TILE
from llamita.kernels.cpu.decode_queries import OUT, QUERIES, SCORES, STATE, Q, begin_queries, end_queries, round_heads
from llamita.kernels.cpu.key_tiles import score, transpose_keys
from llamita.kernels.cpu.online_softmax import softmax_step
from llamita.kernels.cpu.runtime.program import inline, kernel
from llamita.kernels.cpu.weighted_values import fetch, mix_pairs, mix_queries, without_pieces

AT, SIZE, ROW = offsets(Attend), offsets(Sizes), offsets(Row)
LINES, OFFSETS = 102656, 103680  # in the kernel's own memory, after what `decode_queries` has there
LIST = 8 * KEYS  # bytes of the offsets of a block


@inline
def _score(dtype, is_paired, is_tiled, q, tiles, width, ahead):
    """One query with the tiles of the cache, or those made of its keys, which are fp32 unless they are pairs."""
    if is_tiled and not is_paired:
        if ahead[4]:
            return score(dtype, False, q, tiles, width, True, ahead)
        return score(dtype, False, q, tiles, width, False, ahead)
    if ahead[4]:
        return score(e.FP32, is_paired, q, tiles, width, True, ahead)
    return score(e.FP32, is_paired, q, tiles, width, False, ahead)


@inline
def _store_tokens(dtype, at, row, head, scratch):
    """Put the new tokens of a row into the cache: into tiles when they have been prefetched, as each has many lines."""
    for token in range(v.read(row + ROW.tokens)):
        store_token(dtype, at, row, head, token, scratch + LINES)


@inline
def _attend_block(
    dtype, is_paired, at, row, where, offsets, first, end, begin, count, next_where, there, coming, scratch, own
):
    """The queries of one head with a block of tokens. What comes next is prefetched meanwhile.

    The processor's own prefetcher cannot know where the next page is. own: the first of the queries' numbers in the
    kernel's memory.
    """
    sizes = v.read(at + AT.sizes)
    group, window, is_tiled = v.read(sizes + SIZE.group), v.read(sizes + SIZE.window), v.read(sizes + SIZE.is_tiled)
    width, size = v.read(sizes + SIZE.width), e.size(dtype)
    keys, values = v.read(at + AT.keys) + where, v.read(at + AT.values) + where
    a, b, c, d = pieces(v.read(at + AT.keys) + next_where, there, coming)
    nbytes = 2 * TILE * size if coming > 0 else 0  # of a tile for a pair of columns
    ahead = a, b, c, d, nbytes, nbytes, TILE * width * size
    if is_tiled:
        tiles = pieces(keys, offsets, end)
    else:
        tiles = _transposed(dtype, is_paired, sizes, row, keys, offsets, end, width, scratch, ahead)
        ahead = without_pieces(ahead)
    for i in range(count):
        token = v.read(row + ROW.start) + (begin + i) // group
        q, to, state = scratch + Q + 1024 * (own + i), scratch + SCORES + 256 * i, scratch + STATE + 16 * (own + i)
        low = max(0, token - window + 1)
        scores = _score(dtype, is_paired, is_tiled, q, tiles, width, ahead)
        softmax_step(dtype, is_paired, scores, first, low, token, to, state)
        ahead = without_pieces(ahead)
    ahead = next_values(v.read(at + AT.values) + next_where, there, coming, is_tiled, width * size)
    together = 2 if is_paired else 4
    for i in range(0, count, together):
        factors, out, state = (
            scratch + SCORES + 256 * i,
            scratch + OUT + 1024 * (own + i),
            scratch + STATE + 16 * (own + i),
        )
        some = min(together, count - i)
        if is_paired:
            mix_pairs(factors, values, offsets, end, out, state, some, width, ahead)
        else:
            mix_queries(dtype, factors, values, offsets, end, out, state, some, width, ahead)
        if i == 0:
            fetch(ahead, end // 2, KEYS // 2)
        ahead = without_pieces(ahead)


@inline
def _transposed(dtype, is_paired, sizes, row, keys, offsets, end, width, scratch, ahead):
    """Tiles of the keys of a block, which lie one after the other in the cache."""
    stride, is_line = e.size(dtype) * v.read(sizes + SIZE.slot_stride), is_in_line(row, sizes, TILE)
    far = 32 * width if is_paired else 64 * width
    nbytes = TILE * width * e.size(dtype) if ahead[4] else 0
    for i in range(4):
        v.prefetch_lines(ahead[i], nbytes)
        if TILE * i < end:
            transpose_keys(
                dtype,
                is_paired,
                keys,
                stride,
                offsets + 8 * TILE * i,
                is_line,
                width,
                scratch + far * i,
                scratch + LINES,
            )
    return scratch, scratch + far, scratch + 2 * far, scratch + 3 * far


@inline
def _attend_queries(dtype, is_paired, at, chunk, begin, count, scratch):
    """The queries `begin` to `begin + count` of a chunk's heads: block after block of the tokens that any of them sees.

    A block is read for all heads before the next, as what heads have of a page lies together.
    """
    sizes = v.read(at + AT.sizes)
    row, head, heads = heads_of(at, chunk)
    group, window = v.read(sizes + SIZE.group), v.read(sizes + SIZE.window)
    size, is_tiled = e.size(dtype), v.read(sizes + SIZE.is_tiled)
    is_line, far = is_in_line(row, sizes, TILE), size * v.read(sizes + SIZE.head_stride)
    where, new = size * head_of(sizes, row, head), v.read(row + ROW.start)
    early, late = new + begin // group, new + (begin + count - 1) // group
    here, there = scratch + OFFSETS, scratch + OFFSETS + LIST
    start = max(0, early - window + 1) // KEYS * KEYS
    find_offsets(row, sizes, size, start, late + 1, is_line, here)
    for first in range(start, late + 1, KEYS):
        end = min(KEYS, late + 1 - first)
        next_row, next_where, next_first, next_end = row, where, first + KEYS, min(first + 2 * KEYS, late + 1)
        if next_first > late:
            next_row, next_where, next_first, next_end = first_block(at, sizes, dtype, chunk + 1)
        find_offsets(next_row, sizes, size, next_first, next_end, is_line, there)
        for i in range(heads):
            if is_tiled and begin == 0 and first <= new < first + KEYS:
                _store_tokens(dtype, at, row, head + i, scratch)
            its, then, after, coming = where + far * i, where + far * (i + 1), here, end
            if i + 1 == heads:
                then, after, coming = next_where, there, next_end - next_first
            _attend_block(
                dtype, is_paired, at, row, its, here, first, end, begin, count, then, after, coming, scratch, count * i
            )
        here, there = there, here


@inline
def _attend(dtype, is_paired, at, chunk):
    sizes, scratch = v.read(at + AT.sizes), v.stack()
    row, head, heads = heads_of(at, chunk)
    queries = v.read(row + ROW.tokens) * v.read(sizes + SIZE.group)
    if v.read(sizes + SIZE.is_tiled) == 0:
        for i in range(heads):
            _store_tokens(dtype, at, row, head + i, scratch)
    most = max(1, QUERIES // heads)  # as LLVM must see that no step is 0, or the kernel needs Numba to run
    for begin in range(0, queries, most):
        count = min(most, queries - begin)
        for i in range(heads):
            begin_queries(dtype, is_paired, at, row, head + i, begin, count, scratch, count * i)
        _attend_queries(dtype, is_paired, at, chunk, begin, count, scratch)
        for i in range(heads):
            end_queries(is_paired, at, row, head + i, begin, count, scratch, count * i)
    round_heads(at, row, head, heads)


@kernel
def attend_fp32(at: int, chunk: int) -> None:
    """A cache in fp32."""
    _attend(e.FP32, False, at, chunk)


@kernel
def attend_fp16(at: int, chunk: int) -> None:
    """A cache in fp16; queries and factors are fp32."""
    _attend(e.FP16, False, at, chunk)


@kernel
def attend_bf16(at: int, chunk: int) -> None:
    """A cache in bf16; queries and factors are rounded to bf16."""
    _attend(e.BF16, False, at, chunk)


@kernel
def attend_pairs(at: int, chunk: int) -> None:
    """The same bits as attend_bf16, with the bf16 dot product instruction."""
    _attend(e.BF16, True, at, chunk)
