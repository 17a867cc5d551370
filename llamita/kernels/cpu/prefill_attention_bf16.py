"""Attention of many new tokens over a cache in bf16, two products at a time.

Must equal causal.causal_bf16 of the same queries rounded to bf16, up to the rounding of the likelihoods to bf16, which
the fused backends of torch do too. Sums are fp32. The tiles are those of `causal`; a block has
thirty-two queries, two vectors, so that every word of a key or a value goes into two products.

A lane's word is a pair of bf16: two columns of a query, or the likelihoods of two keys. Keys are read from the cache as
they are; values are first laid out in pairs of slots: (B * K, slots / 2, H) words.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.accumulators import add_products, no_eight, scaled_eight, store_eight
from llamita.kernels.cpu.constants import KEYS, QUERIES
from llamita.kernels.cpu.elementwise import exponential
from llamita.kernels.cpu.prefill_attention import BESIDE, NEVER, keep_scores, put_rows, shown, turn_columns
from llamita.kernels.cpu.runtime.program import inline, kernel


@kernel
def pair_values(at: int, chunk: int) -> None:
    """Values of a cache (B, K, capacity, H) in pairs of slots: cache, out, sizes, pairs of a chunk."""
    sizes, count = v.read(at + 16), v.read(at + 24)
    tokens, width, capacity = v.read(sizes), v.read(sizes + 24), v.read(sizes + 32)
    filled, pairs = v.read(sizes + 56) + tokens, v.read(sizes + 64) // 2
    across = -(-pairs // count)
    head, first = chunk // across, chunk % across * count
    for pair in range(first, min(pairs, first + count)):
        of = v.read(at) + 2 * (head * capacity + 2 * pair) * width
        to = v.read(at + 8) + 4 * (head * pairs + pair) * width
        for i in range(0, width, 16):
            low = high = v.zero_words()
            if 2 * pair < filled:
                low = v.load_uint16(of + 2 * i)
            if 2 * pair + 1 < filled:
                high = v.load_uint16(of + 2 * (width + i))
            v.store_words(to + 4 * i, v.or_words(low, v.shl(high, 16)))


@inline
def _tile_scores(q, keys, start, end, width, to, kept, first, window, is_cut):
    """Products of the queries, pairs (H/2, 32), with keys bf16 (slots, H); returns the largest of each lane."""
    early, late, step = v.broadcast(NEVER), v.broadcast(NEVER), 2 * width
    for slot in range(start, end, BESIDE):
        at, one, two = keys + slot * step, no_eight(), no_eight()
        for i in range(width // 2):
            one = add_products(one, v.load_words(q + 128 * i), at + 4 * i, step)
            two = add_products(two, v.load_words(q + 128 * i + 64), at + 4 * i, step)
        there = to + 64 * (slot - start)
        early = keep_scores(one, early, there, slot, kept, first, window, is_cut)
        late = keep_scores(two, late, there + 64 * KEYS, slot, kept, first + 16, window, is_cut)
    return early, late


@inline
def _tile_likelihoods(scores, start, end, most, kept, first, window, is_cut):
    """e to the scores less the largest, in pairs of keys, over the scores; returns their sums."""
    total = v.zero_fp32()
    for slot in range(start, end, 2):
        at = scores + 64 * (slot - start)
        low, high = exponential(v.sub(v.load(at), most)), exponential(v.sub(v.load(at + 64), most))
        if is_cut:
            low = shown(low, slot, kept, first, window, v.zero_fp32())
            high = shown(high, slot + 1, kept, first, window, v.zero_fp32())
        total = v.add(total, v.add(low, high))
        v.store_words(scores + 32 * (slot - start), v.pack_bf16(low, high))
    return total


@inline
def _tile_mix(likelihoods, values, start, end, width, early, late, sums):
    """The sums (2, H, 16) so far times their factors, and a tile's values by their likelihoods, both in pairs."""
    for i in range(0, width, BESIDE):
        at, beside = sums + 64 * i, sums + 64 * (width + i)
        one, two = scaled_eight(at, early), scaled_eight(beside, late)
        for pair in range(start // 2, end // 2):
            likelihood, value = likelihoods + 64 * (pair - start // 2), values + 4 * (pair * width + i)
            one = add_products(one, v.load_words(likelihood), value, 4)
            two = add_products(two, v.load_words(likelihood + 64 * KEYS), value, 4)
        store_eight(at, one)
        store_eight(beside, two)


@inline
def _attend(dtype: int, at: int, chunk: int) -> None:
    sizes = v.read(at + 32)
    tokens, heads, group, width = v.read(sizes), v.read(sizes + 8), v.read(sizes + 16), v.read(sizes + 24)
    capacity, window, slots = v.read(sizes + 32), v.read(sizes + 40), v.read(sizes + 64)
    across = -(-tokens // QUERIES)
    every = heads * group
    row, head, block = chunk // across // every, chunk // across % every, chunk % across
    count = min(QUERIES, tokens - QUERIES * block)
    first = v.read(sizes + 56) + QUERIES * block  # slot of the first query
    kept = v.read(v.read(at + 24) + 8 + 8 * row)  # the row's first visible slot
    place = ((row * tokens + QUERIES * block) * every + head) * width
    keys = v.read(at + 8) + 2 * (row * heads + head // group) * capacity * width
    values = v.read(at + 16) + 2 * (row * heads + head // group) * slots * width
    q = v.stack()
    scores = q + 64 * width
    sums = scores + 128 * KEYS
    for half in range(2):  # the columns of the queries lie in the room of the sums before these are set to nothing
        turned, step = sums + 64 * width, 4 * every * width
        turn_columns(v.read(at) + 4 * place + 16 * half * step, step, width, turned, sums)
        for i in range(width // 2):
            both = v.pack_bf16(v.load(turned + 128 * i), v.load(turned + 128 * i + 64))
            v.store_words(q + 128 * i + 64 * half, both)
    v.zero_memory(sums + 64 * width, width)
    early, late, total, last = v.broadcast(NEVER), v.broadcast(NEVER), v.zero_fp32(), v.zero_fp32()
    start = max(kept, first - window + 1) // 2 * 2
    while start < first + count:
        end = min(start + KEYS, start + -(-(first + count - start) // BESIDE) * BESIDE)
        is_cut = end > first or start < max(kept, first + QUERIES - window)
        one, two = _tile_scores(q, keys, start, end, width, scores, kept, first, window, is_cut)
        one, two = v.max(early, one), v.max(late, two)
        fade, after = exponential(v.sub(early, one)), exponential(v.sub(late, two))
        added = _tile_likelihoods(scores, start, end, one, kept, first, window, is_cut)
        total = v.fma(total, fade, added)
        added = _tile_likelihoods(scores + 64 * KEYS, start, end, two, kept, first + 16, window, is_cut)
        last = v.fma(last, after, added)
        _tile_mix(scores, values, start, end, width, fade, after, sums)
        early, late, start = one, two, end
    put_rows(dtype, sums, total, width, min(16, count), v.read(at + 40), place, every * width, scores)
    if count > 16:
        place += 16 * every * width
        put_rows(dtype, sums + 64 * width, last, width, count - 16, v.read(at + 40), place, every * width, scores)


@kernel
def causal_pairs_bf16(at: int, chunk: int) -> None:
    """q fp32, keys of the cache, paired values, slots, sizes, out bf16 (B, T, N, H).

    A chunk is sixteen queries of a head.
    """
    _attend(e.BF16, at, chunk)


@kernel
def causal_pairs_fp32(at: int, chunk: int) -> None:
    """The same with out in fp32."""
    _attend(e.FP32, at, chunk)
