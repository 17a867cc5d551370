"""Prefill attention, for many new tokens in each row, a block of queries at a time.

Must equal reference.attention bit for bit, and so `decode_attention`. One softmax goes over all blocks of keys
(arXiv:2205.14135), so nothing of the size T * S is ever stored. A chunk is a block of queries of a head, which read the
keys and values that `prefill_cache` has gathered. A lane is a query: what is read of keys and values serves all lanes.
Arguments: `Attend`.

`prefill_pairs` is for a cache in bf16 and a processor with bf16 dot products; it gives the same bits as `prefill_bf16`.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import isa
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.accumulators import EIGHT, FOUR, add_products, no_eight, scaled_eight, store_eight
from llamita.kernels.cpu.arguments import Attend, Row, Sizes, offsets
from llamita.kernels.cpu.cache_rows import row_of_entry
from llamita.kernels.cpu.constants import KEYS, QUERIES, TILE
from llamita.kernels.cpu.elementwise import put_rounded_rows
from llamita.kernels.cpu.functions import exponential
from llamita.kernels.cpu.key_tiles import LINE
from llamita.kernels.cpu.online_softmax import NEVER, inverse_of
from llamita.kernels.cpu.runtime.program import inline, kernel

AT, SIZE, ROW = offsets(Attend), offsets(Sizes), offsets(Row)
UNROLL = 8  # keys, or columns of values, that are worked on at once
# The same in fp32: where registers hold eight lanes, sixteen of them (AVX2), the sums of eight would fill all.
IS_WIDE = isa.has("avx512f")
UNROLL_FP32 = UNROLL if IS_WIDE else 4
no_sums, scaled, add, put = EIGHT if IS_WIDE else FOUR


@inline
def _masked(x, token, first, window, hidden):
    """x where the lane's query, of which lane 0 is token `first`, may see `token`; else `hidden`."""
    x = v.blend_from(x, token - first, hidden)
    return v.blend_from(hidden, token - first + window, x)


@inline
def _put_scores(scores, largest, to, token, first, window, is_cut):
    """Write the scores of eight keys from `token` on, those that are hidden as NEVER; returns the largest so far."""
    for score in scores:
        if is_cut:
            score = _masked(score, token, first, window, v.broadcast(NEVER))
        largest = v.max(largest, score)
        v.store(to, score)
        token += 1
        to += 64
    return largest


@inline
def _factors(dtype, is_paired, scores, count, token, largest, first, window, is_cut, sums):
    """exp(score - largest), in place; in pairs of bf16 at half the distance. Returns their sum.

    The order of the sum: every sixteenth key in one of sixteen sums, then a tree. sums: 1 KB to work in.
    """
    v.zero_memory(sums, 16)
    held = v.zero_fp32()
    for i in range(count):
        at = scores + 64 * i
        x = exponential(v.sub(v.load(at), largest))
        if is_cut:
            x = _masked(x, token + i, first, window, v.zero_fp32())
        part = sums + 64 * (i % 16)
        v.store(part, v.add(v.load(part), x))
        if is_paired:
            if i % 2:
                v.store_words(scores + 32 * (i - 1), v.pair_for_dot(held, x))
            held = x
        elif dtype == e.BF16:
            v.store(at, v.round_bf16(x))
        else:
            v.store(at, x)
    for half in (8, 4, 2, 1):
        for i in range(half):
            part = sums + 64 * i
            v.store(part, v.add(v.load(part), v.load(part + 64 * half)))
    return v.load(sums)


@inline
def _score_wide(q, keys, start, end, width, to, first, window, is_cut):
    """Products of sixteen queries q (H, 16) with keys fp32 (slots, H); returns the largest of each lane."""
    largest, step = v.broadcast(NEVER), 4 * width
    for token in range(start, end, UNROLL_FP32):
        at, sums = keys + token * step, no_sums()
        for i in range(0, width, 2):
            sums = add(sums, v.load(q + 64 * i + 64), at + 4 * i + 4, step)
            sums = add(sums, v.load(q + 64 * i), at + 4 * i, step)
        largest = _put_scores(sums, largest, to + 64 * (token - start), token, first, window, is_cut)
    return largest


@inline
def _mix_wide(factors, values, start, end, width, rescale, sums):
    """Multiply the sums (H, 16) by their factors, and add a tile's values fp32 (slots, H) times theirs."""
    for i in range(0, width, UNROLL_FP32):
        some = scaled(sums + 64 * i, rescale)
        for token in range(start, end, 2):
            at, value = factors + 64 * (token - start), values + 4 * (token * width + i)
            some = add(some, v.load(at + 64), value + 4 * width, 4)
            some = add(some, v.load(at), value, 4)
        put(sums + 64 * i, some)


