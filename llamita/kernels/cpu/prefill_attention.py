"""Prefill attention, for many new tokens in each row, a block of queries at a time.

Must equal reference.attention bit for bit, and so `decode_attention`. One softmax goes over all blocks of keys
(arXiv:2205.14135), so nothing of the size T * S is ever stored. Three kernels, with the same arguments (`Attend`):

1. store: rotate the new queries and keys; keys and values go into the cache. A chunk is a block of queries.
2. spread: copy a row's keys and values from the cache, from its first token on, to where 3 reads. A chunk is a tile of
   64 tokens of a key/value head.
3. attend: a chunk is a block of queries of a head. A lane is a query: what is read of keys and values serves all lanes.

The version `pairs` of each is for a cache in bf16 and a processor with bf16 dot products; it gives the same bits.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import isa
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.accumulators import EIGHT, FOUR, add_products, no_eight, scaled_eight, store_eight
from llamita.kernels.cpu.arguments import Attend, Row, Sizes, offsets
from llamita.kernels.cpu.cache_rows import head_of, row_of, slot_of, store_token
from llamita.kernels.cpu.constants import KEYS, QUERIES
from llamita.kernels.cpu.decode_attention import NEVER, inverse_of
from llamita.kernels.cpu.elementwise import put_rounded
from llamita.kernels.cpu.functions import exponential
from llamita.kernels.cpu.rotary import rotate
from llamita.kernels.cpu.runtime.program import inline, kernel

AT, SIZE, ROW = offsets(Attend), offsets(Sizes), offsets(Row)
BESIDE = 8  # keys, or columns of values, that are worked on at once
# The same where registers hold eight lanes, sixteen of them (AVX2): the sums of eight would fill all.
IS_WIDE = isa.has("avx512f")
AT_ONCE = BESIDE if IS_WIDE else 4
no_sums, scaled, add, put = EIGHT if IS_WIDE else FOUR


@inline
def _row_of(at, list, number):
    """Of the entry of a list: the row and the token."""
    entry = list + 16 * number
    return row_of(at, v.read(entry)), v.read(entry + 8)


@inline
def _store(dtype, at, chunk):
    sizes = v.read(at + AT.sizes)
    its, begin = _row_of(at, v.read(at + AT.blocks), chunk)
    heads, group = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group)
    width, scale = v.read(sizes + SIZE.width), v.read_fp32(sizes + SIZE.scale)
    for token in range(begin, min(begin + v.read(sizes + SIZE.queries), v.read(its + ROW.tokens))):
        number = v.read(its + ROW.offset) + token
        cosines, sines = v.read(at + AT.cosines) + 2 * width * number, v.read(at + AT.sines) + 2 * width * number
        for head in range(heads * group):
            x = v.read(at + AT.q) + 4 * width * (number * heads * group + head)
            rotate(x, cosines, sines, width // 2, scale, e.FP32, x, 0)
        for head in range(heads):
            store_token(dtype, at, its, head, token)


@inline
def _spread(dtype, is_paired, at, chunk):
    sizes = v.read(at + AT.sizes)
    heads, width, stride = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.width), v.read(sizes + SIZE.slot_stride)
    its, first = _row_of(at, v.read(at + AT.tiles), chunk // heads)
    head, slots = chunk % heads, v.read(its + ROW.slots)
    filled, start = v.read(its + ROW.start) + v.read(its + ROW.tokens), head_of(sizes, its, head)
    for token in range(first, first + KEYS):
        of = -1
        if token < filled:
            of = start + stride * slot_of(its, sizes, token)
        place = v.read(its + ROW.wide) + (head * slots + token) * width
        for i in range(0, width, 16):
            if is_paired:
                _spread_pairs(at, of, place, token, width, i)
            else:
                key = value = v.zero_fp32()
                if of >= 0:
                    key, value = (
                        e.wide(dtype, v.read(at + AT.keys), of + i),
                        e.wide(dtype, v.read(at + AT.values), of + i),
                    )
                v.store(v.read(at + AT.wide_keys) + 4 * (place + i), key)
                v.store(v.read(at + AT.wide_values) + 4 * (place + i), value)


@inline
def _spread_pairs(at, of, place, token, width, i):
    """Sixteen columns: of a key as they are; of a value into the low or high halves of a pair of tokens' words."""
    key = value = v.zero_words()
    if of >= 0:
        key = v.load_uint16(v.read(at + AT.keys) + 2 * (of + i))
        value = v.load_uint16(v.read(at + AT.values) + 2 * (of + i))
    v.store_uint16(v.read(at + AT.wide_keys) + 2 * (place + i), key)
    to = v.read(at + AT.wide_values) + 2 * (place - token % 2 * width) + 4 * i
    if token % 2:
        value = v.or_words(v.load_words(to), v.shl(value, 16))
    v.store_words(to, value)


