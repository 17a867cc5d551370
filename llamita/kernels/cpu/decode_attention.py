"""Decode attention, for few new tokens in each row: rotate and store them; each then sees the tokens up to itself.

Must equal reference.attention bit for bit, and so `prefill_attention`. Arguments: `Attend`. H is a multiple of 16, at
most 256. A chunk is some key/value heads of a row with their query heads, so the cache is read once for all of them.

Keys are taken 64 at a time, counted from the row's own first token, in tiles where a lane is a key (`key_tiles`). Of
the values a lane is a column. Both add two products at a time, the second first, as `simd.dot_bf16` does.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Attend, Row, Sizes, offsets
from llamita.kernels.cpu.cache_rows import head_of, is_in_line, place_of, row_of, store_token
from llamita.kernels.cpu.constants import KEYS, TILE
from llamita.kernels.cpu.elementwise import put_rounded
from llamita.kernels.cpu.functions import exponential
from llamita.kernels.cpu.interleaved import first_columns, last_columns
from llamita.kernels.cpu.key_tiles import score, transpose_keys
from llamita.kernels.cpu.rotary import rotate
from llamita.kernels.cpu.runtime.program import inline, kernel
from llamita.kernels.cpu.weighted_values import fetch, mix_pairs, mix_queries, without_pieces

AT, SIZE, ROW = offsets(Attend), offsets(Sizes), offsets(Row)
NEVER = -1e30  # less than any score
QUERIES = 16  # of a chunk that are worked on at once
# Where things lie in the kernel's own memory, in bytes; columns are at most 256.
SCORES, OUT, Q, STATE, LINES, OFFSETS = 1 << 16, 69632, 86016, 102400, 102656, 103680
LIST = 8 * KEYS  # bytes of the offsets of a block


@inline
def hide(x: v.Vector, first: int, low: int, high: int, hidden: v.Vector) -> v.Vector:
    """x with the lanes before token `low` and after `high` replaced; lane 0 is token `first`."""
    x = v.blend_from(x, low - first, hidden)
    return v.blend_from(hidden, high + 1 - first, x)


@inline
def _find_offsets(row, sizes, size, first, end, is_line, to):
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
def _exponentials(dtype, is_paired, x, largest, first, low, high, to, i):
    """exp(score - largest), written as factors of values; returns them as they are before they are rounded for that."""
    x = hide(exponential(v.sub(x, largest)), first, low, high, v.zero_fp32())
    if is_paired:
        v.store_bf16(to + 2 * i, x)
    elif dtype == e.BF16:
        v.store(to + 4 * i, v.round_bf16(x))
    else:
        v.store(to + 4 * i, x)
    return x


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
def _softmax_step(dtype, is_paired, is_tiled, q, tiles, first, low, high, width, to, state, ahead):
    """A step of the online softmax: a query's factors for a block of values.

    state: its largest score, the sum of its factors, and what its sums so far are to be multiplied by.
    """
    a, b, c, d = _score(dtype, is_paired, is_tiled, q, tiles, width, ahead)
    never = v.broadcast(NEVER)
    a, b = hide(a, first, low, high, never), hide(b, first + 16, low, high, never)
    c, d = hide(c, first + 32, low, high, never), hide(d, first + 48, low, high, never)
    before = v.broadcast(v.read_fp32(state))
    largest = v.max(before, v.broadcast(v.reduce_max(v.max(v.max(a, b), v.max(c, d)))))
    rescale = exponential(v.sub(before, largest))
    a = _exponentials(dtype, is_paired, a, largest, first, low, high, to, 0)
    b = _exponentials(dtype, is_paired, b, largest, first + 16, low, high, to, 16)
    c = _exponentials(dtype, is_paired, c, largest, first + 32, low, high, to, 32)
    d = _exponentials(dtype, is_paired, d, largest, first + 48, low, high, to, 48)
    added = v.broadcast(v.reduce_add(v.add(v.add(v.add(a, b), c), d)))
    v.write_fp32(state, v.extract_first(largest))
    v.write_fp32(state + 4, v.extract_first(v.fma(v.broadcast(v.read_fp32(state + 4)), rescale, added)))
    v.write_fp32(state + 8, v.extract_first(rescale))


@inline
def _begin_queries(dtype, is_paired, at, row, head, begin, count, scratch, own):
    """Rotate, scale and round the queries as the cache is rounded, and begin their softmax."""
    sizes = v.read(at + AT.sizes)
    heads, group = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group)
    width, scale = v.read(sizes + SIZE.width), v.read_fp32(sizes + SIZE.scale)
    for i in range(count):
        number = v.read(row + ROW.offset) + (begin + i) // group
        x = v.read(at + AT.q) + 4 * width * ((number * heads + head) * group + (begin + i) % group)
        cosines, sines = v.read(at + AT.cosines) + 2 * width * number, v.read(at + AT.sines) + 2 * width * number
        to, out, state = (
            scratch + Q + 1024 * (own + i),
            scratch + OUT + 1024 * (own + i),
            scratch + STATE + 16 * (own + i),
        )
        if is_paired:
            rotate(x, cosines, sines, width // 2, scale, e.BF16, to, 0)
        else:
            rotate(x, cosines, sines, width // 2, scale, e.FP32, to, 0)
            if dtype == e.BF16:
                for column in range(0, width, 16):
                    v.store(to + 4 * column, v.round_bf16(v.load(to + 4 * column)))
        v.zero_memory(out, -(-width // 32) * 2)
        v.write_fp32(state, v.extract_first(v.broadcast(NEVER)))
        v.write_fp32(state + 4, v.extract_first(v.zero_fp32()))


@inline
def _heads_of(at, chunk):
    """Of a chunk: its row, its first head and how many it has; none for a chunk after the last."""
    sizes = v.read(at + AT.sizes)
    heads, span = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.span)
    parts = -(-heads // span)
    number, head = chunk // parts, chunk % parts * span
    last = v.read(sizes + SIZE.rows) - 1
    return row_of(at, min(number, last)), head, min(span, heads - head) if number <= last else 0


@inline
def _first_block(at, sizes, dtype, chunk):
    """Of a chunk: its row, its bytes in the cache before its first head, and its first block's first and last tokens.

    A chunk after the last has no tokens.
    """
    row, head, heads = _heads_of(at, chunk)
    group, window = v.read(sizes + SIZE.group), v.read(sizes + SIZE.window)
    start, queries = v.read(row + ROW.start), v.read(row + ROW.tokens) * group
    late = start + (min(QUERIES // max(1, heads), queries) - 1) // group
    first = max(0, start - window + 1) // KEYS * KEYS
    end = min(first + KEYS, late + 1) if heads > 0 else first
    return row, e.size(dtype) * head_of(sizes, row, head), first, end


@inline
def _pieces(keys, offsets, end):
    """Where the sixteens of a block's `end` tokens begin; the last again for those after it."""
    last = max(0, end - 1) // TILE
    a, b = keys + v.read(offsets), keys + v.read(offsets + 8 * TILE * min(1, last))
    return a, b, keys + v.read(offsets + 8 * TILE * min(2, last)), keys + v.read(offsets + 8 * TILE * last)


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
    a, b, c, d = _pieces(v.read(at + AT.keys) + next_where, there, coming)
    nbytes = 2 * TILE * size if coming > 0 else 0  # of a tile for a pair of columns
    ahead = a, b, c, d, nbytes, nbytes, TILE * width * size
    if is_tiled:
        tiles = _pieces(keys, offsets, end)
    else:
        tiles = _transposed(dtype, is_paired, sizes, row, keys, offsets, end, width, scratch, ahead)
        ahead = without_pieces(ahead)
    for i in range(count):
        token = v.read(row + ROW.start) + (begin + i) // group
        q, to, state = scratch + Q + 1024 * (own + i), scratch + SCORES + 256 * i, scratch + STATE + 16 * (own + i)
        low = max(0, token - window + 1)
        _softmax_step(dtype, is_paired, is_tiled, q, tiles, first, low, token, width, to, state, ahead)
        ahead = without_pieces(ahead)
    ahead = _next_values(v.read(at + AT.values) + next_where, there, coming, is_tiled, width * size)
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
def _next_values(values, offsets, coming, is_tiled, nbytes):
    """What to prefetch for each pair of values: of all sixteens side by side, as keys are; or values in their order."""
    half = nbytes // 2 if coming > 0 else 0
    if is_tiled:
        a, b, c, d = _pieces(values, offsets, coming)
        return a, b, c, d, half, half, TILE * nbytes
    first = values + v.read(offsets)
    return first, first + half, first + 2 * half, first + 3 * half, half, 4 * half, max(0, coming - 2) * nbytes


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
    row, head, heads = _heads_of(at, chunk)
    group, window = v.read(sizes + SIZE.group), v.read(sizes + SIZE.window)
    size, is_tiled = e.size(dtype), v.read(sizes + SIZE.is_tiled)
    is_line, far = is_in_line(row, sizes, TILE), size * v.read(sizes + SIZE.head_stride)
    where, new = size * head_of(sizes, row, head), v.read(row + ROW.start)
    early, late = new + begin // group, new + (begin + count - 1) // group
    here, there = scratch + OFFSETS, scratch + OFFSETS + LIST
    start = max(0, early - window + 1) // KEYS * KEYS
    _find_offsets(row, sizes, size, start, late + 1, is_line, here)
    for first in range(start, late + 1, KEYS):
        end = min(KEYS, late + 1 - first)
        next_row, next_where, next_first, next_end = row, where, first + KEYS, min(first + 2 * KEYS, late + 1)
        if next_first > late:
            next_row, next_where, next_first, next_end = _first_block(at, sizes, dtype, chunk + 1)
        _find_offsets(next_row, sizes, size, next_first, next_end, is_line, there)
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
def _put(is_paired, sums, inverse, width, to):
    """Write sums (H,) times the inverse of their softmax's sum."""
    for i in range(0, width, 32 if is_paired else 16):
        x = v.load(sums + 4 * i)
        if is_paired:
            y = v.load(sums + 4 * i + 64)
            v.store(to + 4 * i, v.mul(first_columns(x, y), inverse))
            if i + 32 <= width:
                v.store(to + 4 * i + 64, v.mul(last_columns(x, y), inverse))
        else:
            v.store(to + 4 * i, v.mul(x, inverse))


