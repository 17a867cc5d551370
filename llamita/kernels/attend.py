"""Attention of a few new tokens a row: turn them, store them, let each look at what the cache holds up to itself.

Must equal reference.attend, which is plain attention over a cache of the same dtype, up to the order of the sums.

Arguments: q (B, T, N, H), k and v (B, T, K, H) in fp32 and not yet turned; cosines and sines (B * T, H/2); keys and values
of the cache (B, K, capacity, H); slots, int64 (1 + B,): where the first new token is stored, then each row's first visible
slot; out (B, T, N, H); scores (B, N, capacity) to work in; sizes, int64: T, K, N / K, H, capacity, window, and the bits of
the scale. H is a multiple of 16. A chunk is a row's key/value head with the query heads that read it.
"""

from llamita.kernels import elements as e
from llamita.kernels import simd as v
from llamita.kernels.elementwise import exponential
from llamita.kernels.program import kernel, part


@part
def _turn(x, cosines, sines, half, factor, put, to, start):
    """Turn a head x (H,) by its angles, times factor, and put it at `to` from element `start` on."""
    for i in range(half):
        cosine, sine = v.read_fp32(cosines + 4 * i), v.read_fp32(sines + 4 * i)
        first, second = v.read_fp32(x + 4 * i), v.read_fp32(x + 4 * (half + i))
        put(to, start + i, factor * (first * cosine - second * sine))
        put(to, start + half + i, factor * (second * cosine + first * sine))


@part
def _scores(wide, q, keys, start, first, end, width, scores):
    """Products of q (H,) with the keys of the slots; returns the largest."""
    most = -3.4e38
    for slot in range(first, end):
        a = v.no_floats()
        for i in range(0, width, 16):
            a = v.multiply_add(wide(keys, start + slot * width + i), v.load(q + 4 * i), a)
        score = v.total(a)
        most = max(most, score)
        v.write_fp32(scores + 4 * slot, score)
    return most


@part
def _likelihoods(scores, first, end, most):
    """e to the scores less the largest, in place; returns one over their sum."""
    total, slot = 0.0, first
    sums = v.no_floats()
    while slot + 16 <= end:
        part = exponential(v.minus(v.load(scores + 4 * slot), v.spread(most)))
        sums = v.plus(sums, part)
        v.store(scores + 4 * slot, part)
        slot += 16
    while slot < end:
        part = v.first(exponential(v.spread(v.read_fp32(scores + 4 * slot) - most)))
        total += part
        v.write_fp32(scores + 4 * slot, part)
        slot += 1
    return 1.0 / (total + v.total(sums))


@part
def _mix(wide, scores, factor, values, start, first, end, width, out):
    """The values of the slots, each by its likelihood."""
    for i in range(0, width, 16):
        a = b = v.no_floats()
        for slot in range(first, end - 1, 2):
            a = v.multiply_add(v.spread(v.read_fp32(scores + 4 * slot)), wide(values, start + slot * width + i), a)
            b = v.multiply_add(
                v.spread(v.read_fp32(scores + 4 * slot + 4)), wide(values, start + (slot + 1) * width + i), b
            )
        if (end - first) % 2:
            a = v.multiply_add(
                v.spread(v.read_fp32(scores + 4 * (end - 1))), wide(values, start + (end - 1) * width + i), a
            )
        v.store(out + 4 * i, v.times(v.plus(a, b), v.spread(factor)))


@part
def _store(put, at, chunk, slot):
    """Turn a row's new keys of one head and put them into the cache, the values beside them."""
    sizes = v.read(at + 80)
    tokens, heads, width, capacity = v.read(sizes), v.read(sizes + 8), v.read(sizes + 24), v.read(sizes + 32)
    row, head, half = chunk // heads, chunk % heads, v.read(sizes + 24) // 2
    for token in range(row * tokens, (row + 1) * tokens):
        to = (chunk * capacity + slot) * width
        new = 4 * (token * heads + head) * width
        cosines, sines = v.read(at + 24) + 4 * half * token, v.read(at + 32) + 4 * half * token
        _turn(v.read(at + 8) + new, cosines, sines, half, 1.0, put, v.read(at + 40), to)
        for i in range(width):
            put(v.read(at + 48), to + i, v.read_fp32(v.read(at + 16) + new + 4 * i))
        slot += 1


@part
def _attend(wide, put, at, chunk):
    slots, sizes = v.read(at + 56), v.read(at + 80)
    tokens, heads, group, width = v.read(sizes), v.read(sizes + 8), v.read(sizes + 16), v.read(sizes + 24)
    capacity, window, scale = v.read(sizes + 32), v.read(sizes + 40), v.read_fp32(sizes + 48)
    row, half, slot = chunk // heads, v.read(sizes + 24) // 2, v.read(slots)
    keys, values, start = v.read(at + 40), v.read(at + 48), chunk * capacity * width
    _store(put, at, chunk, slot)
    for token in range(row * tokens, (row + 1) * tokens):
        cosines, sines = v.read(at + 24) + 4 * half * token, v.read(at + 32) + 4 * half * token
        first = max(v.read(slots + 8 + 8 * row), slot - window + 1)
        for one in range(chunk % heads * group, (chunk % heads + 1) * group):
            place = 4 * (token * heads * group + one) * width
            q, out = v.read(at) + place, v.read(at + 64) + place
            scores = v.read(at + 72) + 4 * (row * heads * group + one) * capacity
            _turn(q, cosines, sines, half, scale, e.put_fp32, out, 0)  # out holds q until its values are mixed
            most = _scores(wide, out, keys, start, first, slot + 1, width, scores)
            factor = _likelihoods(scores, first, slot + 1, most)
            _mix(wide, scores, factor, values, start, first, slot + 1, width, out)
        slot += 1


@kernel
def attend_fp32(at: int, chunk: int) -> None:
    """A cache in fp32."""
    _attend(e.wide_fp32, e.put_fp32, at, chunk)


@kernel
def attend_bf16(at: int, chunk: int) -> None:
    """A cache in bf16."""
    _attend(e.wide_bf16, e.put_bf16, at, chunk)


@kernel
def attend_fp16(at: int, chunk: int) -> None:
    """A cache in fp16."""
    _attend(e.wide_fp16, e.put_fp16, at, chunk)