@inline
def _hide(x, token, first, window, hidden):
    """x where the lane's query, of which lane 0 is token `first`, may see `token`; else `hidden`."""
    x = v.blend_from(x, token - first, hidden)
    return v.blend_from(hidden, token - first + window, x)


@inline
def _keep_scores(scores, most, to, token, first, window, is_cut):
    """Write the scores of eight keys from `token` on, those that are hidden as NEVER; returns the largest so far."""
    for score in scores:
        if is_cut:
            score = _hide(score, token, first, window, v.broadcast(NEVER))
        most = v.max(most, score)
        v.store(to, score)
        token += 1
        to += 64
    return most


@inline
def _factors(dtype, is_paired, scores, count, token, most, first, window, is_cut, sums):
    """exp(score - largest), in place; in pairs of bf16 at half the distance. Returns their sum.

    The order of the sum: every sixteenth key in one of sixteen sums, then a tree. sums: 1 KB to work in.
    """
    v.zero_memory(sums, 16)
    held = v.zero_fp32()
    for i in range(count):
        at = scores + 64 * i
        x = exponential(v.sub(v.load(at), most))
        if is_cut:
            x = _hide(x, token + i, first, window, v.zero_fp32())
        its = sums + 64 * (i % 16)
        v.store(its, v.add(v.load(its), x))
        if is_paired:
            if i % 2:
                v.store_words(scores + 32 * (i - 1), v.pack_bf16(held, x))
            held = x
        elif dtype == e.BF16:
            v.store(at, v.round_bf16(x))
        else:
            v.store(at, x)
    for half in (8, 4, 2, 1):
        for i in range(half):
            its = sums + 64 * i
            v.store(its, v.add(v.load(its), v.load(its + 64 * half)))
    return v.load(sums)


@inline
def _score_wide(q, keys, start, end, width, to, first, window, is_cut):
    """Products of sixteen queries q (H, 16) with keys fp32 (slots, H); returns the largest of each lane."""
    most, step = v.broadcast(NEVER), 4 * width
    for token in range(start, end, AT_ONCE):
        at, sums = keys + token * step, no_sums()
        for i in range(0, width, 2):
            sums = add(sums, v.load(q + 64 * i + 64), at + 4 * i + 4, step)
            sums = add(sums, v.load(q + 64 * i), at + 4 * i, step)
        most = _keep_scores(sums, most, to + 64 * (token - start), token, first, window, is_cut)
    return most


@inline
def _mix_wide(factors, values, start, end, width, fade, sums):
    """Multiply the sums (H, 16) by their factors, and add a tile's values fp32 (slots, H) times theirs."""
    for i in range(0, width, AT_ONCE):
        some = scaled(sums + 64 * i, fade)
        for token in range(start, end, 2):
            at, value = factors + 64 * (token - start), values + 4 * (token * width + i)
            some = add(some, v.load(at + 64), value + 4 * width, 4)
            some = add(some, v.load(at), value, 4)
        put(sums + 64 * i, some)


