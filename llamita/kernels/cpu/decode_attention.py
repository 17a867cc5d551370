"""Decode attention, for few new tokens in each row: rotate and store them; each then sees the tokens up to itself.

Must equal reference.attention bit for bit, and so `prefill_attention`. Arguments: `Attend`. H is a multiple of 16, at
most 256. A chunk is a key/value head of a row with its query heads, so the cache is read once for all of them.

Keys are taken 64 at a time, counted from the row's own first token, and transposed: a lane is a key, so no sum crosses
lanes. Of the values a lane is a column. Both add two products at a time, the second first, as `simd.dot_bf16` does.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Attend, Row, Sizes, offsets
from llamita.kernels.cpu.cache_rows import head_of, is_in_line, row_of, slot_of, store_token
from llamita.kernels.cpu.constants import KEYS
from llamita.kernels.cpu.elementwise import put_rounded
from llamita.kernels.cpu.functions import exponential
from llamita.kernels.cpu.interleaved import first_columns, last_columns
from llamita.kernels.cpu.rotary import rotate
from llamita.kernels.cpu.runtime.program import inline, kernel
from llamita.kernels.cpu.weighted_values import fetch, mix_pairs, mix_queries

AT, SIZE, ROW = offsets(Attend), offsets(Sizes), offsets(Row)
NEVER = -1e30  # less than any score
QUERIES = 16  # of a key/value head that are worked on at once
# Where things lie in the kernel's own memory, in bytes; columns are at most 256.
SCORES, OUT, Q, STATE, TILE, OFFSETS = 1 << 16, 69632, 86016, 102400, 102656, 103680
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
            begin = stride * slot_of(row, sizes, first + i)
            for lane in range(16):
                v.write(to + 8 * (i + lane), begin + stride * lane if first + i + lane < end else -1)
            continue
        for lane in range(i, i + 16):
            v.write(to + 8 * lane, stride * slot_of(row, sizes, first + lane) if first + lane < end else -1)


@inline
def _transpose_keys(dtype, is_paired, keys, stride, offsets, is_line, width, to, scratch):
    """Sixteen keys as columns (H, 16), or as pairs of columns (H/2, 16)."""
    columns = 2 if is_paired else 1  # of a word
    size, is_direct = e.size(dtype), is_line and v.read(offsets + 120) >= 0 and (is_paired or dtype == e.FP32)
    for i in range(0, width, 16 * columns):
        words = min(16, (width - i) // columns)
        if is_direct and words == 16:
            v.transpose(keys + v.read(offsets) + size * i, stride, to + 64 * (i // columns))
            continue
        for lane in range(16):
            offset, line = v.read(offsets + 8 * lane), scratch + 64 * lane
            if offset < 0:
                v.store(line, v.zero_fp32())
            elif is_paired or dtype == e.FP32:
                v.store(line, v.load_some(keys + offset + size * i, words))
            else:
                v.store(line, e.wide(dtype, keys + offset, i))
        v.transpose(scratch, 64, to + 64 * (i // columns))


@inline
def _score(is_paired, q, keys, width):
    """One query with four times sixteen keys."""
    a = b = c = d = v.zero_fp32()
    if is_paired:
        far = 32 * width
        for i in range(width // 2):
            word, at = v.broadcast_word(q + 4 * i), keys + 64 * i
            a, b = v.dot_bf16(a, v.load_words(at), word), v.dot_bf16(b, v.load_words(at + far), word)
            c, d = v.dot_bf16(c, v.load_words(at + 2 * far), word), v.dot_bf16(d, v.load_words(at + 3 * far), word)
        return a, b, c, d
    far = 64 * width
    for pair in range(0, width, 2):
        for i in (pair + 1, pair):
            x, at = v.broadcast(v.read_fp32(q + 4 * i)), keys + 64 * i
            a, b = v.fma(v.load(at), x, a), v.fma(v.load(at + far), x, b)
            c, d = v.fma(v.load(at + 2 * far), x, c), v.fma(v.load(at + 3 * far), x, d)
    return a, b, c, d


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
def _softmax_step(dtype, is_paired, q, keys, first, low, high, width, to, state):
    """A step of the online softmax: a query's factors for a block of values.

    state: its largest score, the sum of its factors, and what its sums so far are to be multiplied by.
    """
    a, b, c, d = _score(is_paired, q, keys, width)
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
def _begin_queries(dtype, is_paired, at, row, head, begin, count, scratch):
    """Rotate, scale and round the queries as the cache is rounded, and begin their softmax."""
    sizes = v.read(at + AT.sizes)
    heads, group = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group)
    width, scale = v.read(sizes + SIZE.width), v.read_fp32(sizes + SIZE.scale)
    for i in range(count):
        number = v.read(row + ROW.offset) + (begin + i) // group
        x = v.read(at + AT.q) + 4 * width * ((number * heads + head) * group + (begin + i) % group)
        cosines, sines = v.read(at + AT.cosines) + 2 * width * number, v.read(at + AT.sines) + 2 * width * number
        to = scratch + Q + 1024 * i
        if is_paired:
            rotate(x, cosines, sines, width // 2, scale, e.BF16, to, 0)
        else:
            rotate(x, cosines, sines, width // 2, scale, e.FP32, to, 0)
            if dtype == e.BF16:
                for column in range(0, width, 16):
                    v.store(to + 4 * column, v.round_bf16(v.load(to + 4 * column)))
        v.zero_memory(scratch + OUT + 1024 * i, -(-width // 32) * 2)
        v.write_fp32(scratch + STATE + 16 * i, v.extract_first(v.broadcast(NEVER)))
        v.write_fp32(scratch + STATE + 16 * i + 4, v.extract_first(v.zero_fp32()))


@inline
def _first_block(at, sizes, dtype, chunk):
    """Of a chunk: its row, its bytes in the cache before its head, and the first and last of its first block's tokens.

    A chunk after the last has no tokens.
    """
    heads, group, window = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group), v.read(sizes + SIZE.window)
    number = min(chunk // heads, v.read(sizes + SIZE.rows) - 1)
    row = row_of(at, number)
    where = e.size(dtype) * head_of(sizes, row, chunk % heads)
    start, queries = v.read(row + ROW.start), v.read(row + ROW.tokens) * group
    late = start + (min(QUERIES, queries) - 1) // group
    first = max(0, start - window + 1) // KEYS * KEYS
    return row, where, first, min(first + KEYS, late + 1) if number == chunk // heads else first


@inline
def _attend_queries(dtype, is_paired, at, chunk, begin, count, scratch):
    """The queries `begin` to `begin + count` of a head: block after block of the keys that any of them sees.

    Between the work on a block the next one is prefetched, at the end that of the next chunk: the processor's own
    prefetcher cannot know where the next page is. `ahead`: where the next values lie, their offsets, and bytes of each.
    """
    sizes = v.read(at + AT.sizes)
    row, head = row_of(at, chunk // v.read(sizes + SIZE.heads)), chunk % v.read(sizes + SIZE.heads)
    group, window = v.read(sizes + SIZE.group), v.read(sizes + SIZE.window)
    width, size = v.read(sizes + SIZE.width), e.size(dtype)
    stride, is_line = size * v.read(sizes + SIZE.slot_stride), is_in_line(row, sizes, 16)
    where, all_keys, all_values = size * head_of(sizes, row, head), v.read(at + AT.keys), v.read(at + AT.values)
    early, late = v.read(row + ROW.start) + begin // group, v.read(row + ROW.start) + (begin + count - 1) // group
    words = width // 2 if is_paired else width  # of a key's columns
    here, there = scratch + OFFSETS, scratch + OFFSETS + LIST
    start = max(0, early - window + 1) // KEYS * KEYS
    _find_offsets(row, sizes, size, start, late + 1, is_line, here)
    for first in range(start, late + 1, KEYS):
        end = min(KEYS, late + 1 - first)
        next_row, next_where, next_first, next_end = row, where, first + KEYS, min(first + 2 * KEYS, late + 1)
        if next_first > late:
            next_row, next_where, next_first, next_end = _first_block(at, sizes, dtype, chunk + 1)
        _find_offsets(next_row, sizes, size, next_first, next_end, is_line, there)
        coming = next_end - next_first
        for i in range(0, KEYS, 16):
            fetch(all_keys + next_where, there + 8 * i, min(16, max(0, coming - i)), width * size)
            if i < end:
                to, offsets_of = scratch + 4 * words * i, here + 8 * i
                _transpose_keys(
                    dtype, is_paired, all_keys + where, stride, offsets_of, is_line, width, to, scratch + TILE
                )
        for i in range(count):
            own = v.read(row + ROW.start) + (begin + i) // group
            q, to, state = scratch + Q + 1024 * i, scratch + SCORES + 256 * i, scratch + STATE + 16 * i
            _softmax_step(dtype, is_paired, q, scratch, first, max(0, own - window + 1), own, width, to, state)
        ahead = all_values + next_where, there, width * size if coming > 0 else 0
        together = 2 if is_paired else 4
        for i in range(0, count, together):
            factors, out, state = scratch + SCORES + 256 * i, scratch + OUT + 1024 * i, scratch + STATE + 16 * i
            some = min(together, count - i)
            if is_paired:
                mix_pairs(factors, all_values + where, here, end, out, state, some, width, ahead)
            else:
                mix_queries(dtype, factors, all_values + where, here, end, out, state, some, width, ahead)
            ahead = ahead[0], there, 0
        done = end // 2 * 2
        fetch(all_values + next_where, there + 8 * done, max(0, coming - done), width * size)
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
    heads, group, width = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group), v.read(sizes + SIZE.width)
    row, head = row_of(at, chunk // heads), chunk % heads
    tokens, offset = v.read(row + ROW.tokens), v.read(row + ROW.offset)
    for token in range(tokens):
        store_token(dtype, at, row, head, token)
    for begin in range(0, tokens * group, QUERIES):
        count = min(QUERIES, tokens * group - begin)
        _begin_queries(dtype, is_paired, at, row, head, begin, count, scratch)
        _attend_queries(dtype, is_paired, at, chunk, begin, count, scratch)
        for i in range(count):
            number = offset + (begin + i) // group
            to = v.read(at + AT.out) + 4 * width * ((number * heads + head) * group + (begin + i) % group)
            inverse = inverse_of(v.broadcast(v.read_fp32(scratch + STATE + 16 * i + 4)))
            _put(is_paired, scratch + OUT + 1024 * i, inverse, width, to)
    for token in range(tokens):
        start = ((offset + token) * heads + head) * group * width
        halves, q8_blocks = v.read(at + AT.halves), v.read(at + AT.q8_blocks)
        put_rounded(v.read(at + AT.out) + 4 * start, start, group * width, halves, q8_blocks)


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
