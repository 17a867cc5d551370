"""Attention of many new tokens over a cache in bf16, two products at a time.

Must equal causal.causal_bf16 of the same queries rounded to bf16, up to the rounding of the likelihoods to bf16, which
the fused backends of torch do too. Sums are fp32. The blocks and tiles are those of `causal`.

A lane's word is a pair of bf16: two columns of a query, or the likelihoods of two keys. Keys are read from the cache as
they are; values are first laid out in pairs of slots: (B * K, slots / 2, H) words.
"""

from llamita.kernels import elements as e
from llamita.kernels import simd as v
from llamita.kernels.causal import (
    BESIDE,
    NEVER,
    keep_scores,
    put_rows,
    scaled_eight,
    shown,
    store_eight,
    turn_columns,
)
from llamita.kernels.elementwise import exponential
from llamita.kernels.layout import KEYS
from llamita.kernels.program import kernel, part


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
            low = high = v.no_words()
            if 2 * pair < filled:
                low = v.load_halves(of + 2 * i)
            if 2 * pair + 1 < filled:
                high = v.load_halves(of + 2 * (width + i))
            v.store_words(to + 4 * i, v.join(low, v.shifted(high, 16)))


@part
def _tile_scores(q, keys, start, end, width, to, kept, first, window, is_cut):
    """Products of sixteen queries, pairs (H/2, 16), with keys bf16 (slots, H); returns the largest of each lane."""
    most, step = v.spread(NEVER), 2 * width
    for slot in range(start, end, BESIDE):
        key = keys + slot * step
        a = b = c = d = f = g = h = j = v.no_floats()
        for i in range(width // 2):
            both, at = v.load_words(q + 64 * i), key + 4 * i
            a = v.dot2(a, both, v.load_everywhere(at))
            b = v.dot2(b, both, v.load_everywhere(at + step))
            c = v.dot2(c, both, v.load_everywhere(at + 2 * step))
            d = v.dot2(d, both, v.load_everywhere(at + 3 * step))
            f = v.dot2(f, both, v.load_everywhere(at + 4 * step))
            g = v.dot2(g, both, v.load_everywhere(at + 5 * step))
            h = v.dot2(h, both, v.load_everywhere(at + 6 * step))
            j = v.dot2(j, both, v.load_everywhere(at + 7 * step))
        most = keep_scores((a, b, c, d, f, g, h, j), most, to + 64 * (slot - start), slot, kept, first, window, is_cut)
    return most


@part
def _tile_likelihoods(scores, start, end, most, kept, first, window, is_cut):
    """e to the scores less the largest, in pairs of keys, over the scores; returns their sums."""
    total = v.no_floats()
    for slot in range(start, end, 2):
        at = scores + 64 * (slot - start)
        low, high = exponential(v.minus(v.load(at), most)), exponential(v.minus(v.load(at + 64), most))
        if is_cut:
            low = shown(low, slot, kept, first, window, v.no_floats())
            high = shown(high, slot + 1, kept, first, window, v.no_floats())
        total = v.plus(total, v.plus(low, high))
        v.store_words(scores + 32 * (slot - start), v.pair(low, high))
    return total


@part
def _tile_mix(likelihoods, values, start, end, width, factor, sums):
    """The sums (H, 16) so far times a factor, and a tile's values by their likelihoods, both in pairs."""
    for i in range(0, width, BESIDE):
        at = sums + 64 * i
        a, b, c, d, f, g, h, j = scaled_eight(at, factor)
        for pair in range(start // 2, end // 2):
            likelihood, value = v.load_words(likelihoods + 64 * (pair - start // 2)), values + 4 * (pair * width + i)
            a = v.dot2(a, likelihood, v.load_everywhere(value))
            b = v.dot2(b, likelihood, v.load_everywhere(value + 4))
            c = v.dot2(c, likelihood, v.load_everywhere(value + 8))
            d = v.dot2(d, likelihood, v.load_everywhere(value + 12))
            f = v.dot2(f, likelihood, v.load_everywhere(value + 16))
            g = v.dot2(g, likelihood, v.load_everywhere(value + 20))
            h = v.dot2(h, likelihood, v.load_everywhere(value + 24))
            j = v.dot2(j, likelihood, v.load_everywhere(value + 28))
        store_eight(at, (a, b, c, d, f, g, h, j))


@part
def _attend(dtype: int, at: int, chunk: int) -> None:
    sizes = v.read(at + 32)
    tokens, heads, group, width = v.read(sizes), v.read(sizes + 8), v.read(sizes + 16), v.read(sizes + 24)
    capacity, window, slots = v.read(sizes + 32), v.read(sizes + 40), v.read(sizes + 64)
    across = -(-tokens // 16)
    every = heads * group
    row, head, block = chunk // across // every, chunk // across % every, chunk % across
    count = min(16, tokens - 16 * block)
    first = v.read(sizes + 56) + 16 * block  # slot of the first query
    kept = v.read(v.read(at + 24) + 8 + 8 * row)  # the row's first visible slot
    place = ((row * tokens + 16 * block) * every + head) * width
    keys = v.read(at + 8) + 2 * (row * heads + head // group) * capacity * width
    values = v.read(at + 16) + 2 * (row * heads + head // group) * slots * width
    q = v.on_stack()
    sums = q + 64 * width
    scores = sums + 64 * width
    turn_columns(v.read(at) + 4 * place, 4 * every * width, width, q, sums)
    for i in range(width // 2):
        v.store_words(q + 64 * i, v.pair(v.load(q + 128 * i), v.load(q + 128 * i + 64)))
    most, total = v.spread(NEVER), v.no_floats()
    start = max(kept, first - window + 1) // 2 * 2
    while start < first + count:
        end = min(start + KEYS, start + -(-(first + count - start) // BESIDE) * BESIDE)
        is_cut = end > first or start < max(kept, first + 16 - window)
        new = v.larger(most, _tile_scores(q, keys, start, end, width, scores, kept, first, window, is_cut))
        factor = exponential(v.minus(most, new))
        added = _tile_likelihoods(scores, start, end, new, kept, first, window, is_cut)
        total = v.multiply_add(total, factor, added)
        _tile_mix(scores, values, start, end, width, factor, sums)
        most, start = new, end
    put_rows(dtype, sums, total, width, count, v.read(at + 40), place, every * width, scores)


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