@inline
def _score_pairs(q, keys, start, end, width, to, first, window, is_cut):
    """Products of queries, pairs (H/2, 32), with keys bf16 (slots, H); returns the largest of each lane."""
    early, late, step = v.broadcast(NEVER), v.broadcast(NEVER), 2 * width
    for token in range(start, end, BESIDE):
        at, one, two = keys + token * step, no_eight(), no_eight()
        for i in range(width // 2):
            one = add_products(one, v.load_words(q + 128 * i), at + 4 * i, step)
            two = add_products(two, v.load_words(q + 128 * i + 64), at + 4 * i, step)
        there = to + 64 * (token - start)
        early = _keep_scores(one, early, there, token, first, window, is_cut)
        late = _keep_scores(two, late, there + 64 * KEYS, token, first + 16, window, is_cut)
    return early, late


@inline
def _mix_pairs(factors, values, start, end, width, early, late, sums):
    """Multiply the sums (2, H, 16) by their factors, and add a tile's values times theirs, both in pairs."""
    for i in range(0, width, BESIDE):
        at, beside = sums + 64 * i, sums + 64 * (width + i)
        one, two = scaled_eight(at, early), scaled_eight(beside, late)
        for pair in range(start // 2, end // 2):
            factor, value = factors + 64 * (pair - start // 2), values + 4 * (pair * width + i)
            one = add_products(one, v.load_words(factor), value, 4)
            two = add_products(two, v.load_words(factor + 64 * KEYS), value, 4)
        store_eight(at, one)
        store_eight(beside, two)


@inline
def _put(sums, total, width, count, at, start, step, near):
    """Sums (H, 16) over their totals, as the first `count` rows of out, `step` elements apart, from element `start` on.

    near: 1 KB to work in.
    """
    inverse, out = inverse_of(total), v.read(at + AT.out) + 4 * start
    for i in range(0, width, 16):
        v.transpose(sums + 64 * i, 64, near)
        for lane in range(count):
            x = v.mul(v.load(near + 64 * lane), v.broadcast(v.extract(inverse, lane)))
            v.store(out + 4 * (lane * step + i), x)
    halves, q8_blocks = v.read(at + AT.halves), v.read(at + AT.q8_blocks)
    for lane in range(count):
        put_rounded(out + 4 * lane * step, start + lane * step, width, halves, q8_blocks)


@inline
def _place(at, chunk, queries):
    """Of a chunk: row, head, its first query, how many it has, and the elements before its first query's q or out.

    The blocks of one head follow each other, as they read the same keys and values.
    """
    sizes = v.read(at + AT.sizes)
    count, every = v.read(sizes + SIZE.blocks), v.read(sizes + SIZE.heads) * v.read(sizes + SIZE.group)
    its, begin = _row_of(at, v.read(at + AT.blocks), chunk % count)
    head, number = chunk // count, v.read(its + ROW.offset) + begin
    some = min(queries, v.read(its + ROW.tokens) - begin)
    return its, head, begin, some, v.read(sizes + SIZE.width) * (number * every + head)


@inline
def _turn_columns(x, step, count, width, to, near):
    """Up to sixteen rows fp32 (H,), `step` bytes apart, as columns (H, 16); lanes without a row are 0."""
    for i in range(0, width, 16):
        for lane in range(16):
            row = v.zero_fp32()
            if lane < count:
                row = v.load(x + lane * step + 4 * i)
            v.store(near + 64 * lane, row)
        v.transpose(near, 64, to + 64 * i)


@inline
def _attend_wide(dtype, at, chunk):
    """Sixteen queries over keys and values in fp32."""
    sizes = v.read(at + AT.sizes)
    its, head, begin, count, place = _place(at, chunk, 16)
    heads, group = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group)
    width, window, slots = v.read(sizes + SIZE.width), v.read(sizes + SIZE.window), v.read(its + ROW.slots)
    first = v.read(its + ROW.start) + begin
    skip = 4 * (v.read(its + ROW.wide) + head // group * slots * width)
    keys, values = v.read(at + AT.wide_keys) + skip, v.read(at + AT.wide_values) + skip
    q, step = v.stack(), heads * group * width
    sums = q + 64 * width
    scores = sums + 64 * width
    near = scores + 64 * KEYS
    _turn_columns(v.read(at + AT.q) + 4 * place, 4 * step, count, width, q, near)
    if dtype == e.BF16:
        for i in range(width):
            v.store(q + 64 * i, v.round_bf16(v.load(q + 64 * i)))
    v.zero_memory(sums, width)
    most, total = v.broadcast(NEVER), v.zero_fp32()
    start = max(0, first - window + 1) // KEYS * KEYS
    while start < first + count:
        end = start + min(KEYS, -(-(first + count - start) // BESIDE) * BESIDE)
        is_cut = end > first or start < first + 16 - window
        new = v.max(most, _score_wide(q, keys, start, end, width, scores, first, window, is_cut))
        fade = exponential(v.sub(most, new))
        added = _factors(dtype, False, scores, end - start, start, new, first, window, is_cut, near)
        total = v.fma(total, fade, added)
        _mix_wide(scores, values, start, end, width, fade, sums)
        most, start = new, end
    _put(sums, total, width, count, at, place, step, near)


@inline
def _attend_pairs(at, chunk):
    """Thirty-two queries over keys in bf16 and values in pairs of tokens."""
    sizes = v.read(at + AT.sizes)
    its, head, begin, count, place = _place(at, chunk, QUERIES)
    heads, group = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group)
    width, window, slots = v.read(sizes + SIZE.width), v.read(sizes + SIZE.window), v.read(its + ROW.slots)
    first = v.read(its + ROW.start) + begin
    skip = 2 * (v.read(its + ROW.wide) + head // group * slots * width)
    keys, values = v.read(at + AT.wide_keys) + skip, v.read(at + AT.wide_values) + skip
    q, step = v.stack(), heads * group * width
    scores = q + 64 * width
    near = scores + 128 * KEYS
    sums = near + 1024
    for half in range(2):  # the columns lie where the sums will be
        x, turned = v.read(at + AT.q) + 4 * (place + 16 * half * step), sums
        _turn_columns(x, 4 * step, max(0, min(16, count - 16 * half)), width, turned, near)
        for i in range(width // 2):
            word = v.pack_bf16(v.load(turned + 128 * i), v.load(turned + 128 * i + 64))
            v.store_words(q + 128 * i + 64 * half, word)
    v.zero_memory(sums, 2 * width)
    early, late, total, last = v.broadcast(NEVER), v.broadcast(NEVER), v.zero_fp32(), v.zero_fp32()
    start = max(0, first - window + 1) // KEYS * KEYS
    while start < first + count:
        end = start + min(KEYS, -(-(first + count - start) // BESIDE) * BESIDE)
        is_cut = end > first or start < first + QUERIES - window
        one, two = _score_pairs(q, keys, start, end, width, scores, first, window, is_cut)
        one, two = v.max(early, one), v.max(late, two)
        fade, after = exponential(v.sub(early, one)), exponential(v.sub(late, two))
        added = _factors(e.BF16, True, scores, end - start, start, one, first, window, is_cut, near)
        total = v.fma(total, fade, added)
        beside = scores + 64 * KEYS
        added = _factors(e.BF16, True, beside, end - start, start, two, first + 16, window, is_cut, near)
        last = v.fma(last, after, added)
        _mix_pairs(scores, values, start, end, width, fade, after, sums)
        early, late, start = one, two, end
    _put(sums, total, width, min(16, count), at, place, step, near)
    if count > 16:
        _put(sums + 64 * width, last, width, count - 16, at, place + 16 * step, step, near)


@kernel
def store_fp32(at: int, chunk: int) -> None:
    """Into a cache in fp32."""
    _store(e.FP32, at, chunk)


@kernel
def store_fp16(at: int, chunk: int) -> None:
    """Into a cache in fp16."""
    _store(e.FP16, at, chunk)


@kernel
def store_bf16(at: int, chunk: int) -> None:
    """Into a cache in bf16."""
    _store(e.BF16, at, chunk)


@kernel
def spread_fp32(at: int, chunk: int) -> None:
    """From a cache in fp32, to fp32."""
    _spread(e.FP32, False, at, chunk)


@kernel
def spread_fp16(at: int, chunk: int) -> None:
    """From a cache in fp16, to fp32."""
    _spread(e.FP16, False, at, chunk)


@kernel
def spread_bf16(at: int, chunk: int) -> None:
    """From a cache in bf16, to fp32."""
    _spread(e.BF16, False, at, chunk)


@kernel
def spread_pairs(at: int, chunk: int) -> None:
    """From a cache in bf16: keys as they are, and values as pairs of tokens."""
    _spread(e.BF16, True, at, chunk)


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
