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
from llamita.kernels.cpu.rotary import rotate
from llamita.kernels.cpu.runtime.program import inline, kernel

AT, SIZE, ROW = offsets(Attend), offsets(Sizes), offsets(Row)
NEVER = -1e30  # less than any score
QUERIES = 16  # of a key/value head that are worked on at once
# Where things lie in the kernel's own memory, in bytes; columns are at most 256.
SCORES, OUT, Q, STATE, NEAR, OFFSETS = 1 << 16, 69632, 86016, 102400, 102656, 103680


@inline
def hide(x: v.Vector, first: int, low: int, high: int, hidden: v.Vector) -> v.Vector:
    """x with the lanes before token `low` and after `high` replaced; lane 0 is token `first`."""
    x = v.blend_from(x, low - first, hidden)
    return v.blend_from(hidden, high + 1 - first, x)


@inline
def _find(its, sizes, size, first, end, is_line, to):
    """The offsets in bytes of a block's tokens from `first` on, to `to`; -1 from `end` on."""
    stride = size * v.read(sizes + SIZE.slot_stride)
    for i in range(0, KEYS, 16):
        if is_line and first + i < end:
            begin = stride * slot_of(its, sizes, first + i)
            for lane in range(16):
                v.write(to + 8 * (i + lane), begin + stride * lane if first + i + lane < end else -1)
            continue
        for lane in range(i, i + 16):
            v.write(to + 8 * lane, stride * slot_of(its, sizes, first + lane) if first + lane < end else -1)


