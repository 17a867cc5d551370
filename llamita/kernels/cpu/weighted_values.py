"""The values of a block of tokens, times a query's factors, added to its sums: the second half of decode attention.

Of one to four queries, which lie 1,024 bytes apart in the sums, 256 in the factors and 16 in the states, whose third
number is the factor of the sums so far.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.interleaved import high_pairs, load_half, low_pairs
from llamita.kernels.cpu.runtime.program import inline

# What comes next: addresses of four pieces; then the bytes of each for a step, from a step's to the next one's, and to
# those of the last step.
Ahead = tuple[int, int, int, int, int, int, int]


@inline
def fetch(ahead: Ahead, first: int, end: int) -> None:
    """Prefetch what comes next, side by side from its four pieces: the bytes for the steps from `first` to `end`."""
    for step in range(first, end):
        begin = min(step * ahead[5], ahead[6])
        for at in range(begin, begin + ahead[4], 64):
            v.prefetch_line(ahead[0] + at)
            v.prefetch_line(ahead[1] + at)
            v.prefetch_line(ahead[2] + at)
            v.prefetch_line(ahead[3] + at)


@inline
def without_pieces(ahead: Ahead) -> Ahead:
    """Nothing to prefetch."""
    return ahead[0], ahead[1], ahead[2], ahead[3], 0, 0, 0


@inline
def _add_pair(dtype, factors, values, one, two, has_two, i, columns, far, sums):
    """Two values by their factors, or one, onto four sums: of columns `columns` after i and queries `far`."""
    a, b, c, d = sums
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
def _rescaled(out, state, columns, far):
    """Sixteen columns of a query's sum so far, times its factor."""
    return v.mul(v.load(out + 1024 * far + 4 * columns), v.broadcast(v.read_fp32(state + 8 + 16 * far)))


@inline
def _mix(dtype, factors, values, offsets, end, out, state, begin, last, columns, far, ahead):
    """Add `end` values by their factors to four sums at once, for the columns from `begin` to `last`.

    Each sum has sixteen columns: `columns` says which, `far` of which query. The three ways differ in what is read
    twice: one query with four parts of a value, two with two, four with one. ahead: see `_attend_queries`.
    """
    for i in range(begin, last, 16 + columns[3]):
        a, b = _rescaled(out, state, i + columns[0], far[0]), _rescaled(out, state, i + columns[1], far[1])
        c, d = _rescaled(out, state, i + columns[2], far[2]), _rescaled(out, state, i + columns[3], far[3])
        for pair in range(end // 2):
            fetch(ahead if i == 0 else without_pieces(ahead), pair, pair + 1)
            one, two = v.read(offsets + 16 * pair), v.read(offsets + 16 * pair + 8)
            a, b, c, d = _add_pair(dtype, factors + 8 * pair, values, one, two, True, i, columns, far, (a, b, c, d))
        if end % 2:
            one, at = v.read(offsets + 8 * (end - 1)), factors + 8 * (end // 2)
            a, b, c, d = _add_pair(dtype, at, values, one, one, False, i, columns, far, (a, b, c, d))
        v.store(out + 1024 * far[0] + 4 * (i + columns[0]), a)  # the same again where there are fewer than four
        v.store(out + 1024 * far[1] + 4 * (i + columns[1]), b)
        v.store(out + 1024 * far[2] + 4 * (i + columns[2]), c)
        v.store(out + 1024 * far[3] + 4 * (i + columns[3]), d)


@inline
def mix_queries(
    dtype: int,
    factors: int,
    values: int,
    offsets: int,
    end: int,
    out: int,
    state: int,
    count: int,
    width: int,
    ahead: Ahead,
) -> None:
    """Add a block's values by their factors to the sums of one to four queries."""
    done, last = 0, count - 1
    if count == 1:
        done = width // 64 * 64
        _mix(dtype, factors, values, offsets, end, out, state, 0, done, (0, 16, 32, 48), (0, 0, 0, 0), ahead)
    elif count == 2:
        done = width // 32 * 32
        _mix(dtype, factors, values, offsets, end, out, state, 0, done, (0, 0, 16, 16), (0, 1, 0, 1), ahead)
    far = (0, min(1, last), min(2, last), last)
    _mix(dtype, factors, values, offsets, end, out, state, done, width, (0, 0, 0, 0), far, ahead)


@inline
def _row_of(value, is_half):
    """32 columns of a value in bf16, or sixteen where there are no more."""
    return load_half(value) if is_half else v.load_words(value)


@inline
def _add_words(factors, one, two, apart, is_half, has_two, far, sums):
    """Two values by their factors, or one, onto four sums: of 32 columns, and of those `apart` bytes on."""
    a, b, c, d = sums
    x, y = _row_of(one, is_half), _row_of(one + apart, is_half)
    z = w = v.zero_words()
    if has_two:
        z, w = _row_of(two, is_half), _row_of(two + apart, is_half)
    factor, other = v.broadcast_word(factors), v.broadcast_word(factors + 256 * far)
    a, b = v.dot_bf16(a, low_pairs(x, z), factor), v.dot_bf16(b, high_pairs(x, z), factor)
    c, d = v.dot_bf16(c, low_pairs(y, w), other), v.dot_bf16(d, high_pairs(y, w), other)
    return a, b, c, d


@inline
def _mix_words(factors, values, offsets, end, out, state, i, apart, is_half, far, ahead):
    """Add `end` values by their factors to 32 columns of a query, and to the next 32 or those of another query.

    apart: columns to the other ones; far: queries to the other one. One of them is 0.
    """
    other = i + apart
    a, b = _rescaled(out, state, i, 0), _rescaled(out, state, i + 16, 0)
    c, d = _rescaled(out, state, other, far), _rescaled(out, state, other + 16, far)
    values += 2 * i
    for pair in range(end // 2):
        fetch(ahead if i == 0 else without_pieces(ahead), pair, pair + 1)
        one, two = values + v.read(offsets + 16 * pair), values + v.read(offsets + 16 * pair + 8)
        a, b, c, d = _add_words(factors + 4 * pair, one, two, 2 * apart, is_half, True, far, (a, b, c, d))
    if end % 2:
        one, at = values + v.read(offsets + 8 * (end - 1)), factors + 4 * (end // 2)
        a, b, c, d = _add_words(at, one, one, 2 * apart, is_half, False, far, (a, b, c, d))
    v.store(out + 4 * i, a)  # the same again where there is one
    v.store(out + 4 * i + 64, b)
    v.store(out + 1024 * far + 4 * other, c)
    v.store(out + 1024 * far + 4 * other + 64, d)


@inline
def mix_pairs(
    factors: int, values: int, offsets: int, end: int, out: int, state: int, count: int, width: int, ahead: Ahead
) -> None:
    """Add a block's values by their factors to the sums of one or two queries, in the order of `interleaved`."""
    done, whole = 0, width // 32 * 32
    if count == 1:
        done = width // 64 * 64
        for i in range(0, done, 64):
            _mix_words(factors, values, offsets, end, out, state, i, 32, False, 0, ahead)
    for i in range(done, whole, 32):
        _mix_words(factors, values, offsets, end, out, state, i, 0, False, count - 1, ahead)
    if whole < width:
        _mix_words(factors, values, offsets, end, out, state, whole, 0, True, count - 1, ahead)
