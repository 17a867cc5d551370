"""The gradients of attention over whole sequences, a block of queries and a block of keys at a time.

Must equal reference.attention_gradients up to the order of sums. The softmax is made again from its logarithm
(arXiv:2205.14135), so nothing of the size T * S is ever stored, and no block of keys is read that its queries do not
see: of rows with several documents, each costs as much as it would alone. A chunk is a key/value head of a row, with
all of its query heads, so no two chunks write to one gradient, and results do not depend on threads.

All five products are tiles of eight rows by 32 columns, whose left side is broadcast and whose right side is read in
vectors. In pairs, for a processor with bf16 dot products, two elements lie in each word, and sums are still fp32.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.accumulators import add_columns, add_products, load_eight_apart, no_eight, store_eight_apart
from llamita.kernels.cpu.arguments import AttentionGradients, offsets
from llamita.kernels.cpu.constants import KEYS, QUERIES
from llamita.kernels.cpu.functions import exponential
from llamita.kernels.cpu.runtime.program import inline, kernel

AT = offsets(AttentionGradients)
BESIDE = 8  # rows of a tile
FLOATS = 4 * QUERIES  # bytes of an fp32 for each query
HALVES = 2 * QUERIES


@inline
def _multiply(is_paired, left, row, step, right, beside, next, count, sums):
    """Add to two times eight vectors the products of `count` words.

    left: of eight rows, `row` bytes apart, words `step` bytes apart. right: vectors `next` bytes apart, and the second
    ones `beside` bytes on.
    """
    one, two = sums
    if is_paired:  # sixteen sums fit into the registers of every machine that has these products
        for i in range(count):
            one = add_products(one, v.load_words(right + i * next), left + i * step, row)
            two = add_products(two, v.load_words(right + beside + i * next), left + i * step, row)
        return one, two
    for i in range(count):
        one = add_columns(one, v.load(right + i * next), left + i * step, row)
    for i in range(count):
        two = add_columns(two, v.load(right + beside + i * next), left + i * step, row)
    return one, two


@inline
def _score(is_paired, rows, columns, width, count, out):
    """Products of `count` rows (H,) and 32 columns (2, H, 16): fp32 (count, 32)."""
    words = width // 2 if is_paired else width
    for i in range(0, count, BESIDE):
        sums = no_eight(), no_eight()
        one, two = _multiply(is_paired, rows + 4 * words * i, 4 * words, 4, columns, 64 * words, 64, words, sums)
        store_eight_apart(out + FLOATS * i, FLOATS, one)
        store_eight_apart(out + FLOATS * i + 64, FLOATS, two)


@inline
def _add_product(is_paired, left, row, step, right, count, rows, width, sums):
    """Add to sums fp32 (rows, H) the products of words (rows, count) with (count, H)."""
    for i in range(0, rows, BESIDE):
        for column in range(0, 4 * width, 128):
            to = sums + 4 * width * i + column
            held = load_eight_apart(to, 4 * width), load_eight_apart(to + 64, 4 * width)
            one, two = _multiply(is_paired, left + row * i, row, step, right + column, 64, 4 * width, count, held)
            store_eight_apart(to, 4 * width, one)
            store_eight_apart(to + 64, 4 * width, two)


@inline
def _copy(dtype, is_paired, x, step, count, rows, width, to):
    """The first `count` rows (H,), `step` bytes apart, as they are or in fp32, one after the other; then rows of 0."""
    for row in range(rows):
        at = x + step * row
        for i in range(0, width, 32):
            one = two = v.zero_fp32()
            if row < count:
                if is_paired:
                    one = v.load(at + 2 * i)
                else:
                    one, two = e.wide(dtype, at, i), e.wide(dtype, at, i + 16)
            v.store(to, one)
            to += 64
            if not is_paired:
                v.store(to, two)
                to += 64


@inline
def _pair_rows(x, rows, width, to):
    """Rows bf16 (rows, H) as words (rows/2, H) of two rows."""
    for _ in range(0, rows, 2):
        for i in range(0, 2 * width, 32):
            low, high = v.load_uint16(x + i), v.load_uint16(x + 2 * width + i)
            v.store_words(to + 2 * i, v.or_words(low, v.shl(high, 16)))
        x += 4 * width
        to += 4 * width


@inline
def _turn(x, words, to):
    """Rows of words (32, words) as columns (2, words, 16)."""
    for half in range(2):
        for i in range(0, words, 16):
            v.transpose(x + 4 * (16 * half * words + i), 4 * words, to + 64 * (half * words + i))


@inline
def _inner_products(dtype, one, other, step, count, width, out):
    """Of up to 32 rows (H,) of either side: fp32 (32,)."""
    v.zero_memory(out, 2)
    for row in range(count):
        sums = v.zero_fp32()
        for i in range(0, width, 16):
            sums = v.fma(e.wide(dtype, one + step * row, i), e.wide(dtype, other + step * row, i), sums)
        v.write_fp32(out + 4 * row, v.reduce_add(sums))


@inline
def _weights(scores, inner, token, seen, first, scale, logs, deltas, is_cut, half):
    """Of a key and sixteen queries: the softmax's weights, and the gradients of the scores, without their scale.

    seen: of the block's queries, how many have a first key that is not after this one. first: the block's first query.
    """
    at = 64 * half
    weight = exponential(v.fma(v.load(scores + at), scale, v.sub(v.zero_fp32(), v.load(logs + at))))
    if is_cut:
        nothing = v.zero_fp32()
        weight = v.blend_from(weight, token - first - 16 * half, nothing)
        weight = v.blend_from(nothing, seen - 16 * half, weight)
    return weight, v.mul(weight, v.sub(v.load(inner + at), v.load(deltas + at)))


@inline
def _soften(is_paired, scores, inner, token, count, starts, seen, first, scale, logs, deltas, is_cut, near):
    """Scores to weights and gradients of scores (count, 32); returns how many queries saw the last key.

    In fp32 these take the places of scores and inner products; in pairs they are at `near`: weights bf16, gradients
    bf16, and gradients in words of two keys.
    """
    gradients, words = near + HALVES * KEYS, near + 2 * HALVES * KEYS
    for i in range(0, count, 2):
        if is_cut:
            while seen < QUERIES and v.read(starts + 8 * seen) <= token + i:
                seen += 1
        before = seen
        if is_cut:
            while seen < QUERIES and v.read(starts + 8 * seen) <= token + i + 1:
                seen += 1
        at, other = scores + FLOATS * i, inner + FLOATS * i
        for half in range(2):
            w, d = _weights(at, other, token + i, before, first, scale, logs, deltas, is_cut, half)
            y, c = _weights(at + FLOATS, other + FLOATS, token + i + 1, seen, first, scale, logs, deltas, is_cut, half)
            if is_paired:
                to = HALVES * i + 32 * half
                v.store_bf16(near + to, w)
                v.store_bf16(near + to + HALVES, y)
                v.store_bf16(gradients + to, d)
                v.store_bf16(gradients + to + HALVES, c)
                v.store_words(words + FLOATS * (i // 2) + 64 * half, v.pack_bf16(d, c))
            else:
                v.store(at + 64 * half, w)
                v.store(at + FLOATS + 64 * half, y)
                v.store(other + 64 * half, d)
                v.store(other + FLOATS + 64 * half, c)
    return seen


@inline
def _put(dtype, sums, count, width, scale, out, step):
    """Sums fp32 (count, H) times a scale, as rows `step` bytes apart."""
    for row in range(count):
        for i in range(0, width, 16):
            e.put_wide(dtype, out + step * row, i, v.mul(v.load(sums + 4 * (row * width + i)), scale))


@inline
def _read_queries(at, row, query_head, begin, count, logs, starts):
    """Logarithms fp32 (32,) and first keys int64 (32,) of a block's queries; the last's again after it."""
    tokens, every = v.read(at + AT.tokens), v.read(at + AT.heads) * v.read(at + AT.group)
    v.zero_memory(logs, 2)
    first = row * tokens + begin
    for i in range(count):
        v.write_fp32(logs + 4 * i, v.read_fp32(v.read(at + AT.logs) + 4 * ((first + i) * every + query_head)))
    for i in range(QUERIES):
        v.write(starts + 8 * i, v.read(v.read(at + AT.starts) + 8 * (first + min(i, count - 1))))


@inline
def _block(dtype, is_paired, at, row, query_head, begin, keys, values, words, d_keys, d_values, room):
    """The gradients that a block of queries of one head gives; keys and what follows: the chunk's own memory."""
    tokens, width = v.read(at + AT.tokens), v.read(at + AT.width)
    every, count = v.read(at + AT.heads) * v.read(at + AT.group), min(QUERIES, tokens - begin)
    step, place = e.size(dtype) * every * width, ((row * tokens + begin) * every + query_head) * width * e.size(dtype)
    size = 2 if is_paired else 4
    whole = size * QUERIES * width
    # Columns and rows of queries and of output gradients, the query's gradient, then what becomes of the scores.
    columns, rows, sums = room, room + 2 * whole, room + 4 * whole
    scores = sums + FLOATS * width
    inner, near = scores + FLOATS * KEYS, scores + 2 * FLOATS * KEYS
    starts = near + 2 * FLOATS * KEYS
    logs, deltas = starts + 8 * QUERIES, starts + 12 * QUERIES
    scale = v.broadcast(v.read_fp32(at + AT.scale))

    q, out, d_out = v.read(at + AT.q) + place, v.read(at + AT.out) + place, v.read(at + AT.d_out) + place
    _prepare(dtype, is_paired, q, step, count, width, sums, columns, rows)
    _prepare(dtype, is_paired, d_out, step, count, width, sums, columns + whole, rows + whole)
    _inner_products(dtype, out, d_out, step, count, width, deltas)
    _read_queries(at, row, query_head, begin, count, logs, starts)
    v.zero_memory(sums, 2 * width)
    start, last, seen = v.read(starts) // KEYS * KEYS, v.read(starts + 8 * (QUERIES - 1)), 0
    while start < begin + count:
        many = min(KEYS, -(-(begin + count - start) // BESIDE) * BESIDE)
        is_cut = start + many > begin or last > start
        skip, to = size * width * start, 4 * width * start
        _score(is_paired, keys + skip, columns, width, many, scores)
        _score(is_paired, values + skip, columns + whole, width, many, inner)
        seen = _soften(is_paired, scores, inner, start, many, starts, seen, begin, scale, logs, deltas, is_cut, near)
        _collect(
            is_paired,
            scores,
            inner,
            near,
            rows,
            rows + whole,
            words + skip,
            many,
            width,
            sums,
            d_keys + to,
            d_values + to,
        )
        start += many
    _put(dtype, sums, count, width, scale, v.read(at + AT.d_q) + place, step)


@inline
def _collect(is_paired, scores, inner, near, q_rows, d_rows, words, many, width, d_q, d_keys, d_values):
    """Add the products of weights and gradients of scores, as `_soften` left them, to the gradients of all three."""
    weights, gradients, across, line, count = scores, inner, inner, FLOATS, many
    if is_paired:
        weights, gradients, across, line, count = (
            near, near + HALVES * KEYS, near + 2 * HALVES * KEYS, HALVES, many // 2
        )  # fmt: skip
    _add_product(is_paired, weights, line, 4, d_rows, line // 4, many, width, d_values)
    _add_product(is_paired, gradients, line, 4, q_rows, line // 4, many, width, d_keys)
    _add_product(is_paired, across, 4, FLOATS, words, count, QUERIES, width, d_q)


@inline
def _prepare(dtype, is_paired, x, step, count, width, near, columns, rows):
    """Up to 32 rows as columns (2, H, 16), and as rows fp32 (32, H), or as pairs of rows (16, H)."""
    if is_paired:
        _copy(dtype, True, x, step, count, QUERIES, width, near)
        _turn(near, width // 2, columns)
        _pair_rows(near, QUERIES, width, rows)
    else:
        _copy(dtype, False, x, step, count, QUERIES, width, rows)
        _turn(rows, width, columns)


@inline
def _gradients(dtype, is_paired, at, chunk):
    tokens, heads, group = v.read(at + AT.tokens), v.read(at + AT.heads), v.read(at + AT.group)
    width, row, head = v.read(at + AT.width), chunk // heads, chunk % heads
    slots = -(-tokens // KEYS) * KEYS
    whole = (2 if is_paired else 4) * slots * width
    step = e.size(dtype) * heads * width
    place = e.size(dtype) * (row * tokens * heads + head) * width
    d_keys = v.read(at + AT.work) + v.read(at + AT.work_size) * chunk
    d_values = d_keys + 4 * slots * width
    keys = d_values + 4 * slots * width
    values, words = keys + whole, keys
    _copy(dtype, is_paired, v.read(at + AT.k) + place, step, tokens, slots, width, keys)
    _copy(dtype, is_paired, v.read(at + AT.v) + place, step, tokens, slots, width, values)
    if is_paired:
        words = values + whole
        _pair_rows(keys, slots, width, words)
    v.zero_memory(d_keys, slots * width // 8)
    room = v.stack()
    for query_head in range(head * group, (head + 1) * group):
        for begin in range(0, tokens, QUERIES):
            _block(dtype, is_paired, at, row, query_head, begin, keys, values, words, d_keys, d_values, room)
    _put(dtype, d_keys, tokens, width, v.broadcast(v.read_fp32(at + AT.scale)), v.read(at + AT.d_k) + place, step)
    _put(dtype, d_values, tokens, width, v.broadcast(1.0), v.read(at + AT.d_v) + place, step)


@kernel
def gradients_fp32(at: int, chunk: int) -> None:
    """In fp32."""
    _gradients(e.FP32, False, at, chunk)


@kernel
def gradients_bf16(at: int, chunk: int) -> None:
    """Of bf16, in fp32."""
    _gradients(e.BF16, False, at, chunk)


@kernel
def gradients_pairs(at: int, chunk: int) -> None:
    """Of bf16, by bf16 dot products."""
    _gradients(e.BF16, True, at, chunk)
