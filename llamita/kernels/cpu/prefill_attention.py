"""Attention of many new tokens a row: turn and store them; then blocks of sixteen queries look at all keys before them.

Must equal reference.attend, up to the order of the sums. Products and sums are fp32; the likelihoods of a block are
kept up key tile by key tile (arXiv:2205.14135), so nothing of the size T * S is ever stored.

Sixteen queries are the lanes of a vector. So the largest score and the sum of the likelihoods are one vector each, and
every product takes one number of a key or a value for all lanes.

Sizes, an array of int64 that both kernels read: T, K, N / K, H, capacity of the cache, window, the bits of the scale,
the slot of the first new token, and the slots of the wide keys and values. Queries have fifteen rows to spare behind
them. H is a multiple of 16, at most 256.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.accumulators import Eight, scaled_eight, store_eight
from llamita.kernels.cpu.constants import KEYS
from llamita.kernels.cpu.decode_attention import turn
from llamita.kernels.cpu.elementwise import exponential
from llamita.kernels.cpu.runtime.program import inline, kernel

BESIDE = 8  # keys, or columns of values, that are worked on at once
NEVER = -1e30  # less than any score


@inline
def _turn(dtype, cache_dtype, at, chunk):
    sizes = v.read(at + 64)
    tokens, heads, group, width = v.read(sizes), v.read(sizes + 8), v.read(sizes + 16), v.read(sizes + 24)
    capacity, scale, slot = v.read(sizes + 32), v.read_fp32(sizes + 48), v.read(sizes + 56) + chunk % tokens
    half, row = width // 2, chunk // tokens
    angles = (half, v.read(at + 24) + 4 * half * chunk, v.read(at + 32) + 4 * half * chunk)
    for head in range(heads * group):
        place = (chunk * heads * group + head) * width
        turn(dtype, v.read(at), place, angles, scale, e.FP32, v.read(at + 56), place)
    for head in range(heads):
        place, to = (chunk * heads + head) * width, ((row * heads + head) * capacity + slot) * width
        turn(dtype, v.read(at + 8), place, angles, 1.0, cache_dtype, v.read(at + 40), to)
        for i in range(0, width, 16):
            e.put_wide(cache_dtype, v.read(at + 48), to + i, e.wide(dtype, v.read(at + 16), place + i))


@inline
def _widen(dtype, at, chunk):
    sizes, count = v.read(at + 16), v.read(at + 24)
    tokens, width, capacity = v.read(sizes), v.read(sizes + 24), v.read(sizes + 32)
    filled, slots = v.read(sizes + 56) + tokens, v.read(sizes + 64)
    across = -(-slots // count)
    head, first = chunk // across, chunk % across * count
    for slot in range(first, min(slots, first + count)):
        to = v.read(at + 8) + 4 * (head * slots + slot) * width
        for i in range(0, width, 16):
            value = v.zero_fp32()
            if slot < filled:
                value = e.wide(dtype, v.read(at), (head * capacity + slot) * width + i)
            v.store(to + 4 * i, value)


@inline
def shown(x: v.Vector, slot: int, kept: int, first: int, window: int, hidden: v.Vector) -> v.Vector:
    """x where the lane's query may see the key at `slot`, else `hidden`.

    first: the slot of the first lane's query. kept: the first slot that any query sees.
    """
    if slot < kept:
        return hidden
    x = v.blend_from(x, slot - first, hidden)
    return v.blend_from(hidden, slot - first + window, x)


@inline
def keep_scores(
    scores: Eight, most: v.Vector, to: int, slot: int, kept: int, first: int, window: int, is_cut: bool
) -> v.Vector:
    """Write the scores of eight keys from `slot` on, those that are hidden as NEVER; returns the largest so far."""
    for score in scores:
        if is_cut:
            score = shown(score, slot, kept, first, window, v.broadcast(NEVER))
        most = v.max(most, score)
        v.store(to, score)
        slot += 1
        to += 64
    return most


@inline
def _tile_scores(q, keys, start, end, width, to, first, window, is_cut):
    """Products of sixteen queries q (H, 16) with keys (slots, H), to (keys, 16); returns the largest of each lane."""
    most = v.broadcast(NEVER)
    for slot in range(start, end, BESIDE):
        key, step = keys + 4 * slot * width, 4 * width
        a = b = c = d = f = g = h = j = v.zero_fp32()
        for i in range(width):
            part_of_q, at = v.load(q + 64 * i), key + 4 * i
            a = v.fma(v.broadcast(v.read_fp32(at)), part_of_q, a)
            b = v.fma(v.broadcast(v.read_fp32(at + step)), part_of_q, b)
            c = v.fma(v.broadcast(v.read_fp32(at + 2 * step)), part_of_q, c)
            d = v.fma(v.broadcast(v.read_fp32(at + 3 * step)), part_of_q, d)
            f = v.fma(v.broadcast(v.read_fp32(at + 4 * step)), part_of_q, f)
            g = v.fma(v.broadcast(v.read_fp32(at + 5 * step)), part_of_q, g)
            h = v.fma(v.broadcast(v.read_fp32(at + 6 * step)), part_of_q, h)
            j = v.fma(v.broadcast(v.read_fp32(at + 7 * step)), part_of_q, j)
        most = keep_scores((a, b, c, d, f, g, h, j), most, to + 64 * (slot - start), slot, 0, first, window, is_cut)
    return most


@inline
def _tile_likelihoods(scores, start, end, most, first, window, is_cut):
    """e to the scores less the largest, in place, 0 where a query sees no such key; returns their sums."""
    total = v.zero_fp32()
    for slot in range(start, end):
        at = scores + 64 * (slot - start)
        value = exponential(v.sub(v.load(at), most))
        if is_cut:
            value = shown(value, slot, 0, first, window, v.zero_fp32())
        total = v.add(total, value)
        v.store(at, value)
    return total


@inline
def _tile_mix(likelihoods, values, start, end, width, factor, sums):
    """The sums (H, 16) so far times a factor, and a tile's values (slots, H) by their likelihoods."""
    for i in range(0, width, BESIDE):
        at = sums + 64 * i
        a, b, c, d, f, g, h, j = scaled_eight(at, factor)
        for slot in range(start, end):
            likelihood, value = v.load(likelihoods + 64 * (slot - start)), values + 4 * (slot * width + i)
            a = v.fma(v.broadcast(v.read_fp32(value)), likelihood, a)
            b = v.fma(v.broadcast(v.read_fp32(value + 4)), likelihood, b)
            c = v.fma(v.broadcast(v.read_fp32(value + 8)), likelihood, c)
            d = v.fma(v.broadcast(v.read_fp32(value + 12)), likelihood, d)
            f = v.fma(v.broadcast(v.read_fp32(value + 16)), likelihood, f)
            g = v.fma(v.broadcast(v.read_fp32(value + 20)), likelihood, g)
            h = v.fma(v.broadcast(v.read_fp32(value + 24)), likelihood, h)
            j = v.fma(v.broadcast(v.read_fp32(value + 28)), likelihood, j)
        store_eight(at, (a, b, c, d, f, g, h, j))


