"""Sums of products of matrices in bf16, by bf16 dot products, for training; all sums are fp32.

Must equal the sum of torch's products of the rounded sides, up to the order of sums. The left side of a product is
packed before, by `pack_rows` or `pack_columns`: sixteen lines at a time, and of these a word for every two columns. The
right side is a matrix as torch has it, in fp32 or bf16. It is rounded and packed a panel at a time, which stays in the
first-level cache while all lines of the left side are multiplied with it, so no copy of it is ever in memory.

The sums of eight lines and 48 columns fill 24 registers.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.accumulators import Eight, add_products, load_eight_apart, no_eight, store_eight_apart
from llamita.kernels.cpu.arguments import offsets
from llamita.kernels.cpu.constants import LINES_OF_PART, PANEL
from llamita.kernels.cpu.runtime.program import inline, kernel
from llamita.kernels.cpu.training_arguments import PackLines, SumOfProducts, Term

AT, TERM, PACK = offsets(SumOfProducts), offsets(Term), offsets(PackLines)
AHEAD = 512  # bytes of a row that are prefetched before they are packed
ROWS_AHEAD = 16  # rows of the result that are prefetched before they are written
BESIDE = 8  # lines that are multiplied at once
STEPS = 128  # pairs of columns of a panel
PART = 16  # pairs of columns that are packed at once
THIRD = 64 * STEPS  # bytes of sixteen columns of a panel
LINE = 4 * PANEL  # bytes of a line of sums
PACKED = 3 * THIRD  # of a panel
SUMS = 2 * PACKED  # where sums lie in the kernel's own memory, after two panels
TERM_SIZE = 8 * len(Term._fields)

# What is prefetched: an address, the bytes between its rows, the binary logarithm of the steps that prefetch a row, and
# the bytes from a step's to the next.
Fetch = tuple[int, int, int, int]
Line = tuple[v.Vector, v.Vector, v.Vector]  # 48 columns
Sums = tuple[Line, Line, Line, Line, Line, Line, Line, Line]


@inline
def _prefetch(fetch: Fetch, step: int) -> None:
    """Prefetch with each step a little of what is packed later: many lines at once would keep loads waiting."""
    at, stride, shift, pitch = fetch
    v.prefetch_line(at + (step >> shift) * stride + (step & ((1 << shift) - 1)) * pitch)


@inline
def _add_line(sums: Line, right: Line, at: int) -> Line:
    """Add the products of a pair of a line with pairs of 48 columns."""
    pair = v.broadcast_word(at)
    return v.dot_bf16(sums[0], right[0], pair), v.dot_bf16(sums[1], right[1], pair), v.dot_bf16(sums[2], right[2], pair)


@inline
def _multiply(left: int, right: int, steps: int, sums: Sums, fetch: Fetch) -> Sums:
    """Add the products of eight lines with 48 columns.

    One line after the other: for 24 sums and more than one pair of a line there are too few registers.
    """
    a, b, c, d, e, f, g, h = sums
    for i in range(0, 64 * steps, 64):
        _prefetch(fetch, i // 64)
        at, place = left + i, right + i
        its = v.load_words(place), v.load_words(place + THIRD), v.load_words(place + 2 * THIRD)
        a, b = _add_line(a, its, at), _add_line(b, its, at + 4)
        c, d = _add_line(c, its, at + 8), _add_line(d, its, at + 12)
        e, f = _add_line(e, its, at + 16), _add_line(f, its, at + 20)
        g, h = _add_line(g, its, at + 24), _add_line(h, its, at + 28)
    return a, b, c, d, e, f, g, h


@inline
def _multiply_one(left: int, right: int, steps: int, sums: Eight, fetch: Fetch) -> Eight:
    """Add the products of eight lines with sixteen columns."""
    for i in range(0, 64 * steps, 64):
        _prefetch(fetch, i // 64)
        sums = add_products(sums, v.load_words(right + i), left + i, 4)
    return sums


@inline
def _multiply_two(left: int, right: int, steps: int, one: Eight, two: Eight, fetch: Fetch) -> tuple[Eight, Eight]:
    """Add the products of eight lines with two times sixteen columns."""
    for i in range(0, 64 * steps, 64):
        _prefetch(fetch, i // 64)
        one = add_products(one, v.load_words(right + i), left + i, 4)
        two = add_products(two, v.load_words(right + THIRD + i), left + i, 4)
    return one, two


@inline
def _no_line() -> Line:
    return v.zero_fp32(), v.zero_fp32(), v.zero_fp32()


@inline
def _no_sums() -> Sums:
    no = _no_line()
    return no, no, no, no, no, no, no, no


@inline
def _load_line(at: int) -> Line:
    return v.load(at), v.load(at + 64), v.load(at + 128)


@inline
def _load_sums(at: int) -> Sums:
    return (
        _load_line(at), _load_line(at + LINE), _load_line(at + 2 * LINE), _load_line(at + 3 * LINE),
        _load_line(at + 4 * LINE), _load_line(at + 5 * LINE), _load_line(at + 6 * LINE), _load_line(at + 7 * LINE),
    )  # fmt: skip


@inline
def _store_sums(at: int, sums: Sums) -> None:
    for line in sums:
        v.store(at, line[0])
        v.store(at + 64, line[1])
        v.store(at + 128, line[2])
        at += LINE


@inline
def _pair(dtype: int, w: int, stride: int, rows: int, to: int) -> None:
    """Sixteen columns of every two rows as pairs; after an odd number of rows comes one of 0."""
    for i in range(0, rows, 2):
        at, low, high = w + i * stride, v.zero_words(), v.zero_words()
        if dtype == e.BF16:
            low = v.load_uint16(at)
            if i + 1 < rows:
                high = v.load_uint16(at + stride)
            v.store_words(to, v.or_words(low, v.shl(high, 16)))
        else:
            other = v.zero_fp32()
            if i + 1 < rows:
                other = v.load(at + stride)
            v.store_words(to, v.pair_for_dot(v.load(at), other))
        to += 64


@inline
def _pack(term: int, first: int, steps: int, column: int, to: int) -> None:
    """Sixteen columns of the result, of up to sixteen pairs from pair `first` on."""
    w, stride, rows = v.read(term + TERM.right), v.read(term + TERM.stride), v.read(term + TERM.length) - 2 * first
    is_wide, is_turned = v.read(term + TERM.dtype) == e.FP32, v.read(term + TERM.is_turned)
    size = 4 if is_wide else 2
    at = w + (column * stride + 2 * first * size if is_turned else column * size + 2 * first * stride)
    if is_turned and is_wide:
        v.transpose_rounded(at, stride, to)
    elif is_turned:
        v.transpose(at, stride, to)
    elif is_wide:
        _pair(e.FP32, at, stride, min(2 * steps, rows), to)
    else:
        _pair(e.BF16, at, stride, min(2 * steps, rows), to)


@inline
def _fetch(term: int, first: int, column: int) -> Fetch:
    """What `_pack` reads of sixteen columns from pair `first` on."""
    size, stride = 4 if v.read(term + TERM.dtype) == e.FP32 else 2, v.read(term + TERM.stride)
    if v.read(term + TERM.is_turned):
        return v.read(term + TERM.right) + column * stride + 2 * first * size, stride, 3, 4 * size
    return v.read(term + TERM.right) + column * size + 2 * first * stride, stride, 2, 4 * size


@inline
def _multiply_columns(left: int, right: int, steps: int, width: int, at: int, is_new: bool, fetch: Fetch) -> None:
    """Add the products of eight lines with 16, 32 or 48 columns to the sums there."""
    if width > 32:
        _store_sums(at, _multiply(left, right, steps, _no_sums() if is_new else _load_sums(at), fetch))
        return
    one = no_eight() if is_new else load_eight_apart(at, LINE)
    two = no_eight() if is_new or width <= 16 else load_eight_apart(at + 64, LINE)
    if width > 16:
        one, two = _multiply_two(left, right, steps, one, two, fetch)
        store_eight_apart(at + 64, LINE, two)
    else:
        one = _multiply_one(left, right, steps, one, fetch)
    store_eight_apart(at, LINE, one)


@inline
def _add_panel(
    term: int, first: int, steps: int, column: int, width: int, line: int, lines: int, at: int, is_new: bool
) -> None:
    """Add the products of a panel with all lines to the sums, and pack the next panel, a little with each lines.

    Rows of a matrix may be so far apart that few of them fit into the caches at once: a part of the next panel is
    prefetched just before, in the end that of the next chunk.
    """
    begin, after = first + steps, min(STEPS, v.read(term + TERM.pairs) - first - steps)
    left, step = v.read(term + TERM.left) + 64 * first, v.read(term + TERM.step)
    panel = at + first // STEPS % 2 * PACKED
    other, thirds, groups = at + PACKED - first // STEPS % 2 * PACKED, width // 16, -(-lines // BESIDE)
    parts, later = -(-after // PART) * thirds, (begin, column) if after > 0 else (0, column + width)
    for i in range(0, lines, BESIDE):
        group = i // BESIDE
        for part in range(parts * group // groups, parts * (group + 1) // groups):
            _pack_part(term, part, begin, after, column, thirds, other)
        ahead = parts * (group + 1) // groups if after > 0 else group
        fetch = _fetch(term, later[0] + PART * (ahead // thirds), later[1] + 16 * (ahead % thirds))
        words, to = left + (line + i) // 16 * step + (line + i) % 16 * 4, at + SUMS + LINE * i
        _multiply_columns(words, panel, steps, width, to, is_new, fetch)


@inline
def _pack_part(term: int, part: int, first: int, steps: int, column: int, thirds: int, panel: int) -> None:
    """A part of a panel of `steps` pairs from `first` on: sixteen columns of up to PART pairs."""
    pair, third = PART * (part // thirds), part % thirds
    _pack(term, first + pair, min(PART, steps - pair), column + 16 * third, panel + THIRD * third + 64 * pair)


@inline
def _put(dtype: int, adds: int, sums: int, lines: int, out: int, stride: int, columns: int) -> None:
    for _ in range(lines):
        for i in range(0, e.size(dtype) * columns, 64):  # rows of a wide result are each in a page of their own
            v.prefetch_line(out + ROWS_AHEAD * stride + i)
        for column in range(0, columns, 16):
            x = v.load(sums + 4 * column)
            if adds:
                x = v.add(x, e.wide(dtype, out, column))
            e.put_wide(dtype, out, column, x)
        out, sums = out + stride, sums + LINE


@inline
def _add_term(term: int, line: int, lines: int, column: int, width: int, at: int, is_new: bool) -> bool:
    """Add a product to the sums, panel by panel; returns whether there are no sums yet."""
    pairs, thirds = v.read(term + TERM.pairs), width // 16
    steps = min(pairs, STEPS)
    for part in range(-(-steps // PART) * thirds):
        _pack_part(term, part, 0, steps, column, thirds, at)
    for first in range(0, pairs, STEPS):
        _add_panel(term, first, min(STEPS, pairs - first), column, width, line, lines, at, is_new)
        is_new = False
    return is_new


@kernel
def sum_of_products(at: int, chunk: int) -> None:
    """A panel of columns of the result, at most LINES_OF_PART lines at a time."""
    columns, some, across = v.read(at + AT.columns), v.read(at + AT.lines_of_chunk), v.read(at + AT.panels)
    room, size = v.stack(), 4 if v.read(at + AT.dtype) == e.FP32 else 2
    column, begin = columns // 16 * (chunk % across) // across * 16, chunk // across * some
    width = columns // 16 * (chunk % across + 1) // across * 16 - column
    end = min(v.read(at + AT.lines), begin + some)
    parts = -(-(end - begin) // LINES_OF_PART)
    most = max(16, -(-(end - begin) // (16 * parts)) * 16)  # not 0: LLVM must see it, or the kernel needs Numba to run
    for line in range(begin, end, most):
        count, is_new = min(most, end - line), True
        for number in range(v.read(at + AT.products)):
            term = v.read(at + AT.terms) + TERM_SIZE * number
            is_new = _add_term(term, line, count, column, width, room, is_new)
        out = v.read(at + AT.out) + size * (line * columns + column)
        if size == 2:
            _put(e.BF16, v.read(at + AT.adds), room + SUMS, count, out, size * columns, width)
        else:
            _put(e.FP32, v.read(at + AT.adds), room + SUMS, count, out, size * columns, width)


@inline
def _pack_rows(dtype: int, at: int, chunk: int) -> None:
    x, to, columns = v.read(at + PACK.x), v.read(at + PACK.out), v.read(at + PACK.columns)
    stride, room, line = e.size(dtype) * columns, v.stack(), 16 * chunk
    count = min(16, v.read(at + PACK.rows) - line)
    x, to = x + line * stride, to + line * 2 * columns
    if count == 16 and dtype == e.BF16:
        for i in range(0, columns // 2, 16):
            for row in range(16):
                v.prefetch_line(x + row * stride + 4 * i + AHEAD)
            v.transpose(x + 4 * i, stride, to + 64 * i)
        return
    for i in range(0, columns // 2, 16):
        for row in range(16):
            for half in range(2):
                value = v.zero_fp32()
                if row < count:
                    value = e.wide(dtype, x + row * stride, 2 * i + 16 * half)
                v.store_bf16(room + 64 * row + 32 * half, value)
        v.transpose(room, 64, to + 64 * i)


@kernel
def pack_rows_fp32(at: int, chunk: int) -> None:
    """Sixteen rows in fp32 as lines."""
    _pack_rows(e.FP32, at, chunk)


@kernel
def pack_rows_bf16(at: int, chunk: int) -> None:
    """Sixteen rows in bf16 as lines."""
    _pack_rows(e.BF16, at, chunk)


@kernel
def pack_columns_bf16(at: int, chunk: int) -> None:
    """Columns in bf16 as lines. Those next to each other are in one cache line."""
    x, rows, columns = v.read(at + PACK.x), v.read(at + PACK.rows), v.read(at + PACK.columns)
    first, pairs = 4 * chunk, -(-rows // 2)
    for row in range(0, rows, 64):
        for group in range(first, min(first + 4, columns // 16)):
            to = v.read(at + PACK.out) + 64 * (pairs * group + row // 2)
            _pair(e.BF16, x + 2 * row * columns + 32 * group, 2 * columns, min(64, rows - row), to)