@inline
def _key_of(keys, token, width, is_tiled):
    """Where a token's key in bf16 is, and how far from there its next pair of columns and the next token's key are."""
    if is_tiled:
        return v.read(keys + 2 * (token - token % TILE) * width) + 4 * (token % TILE), LINE, 4
    return keys + 2 * token * width, 4, 2 * width


@inline
def _score_pairs(q, keys, is_tiled, start, end, width, to, first, window, is_cut):
    """Products of queries, pairs (H/2, 32), with keys bf16 (slots, H) or tiles; returns the largest of each lane."""
    early, late = v.broadcast(NEVER), v.broadcast(NEVER)
    for token in range(start, end, UNROLL):
        (at, far, step), one, two = _key_of(keys, token, width, is_tiled), no_eight(), no_eight()
        for i in range(width // 2):
            one = add_products(one, v.load_words(q + 128 * i), at + far * i, step)
            two = add_products(two, v.load_words(q + 128 * i + 64), at + far * i, step)
        there = to + 64 * (token - start)
        early = _put_scores(one, early, there, token, first, window, is_cut)
        late = _put_scores(two, late, there + 64 * KEYS, token, first + 16, window, is_cut)
    return early, late


@inline
def _mix_pairs(factors, values, start, end, width, rescale, late_rescale, sums):
    """Multiply the sums (2, H, 16) by their factors, and add a tile's values times theirs, both in pairs."""
    for i in range(0, width, UNROLL):
        at, late_at = sums + 64 * i, sums + 64 * (width + i)
        one, two = scaled_eight(at, rescale), scaled_eight(late_at, late_rescale)
        for pair in range(start // 2, end // 2):
            factor, value = factors + 64 * (pair - start // 2), values + 4 * (pair * width + i)
            one = add_products(one, v.load_words(factor), value, 4)
            two = add_products(two, v.load_words(factor + 64 * KEYS), value, 4)
        store_eight(at, one)
        store_eight(late_at, two)


@inline
def _put(sums, total, width, count, at, start, step, scratch):
    """Sums (H, 16) over their totals, as the first `count` rows of out, `step` elements apart, from element `start` on.

    scratch: 1 KB to work in.
    """
    inverse, out = inverse_of(total), v.read(at + AT.out) + 4 * start
    for i in range(0, width, 16):
        v.transpose(sums + 64 * i, 64, scratch)
        for lane in range(count):
            x = v.mul(v.load(scratch + 64 * lane), v.broadcast(v.extract(inverse, lane)))
            v.store(out + 4 * (lane * step + i), x)
    halves, q8_blocks = v.read(at + AT.halves), v.read(at + AT.q8_blocks)
    put_rounded_rows(out, start, width, step, count, halves, q8_blocks)


@inline
def _block_of(at, chunk, queries, size):
    """Of a chunk: its first query's token, how many queries it has, where they are, and the keys and values of its row.

    The latter are addresses of elements of `size` bytes. A query's q and out begin at an element, the next one's a step
    of elements on. The blocks of one head follow each other, as they read the same keys and values.
    """
    sizes = v.read(at + AT.sizes)
    heads, group, width = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group), v.read(sizes + SIZE.width)
    blocks, step = v.read(sizes + SIZE.blocks), heads * group * width
    row, begin = row_of_entry(at, v.read(at + AT.blocks), chunk % blocks)
    head, count = chunk // blocks, min(queries, v.read(row + ROW.tokens) - begin)
    element = (v.read(row + ROW.offset) + begin) * step + head * width
    skip = size * (v.read(row + ROW.wide) + head // group * v.read(row + ROW.slots) * width)
    keys, values = v.read(at + AT.wide_keys) + skip, v.read(at + AT.wide_values) + skip
    return v.read(row + ROW.start) + begin, count, element, step, keys, values


@inline
def _transpose_rows(x, step, count, width, to, scratch):
    """Up to sixteen rows fp32 (H,), `step` bytes apart, as columns (H, 16); lanes without a row are 0."""
    for i in range(0, width, 16):
        for lane in range(16):
            line = v.zero_fp32()
            if lane < count:
                line = v.load(x + lane * step + 4 * i)
            v.store(scratch + 64 * lane, line)
        v.transpose(scratch, 64, to + 64 * i)


@inline
def _attend_wide(dtype, at, chunk):
    """Sixteen queries over keys and values in fp32."""
    sizes = v.read(at + AT.sizes)
    width, window = v.read(sizes + SIZE.width), v.read(sizes + SIZE.window)
    first, count, element, step, keys, values = _block_of(at, chunk, 16, 4)
    q = v.stack()
    sums = q + 64 * width
    scores = sums + 64 * width
    scratch = scores + 64 * KEYS
    _transpose_rows(v.read(at + AT.q) + 4 * element, 4 * step, count, width, q, scratch)
    if dtype == e.BF16:
        for i in range(width):
            v.store(q + 64 * i, v.round_bf16(v.load(q + 64 * i)))
    v.zero_memory(sums, width)
    largest, total = v.broadcast(NEVER), v.zero_fp32()
    start = max(0, first - window + 1) // KEYS * KEYS
    while start < first + count:
        end = start + min(KEYS, -(-(first + count - start) // UNROLL) * UNROLL)
        is_cut = end > first or start < first + 16 - window
        new = v.max(largest, _score_wide(q, keys, start, end, width, scores, first, window, is_cut))
        rescale = exponential(v.sub(largest, new))
        added = _factors(dtype, False, scores, end - start, start, new, first, window, is_cut, scratch)
        total = v.fma(total, rescale, added)
        _mix_wide(scores, values, start, end, width, rescale, sums)
        largest, start = new, end
    _put(sums, total, width, count, at, element, step, scratch)


@inline
def _attend_pairs(at, chunk):
    """Thirty-two queries over keys in bf16, copied or in tiles of the cache, and values in pairs of tokens."""
    sizes = v.read(at + AT.sizes)
    width, window, is_tiled = v.read(sizes + SIZE.width), v.read(sizes + SIZE.window), v.read(sizes + SIZE.is_tiled)
    first, count, element, step, keys, values = _block_of(at, chunk, QUERIES, 2)
    q = v.stack()
    scores = q + 64 * width
    scratch = scores + 128 * KEYS
    sums = scratch + 1024
    for half in range(2):  # the columns lie where the sums will be
        x, columns = v.read(at + AT.q) + 4 * (element + 16 * half * step), sums
        _transpose_rows(x, 4 * step, max(0, min(16, count - 16 * half)), width, columns, scratch)
        for i in range(width // 2):
            word = v.pack_bf16(v.load(columns + 128 * i), v.load(columns + 128 * i + 64))
            v.store_words(q + 128 * i + 64 * half, word)
    v.zero_memory(sums, 2 * width)
    # Of the first sixteen queries, and of the others.
    largest, late_largest = v.broadcast(NEVER), v.broadcast(NEVER)
    total, late_total = v.zero_fp32(), v.zero_fp32()
    start = max(0, first - window + 1) // KEYS * KEYS
    while start < first + count:
        end = start + min(KEYS, -(-(first + count - start) // UNROLL) * UNROLL)
        is_cut = end > first or start < first + QUERIES - window
        new, late_new = _score_pairs(q, keys, is_tiled, start, end, width, scores, first, window, is_cut)
        new, late_new = v.max(largest, new), v.max(late_largest, late_new)
        rescale, late_rescale = exponential(v.sub(largest, new)), exponential(v.sub(late_largest, late_new))
        added = _factors(e.BF16, True, scores, end - start, start, new, first, window, is_cut, scratch)
        total = v.fma(total, rescale, added)
        late_scores = scores + 64 * KEYS
        added = _factors(e.BF16, True, late_scores, end - start, start, late_new, first + 16, window, is_cut, scratch)
        late_total = v.fma(late_total, late_rescale, added)
        _mix_pairs(scores, values, start, end, width, rescale, late_rescale, sums)
        largest, late_largest, start = new, late_new, end
    _put(sums, total, width, min(16, count), at, element, step, scratch)
    if count > 16:
        _put(sums + 64 * width, late_total, width, count - 16, at, element + 16 * step, step, scratch)


@kernel
def prefill_fp32(at: int, chunk: int) -> None:
    """For a cache in fp32 or fp16."""
    _attend_wide(e.FP32, at, chunk)


@kernel
def prefill_bf16(at: int, chunk: int) -> None:
    """For a cache in bf16: queries and factors are rounded to bf16."""
    _attend_wide(e.BF16, at, chunk)


@kernel
def prefill_pairs(at: int, chunk: int) -> None:
    """The same with the bf16 dot product instruction."""
    _attend_pairs(at, chunk)