@inline
def turn_columns(rows: int, step: int, width: int, columns: int, sums: int) -> None:
    """Sixteen rows fp32 (H,), so many bytes apart, as columns (H, 16); and as many sums of nothing."""
    for i in range(0, width, 16):
        v.transpose(rows + 4 * i, step, columns + 64 * i)
    v.zero_memory(sums, width)


@inline
def put_rows(
    dtype: int, sums: int, total: v.Vector, width: int, count: int, out: int, start: int, step: int, room: int
) -> None:
    """Sums (H, 16) over their totals as the first `count` rows, `step` elements apart, from element `start` on.

    A total of 0, of a query that sees nothing, gives 0. room: 1 KB to work in.
    """
    for i in range(0, width, 16):
        v.transpose(sums + 64 * i, 64, room)
        for lane in range(count):
            weight = v.extract(total, lane)
            weight = 1.0 / weight if weight > 0.0 else 0.0
            e.put_wide(dtype, out, start + lane * step + i, v.mul(v.load(room + 64 * lane), v.broadcast(weight)))


@inline
def _attend(dtype, at, chunk):
    sizes = v.read(at + 32)
    tokens, heads, group, width = v.read(sizes), v.read(sizes + 8), v.read(sizes + 16), v.read(sizes + 24)
    window, slots, across = v.read(sizes + 40), v.read(sizes + 64), -(-v.read(sizes) // 16)
    every = heads * group
    row, head, block = chunk // across // every, chunk // across % every, chunk % across
    count = min(16, tokens - 16 * block)
    first = v.read(sizes + 56) + 16 * block  # slot of the first query
    kept = v.read(v.read(at + 24) + 8 + 8 * row)  # the row's first visible slot
    place = ((row * tokens + 16 * block) * every + head) * width
    keys = v.read(at + 8) + 4 * (row * heads + head // group) * slots * width
    values = v.read(at + 16) + 4 * (row * heads + head // group) * slots * width
    q = v.stack()
    sums = q + 64 * width
    scores = sums + 64 * width
    turn_columns(v.read(at) + 4 * place, 4 * every * width, width, q, sums)
    most, total = v.broadcast(NEVER), v.zero_fp32()
    start = max(kept, first - window + 1)
    while start < first + count:
        end = min(start + KEYS, start + -(-(first + count - start) // BESIDE) * BESIDE)
        is_cut = end > first or start < first + 16 - window
        new = v.max(most, _tile_scores(q, keys, start, end, width, scores, first, window, is_cut))
        factor = exponential(v.sub(most, new))
        total = v.fma(total, factor, _tile_likelihoods(scores, start, end, new, first, window, is_cut))
        _tile_mix(scores, values, start, end, width, factor, sums)
        most, start = new, end
    put_rows(dtype, sums, total, width, count, v.read(at + 40), place, every * width, scores)


@kernel
def turn_fp32_fp32(at: int, chunk: int) -> None:
    """From fp32 into a cache in fp32: q, k, v, cosines, sines, keys, values, out q fp32, sizes; a chunk is a token."""
    _turn(e.FP32, e.FP32, at, chunk)


@kernel
def turn_fp32_bf16(at: int, chunk: int) -> None:
    """From fp32 into a cache in bf16."""
    _turn(e.FP32, e.BF16, at, chunk)


@kernel
def turn_fp32_fp16(at: int, chunk: int) -> None:
    """From fp32 into a cache in fp16."""
    _turn(e.FP32, e.FP16, at, chunk)


@kernel
def turn_bf16_bf16(at: int, chunk: int) -> None:
    """From bf16 into a cache in bf16."""
    _turn(e.BF16, e.BF16, at, chunk)


@kernel
def turn_fp16_fp16(at: int, chunk: int) -> None:
    """From fp16 into a cache in fp16."""
    _turn(e.FP16, e.FP16, at, chunk)


@kernel
def widen_fp32(at: int, chunk: int) -> None:
    """A cache of fp32 as fp32: cache, out (B * K, slots, H), sizes, slots of a chunk. What is not filled becomes 0."""
    _widen(e.FP32, at, chunk)


@kernel
def causal_fp32(at: int, chunk: int) -> None:
    """Out in fp32: q, wide keys and values, slots, sizes, out (B, T, N, H); a chunk is sixteen queries of a head."""
    _attend(e.FP32, at, chunk)


@kernel
def widen_bf16(at: int, chunk: int) -> None:
    """A cache of bf16 as fp32: cache, out (B * K, slots, H), sizes, slots of a chunk. What is not filled becomes 0."""
    _widen(e.BF16, at, chunk)


@kernel
def causal_bf16(at: int, chunk: int) -> None:
    """Out in bf16: q, wide keys and values, slots, sizes, out (B, T, N, H); a chunk is sixteen queries of a head."""
    _attend(e.BF16, at, chunk)


@kernel
def widen_fp16(at: int, chunk: int) -> None:
    """A cache of fp16 as fp32: cache, out (B * K, slots, H), sizes, slots of a chunk. What is not filled becomes 0."""
    _widen(e.FP16, at, chunk)


@kernel
def causal_fp16(at: int, chunk: int) -> None:
    """Out in fp16: q, wide keys and values, slots, sizes, out (B, T, N, H); a chunk is sixteen queries of a head."""
    _attend(e.FP16, at, chunk)