@inline
def _attend(dtype, is_paired, at, chunk):
    sizes, scratch = v.read(at + AT.sizes), v.stack()
    row, head, heads = _heads_of(at, chunk)
    queries = v.read(row + ROW.tokens) * v.read(sizes + SIZE.group)
    if v.read(sizes + SIZE.is_tiled) == 0:
        for i in range(heads):
            _store_tokens(dtype, at, row, head + i, scratch)
    most = max(1, QUERIES // heads)  # as LLVM must see that no step is 0, or the kernel needs Numba to run
    for begin in range(0, queries, most):
        count = min(most, queries - begin)
        for i in range(heads):
            _begin_queries(dtype, is_paired, at, row, head + i, begin, count, scratch, count * i)
        _attend_queries(dtype, is_paired, at, chunk, begin, count, scratch)
        for i in range(heads):
            _end_queries(is_paired, at, row, head + i, begin, count, scratch, count * i)
    _round(at, row, head, heads)


@inline
def _end_queries(is_paired, at, row, head, begin, count, scratch, own):
    """Write the results of a head's queries."""
    sizes = v.read(at + AT.sizes)
    heads, group, width = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group), v.read(sizes + SIZE.width)
    for i in range(count):
        number = v.read(row + ROW.offset) + (begin + i) // group
        to = v.read(at + AT.out) + 4 * width * ((number * heads + head) * group + (begin + i) % group)
        inverse = inverse_of(v.broadcast(v.read_fp32(scratch + STATE + 16 * (own + i) + 4)))
        _put(is_paired, scratch + OUT + 1024 * (own + i), inverse, width, to)


@inline
def _round(at, row, head, heads):
    """Write the results of some heads, which lie together, again, rounded."""
    sizes = v.read(at + AT.sizes)
    all_heads, each = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group) * v.read(sizes + SIZE.width)
    halves, q8_blocks = v.read(at + AT.halves), v.read(at + AT.q8_blocks)
    for token in range(v.read(row + ROW.tokens)):
        start = ((v.read(row + ROW.offset) + token) * all_heads + head) * each
        put_rounded(v.read(at + AT.out) + 4 * start, start, heads * each, halves, q8_blocks)


@inline
def inverse_of(total: v.Vector) -> v.Vector:
    """One over sums; 0 for the sum of a query that sees nothing, which is padding."""
    return v.div(v.min(total, v.broadcast(1.0)), v.max(total, v.broadcast(1.0)))  # of any other the largest term is 1


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