@inline
def _transpose_keys(dtype, is_paired, keys, stride, offsets, is_line, width, to, near):
    """Sixteen keys as columns (H, 16), or as pairs of columns (H/2, 16)."""
    columns = 2 if is_paired else 1  # of a word
    size, is_direct = e.size(dtype), is_line and v.read(offsets + 120) >= 0 and (is_paired or dtype == e.FP32)
    for i in range(0, width, 16 * columns):
        words = min(16, (width - i) // columns)
        if is_direct and words == 16:
            v.transpose(keys + v.read(offsets) + size * i, stride, to + 64 * (i // columns))
            continue
        for lane in range(16):
            offset, row = v.read(offsets + 8 * lane), near + 64 * lane
            if offset < 0:
                v.store(row, v.zero_fp32())
            elif is_paired or dtype == e.FP32:
                v.store(row, v.load_some(keys + offset + size * i, words))
            else:
                v.store(row, e.wide(dtype, keys + offset, i))
        v.transpose(near, 64, to + 64 * (i // columns))


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
def _likelihood(dtype, is_paired, x, most, first, low, high, to, i):
    """exp(score - largest) as factors of values; returns the factors before they are rounded to the cache's dtype."""
    x = hide(exponential(v.sub(x, most)), first, low, high, v.zero_fp32())
    if is_paired:
        v.store_bf16(to + 2 * i, x)
    elif dtype == e.BF16:
        v.store(to + 4 * i, v.round_bf16(x))
    else:
        v.store(to + 4 * i, x)
    return x


@inline
def _weigh(dtype, is_paired, q, keys, first, low, high, width, to, state):
    """A query's factors for a block of values; updates its largest score and its sum, returns the old sums' factor."""
    a, b, c, d = _score(is_paired, q, keys, width)
    never = v.broadcast(NEVER)
    a, b = hide(a, first, low, high, never), hide(b, first + 16, low, high, never)
    c, d = hide(c, first + 32, low, high, never), hide(d, first + 48, low, high, never)
    before = v.broadcast(v.read_fp32(state))
    most = v.max(before, v.broadcast(v.reduce_max(v.max(v.max(a, b), v.max(c, d)))))
    fade = exponential(v.sub(before, most))
    a = _likelihood(dtype, is_paired, a, most, first, low, high, to, 0)
    b = _likelihood(dtype, is_paired, b, most, first + 16, low, high, to, 16)
    c = _likelihood(dtype, is_paired, c, most, first + 32, low, high, to, 32)
    d = _likelihood(dtype, is_paired, d, most, first + 48, low, high, to, 48)
    added = v.broadcast(v.reduce_add(v.add(v.add(v.add(a, b), c), d)))
    v.write_fp32(state, v.extract_first(most))
    v.write_fp32(state + 4, v.extract_first(v.fma(v.broadcast(v.read_fp32(state + 4)), fade, added)))
    v.write_fp32(state + 8, v.extract_first(fade))


@inline
def _words(values, one, two, has_two, i):
    """Sixteen columns of two values in bf16, as words."""
    low = v.load_uint16(values + one + 2 * i)
    return v.or_words(low, v.shl(v.load_uint16(values + two + 2 * i), 16)) if has_two else low


@inline
def _add_pair(dtype, is_paired, factors, values, one, two, has_two, i, columns, far, sums):
    """Two values by their factors, or one, onto four sums: of columns `columns` after i and queries `far`."""
    a, b, c, d = sums
    if is_paired:
        a = v.dot_bf16(a, _words(values, one, two, has_two, i + columns[0]), v.broadcast_word(factors + 256 * far[0]))
        b = v.dot_bf16(b, _words(values, one, two, has_two, i + columns[1]), v.broadcast_word(factors + 256 * far[1]))
        c = v.dot_bf16(c, _words(values, one, two, has_two, i + columns[2]), v.broadcast_word(factors + 256 * far[2]))
        d = v.dot_bf16(d, _words(values, one, two, has_two, i + columns[3]), v.broadcast_word(factors + 256 * far[3]))
        return a, b, c, d
    if has_two:
        a, b, c, d = _add_value(dtype, factors + 4, values + two, i, columns, far, (a, b, c, d))
    return _add_value(dtype, factors, values + one, i, columns, far, (a, b, c, d))


@inline
def _add_value(dtype, factors, value, i, columns, far, sums):
    a, b, c, d = sums
    a = v.fma(e.wide(dtype, value, i + columns[0]), v.broadcast(v.read_fp32(factors + 256 * far[0])), a)
    b = v.fma(e.wide(dtype, value, i + columns[1]), v.broadcast(v.read_fp32(factors + 256 * far[1])), b)
    c = v.fma(e.wide(dtype, value, i + columns[2]), v.broadcast(v.read_fp32(factors + 256 * far[2])), c)
    d = v.fma(e.wide(dtype, value, i + columns[3]), v.broadcast(v.read_fp32(factors + 256 * far[3])), d)
    return a, b, c, d


@inline
def _faded(out, state, columns, far):
    """Sixteen columns of a query's sum so far, times its factor."""
    return v.mul(v.load(out + 1024 * far + 4 * columns), v.broadcast(v.read_fp32(state + 8 + 16 * far)))


@inline
def _mix(dtype, is_paired, factors, values, offsets, end, out, state, begin, last, columns, far):
    """Add `end` values by their factors to four sums at once, for the columns from `begin` to `last`.

    Each sum has sixteen columns: `columns` says which, `far` of which query. The three ways differ in what is read
    twice: one query with four parts of a value, two with two, four with one.
    """
    for i in range(begin, last, 16 + columns[3]):
        a, b = _faded(out, state, i + columns[0], far[0]), _faded(out, state, i + columns[1], far[1])
        c, d = _faded(out, state, i + columns[2], far[2]), _faded(out, state, i + columns[3], far[3])
        size = 4 if is_paired else 8  # bytes of the factors of two values
        for pair in range(end // 2):
            one, two = v.read(offsets + 16 * pair), v.read(offsets + 16 * pair + 8)
            at = factors + size * pair
            a, b, c, d = _add_pair(dtype, is_paired, at, values, one, two, True, i, columns, far, (a, b, c, d))
        if end % 2:
            one, at = v.read(offsets + 8 * (end - 1)), factors + size * (end // 2)
            a, b, c, d = _add_pair(dtype, is_paired, at, values, one, one, False, i, columns, far, (a, b, c, d))
        v.store(out + 1024 * far[0] + 4 * (i + columns[0]), a)  # the same again where there are fewer than four
        v.store(out + 1024 * far[1] + 4 * (i + columns[1]), b)
        v.store(out + 1024 * far[2] + 4 * (i + columns[2]), c)
        v.store(out + 1024 * far[3] + 4 * (i + columns[3]), d)


@inline
def _mix_queries(dtype, is_paired, factors, values, offsets, end, out, state, count, width):
    """Add a block's values by their factors to the sums of one to four queries."""
    done, last = 0, count - 1
    if count == 1:
        done = width // 64 * 64
        _mix(dtype, is_paired, factors, values, offsets, end, out, state, 0, done, (0, 16, 32, 48), (0, 0, 0, 0))
    elif count == 2:
        done = width // 32 * 32
        _mix(dtype, is_paired, factors, values, offsets, end, out, state, 0, done, (0, 0, 16, 16), (0, 1, 0, 1))
    far = (0, min(1, last), min(2, last), last)
    _mix(dtype, is_paired, factors, values, offsets, end, out, state, done, width, (0, 0, 0, 0), far)


@inline
def _begin(dtype, is_paired, at, row, head, begin, count, near):
    """Rotate, scale and round the queries as the cache is rounded, and begin their softmax."""
    sizes = v.read(at + AT.sizes)
    tokens, heads, group = v.read(sizes + SIZE.tokens), v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group)
    width, scale = v.read(sizes + SIZE.width), v.read_fp32(sizes + SIZE.scale)
    for i in range(count):
        number = row * tokens + (begin + i) // group
        x = v.read(at + AT.q) + 4 * width * ((number * heads + head) * group + (begin + i) % group)
        cosines, sines = v.read(at + AT.cosines) + 2 * width * number, v.read(at + AT.sines) + 2 * width * number
        to = near + Q + 1024 * i
        if is_paired:
            rotate(x, cosines, sines, width // 2, scale, e.BF16, to, 0)
        else:
            rotate(x, cosines, sines, width // 2, scale, e.FP32, to, 0)
            if dtype == e.BF16:
                for column in range(0, width, 16):
                    v.store(to + 4 * column, v.round_bf16(v.load(to + 4 * column)))
        v.zero_memory(near + OUT + 1024 * i, width // 16)
        v.write_fp32(near + STATE + 16 * i, v.extract_first(v.broadcast(NEVER)))
        v.write_fp32(near + STATE + 16 * i + 4, v.extract_first(v.zero_fp32()))


@inline
def _see(dtype, is_paired, at, row, head, begin, count, near):
    """The queries `begin` to `begin + count` of a head: block after block of the keys that any of them sees."""
    sizes, its = v.read(at + AT.sizes), row_of(at, row)
    group, width, window = v.read(sizes + SIZE.group), v.read(sizes + SIZE.width), v.read(sizes + SIZE.window)
    size, where = e.size(dtype), e.size(dtype) * head_of(sizes, row, head)
    keys, values = v.read(at + AT.keys) + where, v.read(at + AT.values) + where
    stride, is_line = size * v.read(sizes + SIZE.slot_stride), is_in_line(its, sizes, 16)
    early, late = v.read(its + ROW.start) + begin // group, v.read(its + ROW.start) + (begin + count - 1) // group
    columns = width // 2 if is_paired else width
    for first in range(max(0, early - window + 1) // KEYS * KEYS, late + 1, KEYS):
        end = min(KEYS, late + 1 - first)
        _find(its, sizes, size, first, first + end, is_line, near + OFFSETS)
        for i in range(0, end, 16):
            to, offsets_of = near + 4 * columns * i, near + OFFSETS + 8 * i
            _transpose_keys(dtype, is_paired, keys, stride, offsets_of, is_line, width, to, near + NEAR)
        for i in range(count):
            own = v.read(its + ROW.start) + (begin + i) // group
            q, to, state = near + Q + 1024 * i, near + SCORES + 256 * i, near + STATE + 16 * i
            _weigh(dtype, is_paired, q, near, first, max(0, own - window + 1), own, width, to, state)
        for i in range(0, count, 4):
            _mix_queries(
                dtype, is_paired, near + SCORES + 256 * i, values, near + OFFSETS, end,
                near + OUT + 1024 * i, near + STATE + 16 * i, min(4, count - i), width,
            )  # fmt: skip


@inline
def _attend(dtype, is_paired, at, chunk):
    sizes, near = v.read(at + AT.sizes), v.stack()
    tokens, heads, group = v.read(sizes + SIZE.tokens), v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group)
    width, row, head = v.read(sizes + SIZE.width), chunk // heads, chunk % heads
    for token in range(tokens):
        store_token(dtype, at, row, head, token)
    for begin in range(0, tokens * group, QUERIES):
        count = min(QUERIES, tokens * group - begin)
        _begin(dtype, is_paired, at, row, head, begin, count, near)
        _see(dtype, is_paired, at, row, head, begin, count, near)
        for i in range(count):
            number = row * tokens + (begin + i) // group
            to = v.read(at + AT.out) + 4 * width * ((number * heads + head) * group + (begin + i) % group)
            inverse = inverse_of(v.broadcast(v.read_fp32(near + STATE + 16 * i + 4)))
            for column in range(0, width, 16):
                v.store(to + 4 * column, v.mul(v.load(near + OUT + 1024 * i + 4 * column), inverse))
    for token in range(tokens):
        start = ((row * tokens + token) * heads + head) * group * width
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
