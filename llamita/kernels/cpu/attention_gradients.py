"""The gradients of attention over whole sequences, a block of queries and a block of keys at a time.

Must equal reference.attention_gradients up to the order of sums. The softmax is made again from its logarithm
(arXiv:2205.14135), so nothing of the size T * S is ever stored, and no block of keys is read that its queries do not
see: of rows with several documents, each costs as much as it would alone. A chunk is a key/value head of a row, with
all of its query heads, so no two chunks write to one gradient, and results do not depend on threads.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import AttentionGradients, offsets
from llamita.kernels.cpu.attention_blocks import (
    FLOATS,
    HALVES,
    TILE_ROWS,
    add_product,
    copy_rows,
    pair_rows,
    put_rows,
    read_starts,
    score,
    transpose_rows,
)
from llamita.kernels.cpu.constants import KEYS, QUERIES
from llamita.kernels.cpu.functions import exponential
from llamita.kernels.cpu.runtime.program import inline, kernel

AT = offsets(AttentionGradients)


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
def _softmax_gradients(
    is_paired, scores, inner, token, count, starts, seen, first, scale, logs, deltas, is_cut, halves
):
    """Scores to weights and gradients of scores (count, 32); returns how many queries saw the last key.

    In fp32 these take the places of scores and inner products; in pairs they are at `halves`: weights bf16, gradients
    bf16, and gradients in words of two keys.
    """
    gradients, words = halves + HALVES * KEYS, halves + 2 * HALVES * KEYS
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
                v.store_bf16(halves + to, w)
                v.store_bf16(halves + to + HALVES, y)
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
def _read_logs(at, row, query_head, begin, count, logs):
    """The softmax's logarithms of a block's queries: fp32 (32,)."""
    tokens, every = v.read(at + AT.tokens), v.read(at + AT.heads) * v.read(at + AT.group)
    v.zero_memory(logs, 2)
    for i in range(count):
        query = (row * tokens + begin + i) * every + query_head
        v.write_fp32(logs + 4 * i, v.read_fp32(v.read(at + AT.logs) + 4 * query))


@inline
def _block(dtype, is_paired, at, row, query_head, begin, keys, values, words, d_keys, d_values, scratch):
    """The gradients that a block of queries of one head gives; keys and what follows: the chunk's own memory."""
    tokens, width = v.read(at + AT.tokens), v.read(at + AT.width)
    every, count = v.read(at + AT.heads) * v.read(at + AT.group), min(QUERIES, tokens - begin)
    step, offset = e.size(dtype) * every * width, ((row * tokens + begin) * every + query_head) * width * e.size(dtype)
    size = 2 if is_paired else 4
    whole = size * QUERIES * width
    # Columns and rows of queries and of output gradients, the query's gradient, the scores, and what is made of them.
    columns, rows, sums = scratch, scratch + 2 * whole, scratch + 4 * whole
    scores = sums + FLOATS * width
    inner, halves = scores + FLOATS * KEYS, scores + 2 * FLOATS * KEYS
    starts = halves + 2 * FLOATS * KEYS
    logs, deltas = starts + 8 * QUERIES, starts + 12 * QUERIES
    scale = v.broadcast(v.read_fp32(at + AT.scale))

    q, out, d_out = v.read(at + AT.q) + offset, v.read(at + AT.out) + offset, v.read(at + AT.d_out) + offset
    _prepare(dtype, is_paired, q, step, count, width, sums, columns, rows)
    _prepare(dtype, is_paired, d_out, step, count, width, sums, columns + whole, rows + whole)
    _inner_products(dtype, out, d_out, step, count, width, deltas)
    _read_logs(at, row, query_head, begin, count, logs)
    read_starts(v.read(at + AT.starts) + 8 * (row * tokens + begin), count, starts)
    v.zero_memory(sums, 2 * width)
    start, last, seen = v.read(starts) // KEYS * KEYS, v.read(starts + 8 * (QUERIES - 1)), 0
    while start < begin + count:
        many = min(KEYS, -(-(begin + count - start) // TILE_ROWS) * TILE_ROWS)
        is_cut = start + many > begin or last > start
        skip, to = size * width * start, 4 * width * start
        score(is_paired, keys + skip, columns, width, many, scores)
        score(is_paired, values + skip, columns + whole, width, many, inner)
        seen = _softmax_gradients(
            is_paired, scores, inner, start, many, starts, seen, begin, scale, logs, deltas, is_cut, halves
        )
        _collect(
            is_paired,
            scores,
            inner,
            halves,
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
    put_rows(dtype, sums, count, width, scale, v.read(at + AT.d_q) + offset, step)


@inline
def _collect(is_paired, scores, inner, halves, q_rows, d_rows, words, many, width, d_q, d_keys, d_values):
    """Add the products of weights and gradients of scores, from `_softmax_gradients`, to the gradients of all three."""
    weights, gradients, across, line, count = scores, inner, inner, FLOATS, many
    if is_paired:
        weights, gradients, across, line, count = (
            halves, halves + HALVES * KEYS, halves + 2 * HALVES * KEYS, HALVES, many // 2
        )  # fmt: skip
    add_product(is_paired, weights, line, 4, d_rows, line // 4, many, width, d_values)
    add_product(is_paired, gradients, line, 4, q_rows, line // 4, many, width, d_keys)
    add_product(is_paired, across, 4, FLOATS, words, count, QUERIES, width, d_q)


@inline
def _prepare(dtype, is_paired, x, step, count, width, scratch, columns, rows):
    """Up to 32 rows as columns (2, H, 16), and as rows fp32 (32, H), or as pairs of rows (16, H)."""
    if is_paired:
        copy_rows(dtype, True, x, step, count, QUERIES, width, scratch)
        transpose_rows(scratch, width // 2, columns)
        pair_rows(scratch, QUERIES, width, rows)
    else:
        copy_rows(dtype, False, x, step, count, QUERIES, width, rows)
        transpose_rows(rows, width, columns)


@inline
def _gradients(dtype, is_paired, at, chunk):
    tokens, heads, group = v.read(at + AT.tokens), v.read(at + AT.heads), v.read(at + AT.group)
    width, row, head = v.read(at + AT.width), chunk // heads, chunk % heads
    slots = -(-tokens // KEYS) * KEYS
    whole = (2 if is_paired else 4) * slots * width
    step = e.size(dtype) * heads * width
    offset = e.size(dtype) * (row * tokens * heads + head) * width
    d_keys = v.read(at + AT.work) + v.read(at + AT.work_size) * chunk
    d_values = d_keys + 4 * slots * width
    keys = d_values + 4 * slots * width
    values, words = keys + whole, keys
    copy_rows(dtype, is_paired, v.read(at + AT.k) + offset, step, tokens, slots, width, keys)
    copy_rows(dtype, is_paired, v.read(at + AT.v) + offset, step, tokens, slots, width, values)
    if is_paired:
        words = values + whole
        pair_rows(keys, slots, width, words)
    v.zero_memory(d_keys, slots * width // 8)
    scratch = v.stack()
    for query_head in range(head * group, (head + 1) * group):
        for begin in range(0, tokens, QUERIES):
            _block(dtype, is_paired, at, row, query_head, begin, keys, values, words, d_keys, d_values, scratch)
    put_rows(dtype, d_keys, tokens, width, v.broadcast(v.read_fp32(at + AT.scale)), v.read(at + AT.d_k) + offset, step)
    put_rows(dtype, d_values, tokens, width, v.broadcast(1.0), v.read(at + AT.d_v) + offset, step)


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
