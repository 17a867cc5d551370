"""Attention over whole sequences in bf16, for training: results, and what `attention_gradients` needs of the softmax.

Must equal `llamita.attention.eager` up to the rounding of bf16. One softmax goes over all blocks of keys, as in
`prefill_attention`, and no block of keys is read that its queries do not see. A chunk is a key/value head of a row,
with all of its query heads.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import WholeAttention, offsets
from llamita.kernels.cpu.attention_blocks import (
    FLOATS,
    HALVES,
    TILE_ROWS,
    add_product,
    copy_rows,
    pair_rows,
    read_starts,
    score,
    transpose_rows,
)
from llamita.kernels.cpu.constants import KEYS, QUERIES
from llamita.kernels.cpu.functions import exponential
from llamita.kernels.cpu.online_softmax import NEVER
from llamita.kernels.cpu.runtime.program import inline, kernel

AT = offsets(WholeAttention)


@inline
def _mask_scores(scores, token, count, first, starts):
    """Write NEVER over the scores (count, 32) of keys that a query does not see; `first` is the block's first query."""
    never, seen = v.broadcast(NEVER), 0
    for i in range(count):
        while seen < QUERIES and v.read(starts + 8 * seen) <= token + i:
            seen += 1
        for half in range(2):
            at = scores + FLOATS * i + 64 * half
            x = v.blend_from(v.load(at), token + i - first - 16 * half, never)
            v.store(at, v.blend_from(never, seen - 16 * half, x))


@inline
def _largest(scores, count, most):
    """The larger of `most` and of the scores (count, 32), in every second vector."""
    for i in range(count):
        most = v.max(most, v.load(scores + FLOATS * i))
    return most


@inline
def _exponentials(scores, count, scale, most, words):
    """Weights of one half of the queries as words of two keys, which follow at 128 bytes; returns their sums."""
    even, odd, least = v.zero_fp32(), v.zero_fp32(), v.sub(v.zero_fp32(), v.mul(most, scale))
    for i in range(0, count, 2):
        one = exponential(v.fma(v.load(scores + FLOATS * i), scale, least))
        two = exponential(v.fma(v.load(scores + FLOATS * i + FLOATS), scale, least))
        even, odd = v.add(even, one), v.add(odd, two)
        v.store_words(words + FLOATS * (i // 2), v.pack_bf16(one, two))
    return v.add(even, odd)


@inline
def _rescale(sums, factors, width):
    """Multiply the rows of sums (32, H) by factors fp32 (32,)."""
    for row in range(QUERIES):
        factor = v.broadcast(v.read_fp32(factors + 4 * row))
        for i in range(0, 4 * width, 64):
            at = sums + 4 * width * row + i
            v.store(at, v.mul(v.load(at), factor))


@inline
def _put(at, row, query_head, begin, count, sums, most, totals):
    """Sums over their totals as rows of the result; the largest score and the total of each query."""
    width, every = v.read(at + AT.width), v.read(at + AT.heads) * v.read(at + AT.group)
    for i in range(count):
        query = (row * v.read(at + AT.tokens) + begin + i) * every + query_head
        total = v.read_fp32(totals + 4 * i)
        v.write_fp32(v.read(at + AT.totals) + 4 * query, total)
        v.write_fp32(v.read(at + AT.most) + 4 * query, v.read_fp32(most + 4 * i))
        for column in range(0, width, 16):
            x = v.mul(v.load(sums + 4 * (i * width + column)), v.broadcast(1.0 / total))
            e.put_wide(e.BF16, v.read(at + AT.out) + 2 * query * width, column, x)


@inline
def _block(at, row, query_head, begin, keys, values, scratch):
    """A block of queries of one head."""
    tokens, width = v.read(at + AT.tokens), v.read(at + AT.width)
    every, count = v.read(at + AT.heads) * v.read(at + AT.group), min(QUERIES, tokens - begin)
    offset = 2 * ((row * tokens + begin) * every + query_head) * width
    scale = v.broadcast(v.read_fp32(at + AT.scale))
    sums = scratch + HALVES * width
    scores = sums + FLOATS * width
    words = scores + FLOATS * KEYS
    factors = words + FLOATS * KEYS // 2
    most, totals, starts = factors + FLOATS, factors + 2 * FLOATS, factors + 3 * FLOATS

    copy_rows(e.BF16, True, v.read(at + AT.q) + offset, 2 * every * width, count, QUERIES, width, sums)
    transpose_rows(sums, width // 2, scratch)
    read_starts(v.read(at + AT.starts) + 8 * (row * tokens + begin), count, starts)
    v.zero_memory(sums, 2 * width)
    start, last = v.read(starts) // KEYS * KEYS, v.read(starts + 8 * (QUERIES - 1))
    # Of the first sixteen queries, and of the others.
    largest, late_largest = v.broadcast(NEVER), v.broadcast(NEVER)
    total, late_total = v.zero_fp32(), v.zero_fp32()
    while start < begin + count:
        many = min(KEYS, -(-(begin + count - start) // TILE_ROWS) * TILE_ROWS)
        score(True, keys + 2 * width * start, scratch, width, many, scores)
        if start + many > begin or last > start:
            _mask_scores(scores, start, many, begin, starts)
        new, late_new = _largest(scores, many, largest), _largest(scores + 64, many, late_largest)
        rescale = exponential(v.mul(v.sub(largest, new), scale))
        late_rescale = exponential(v.mul(v.sub(late_largest, late_new), scale))
        total = v.fma(total, rescale, _exponentials(scores, many, scale, new, words))
        late_total = v.fma(late_total, late_rescale, _exponentials(scores + 64, many, scale, late_new, words + 64))
        v.store(factors, rescale)
        v.store(factors + 64, late_rescale)
        _rescale(sums, factors, width)
        add_product(True, words, 4, FLOATS, values + 2 * width * start, many // 2, QUERIES, width, sums)
        largest, late_largest = new, late_new
        start += many
    v.store(most, largest)
    v.store(most + 64, late_largest)
    v.store(totals, total)
    v.store(totals + 64, late_total)
    _put(at, row, query_head, begin, count, sums, most, totals)


@kernel
def attend_pairs(at: int, chunk: int) -> None:
    """By bf16 dot products."""
    tokens, heads, group = v.read(at + AT.tokens), v.read(at + AT.heads), v.read(at + AT.group)
    width, row, head = v.read(at + AT.width), chunk // heads, chunk % heads
    slots = -(-tokens // KEYS) * KEYS
    step, offset = 2 * heads * width, 2 * (row * tokens * heads + head) * width
    keys = v.read(at + AT.work) + v.read(at + AT.work_size) * chunk
    copied, values = keys + 2 * slots * width, keys + 4 * slots * width
    copy_rows(e.BF16, True, v.read(at + AT.k) + offset, step, tokens, slots, width, keys)
    copy_rows(e.BF16, True, v.read(at + AT.v) + offset, step, tokens, slots, width, copied)
    pair_rows(copied, slots, width, values)
    scratch = v.stack()
    for query_head in range(head * group, (head + 1) * group):
        for begin in range(0, tokens, QUERIES):
            _block(at, row, query_head, begin, keys, values, scratch)
