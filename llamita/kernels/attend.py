"""Attention of one new token a row: turn it, store it, and let it look at what the cache holds.

Must equal the sdpa backend over a cache of the same dtype, in fp32, up to the order of the sums.

Arguments: q (B, N * H), k and v (B, K * H) in fp32 and not yet turned, cosines and sines (B, H/2), keys and values of the
cache (B, K, capacity, H), the slots (below), out (B, N * H), scores (B, N, capacity) to work in, and the sizes, an array
of int64: K, N / K, H, capacity. A chunk is a row's key/value head with the query heads that read it. H is a multiple of 16.
Slots, int64 (1 + B,): where the new token is stored, then each row's first visible slot. The scale is in the q's angles'
place of the sizes: sizes[4], its bits.
"""

from numba import njit

from llamita.kernels import elements as e
from llamita.kernels import simd as v
from llamita.kernels.elementwise import exponential
from llamita.kernels.program import kernel


@njit
def _turn(x, cosines, sines, half, factor, put, to, start):
    """Turn a head x (H,) by its angles, times factor, and put it at `to` from element `start` on."""
    for i in range(half):
        cosine, sine = v.read_fp32(cosines + 4 * i), v.read_fp32(sines + 4 * i)
        first, second = v.read_fp32(x + 4 * i), v.read_fp32(x + 4 * (half + i))
        put(to, start + i, factor * (first * cosine - second * sine))
        put(to, start + half + i, factor * (second * cosine + first * sine))


@njit
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


@njit
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


@njit
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


@njit
def _attend(wide, put, at, chunk):
    slots, sizes = v.read(at + 56), v.read(at + 80)
    heads, group, width, capacity = v.read(sizes), v.read(sizes + 8), v.read(sizes + 16), v.read(sizes + 24)
    row, half = chunk // heads, v.read(sizes + 16) // 2
    slot, first = v.read(slots), v.read(slots + 8 + 8 * row)
    cosines, sines = v.read(at + 24) + 4 * half * row, v.read(at + 32) + 4 * half * row
    keys, values, start = v.read(at + 40), v.read(at + 48), chunk * capacity * width
    _turn(v.read(at + 8) + 4 * chunk * width, cosines, sines, half, 1.0, put, keys, start + slot * width)
    for i in range(width):
        put(values, start + slot * width + i, v.read_fp32(v.read(at + 16) + 4 * (chunk * width + i)))
    for head in range(chunk * group, (chunk + 1) * group):
        q, out = v.read(at) + 4 * head * width, v.read(at + 64) + 4 * head * width
        scores = v.read(at + 72) + 4 * head * capacity
        _turn(q, cosines, sines, half, v.read_fp32(sizes + 32), e.put_fp32, out, 0)  # out holds q until it is used up
        most = _scores(wide, out, keys, start, first, slot + 1, width, scores)
        factor = _likelihoods(scores, first, slot + 1, most)
        _mix(wide, scores, factor, values, start, first, slot + 1, width, out)


@kernel
def attend_fp32(at, chunk):
    """A cache in fp32."""
    _attend(e.wide_fp32, e.put_fp32, at, chunk)


@kernel
def attend_bf16(at, chunk):
    """A cache in bf16."""
    _attend(e.wide_bf16, e.put_bf16, at, chunk)


@kernel
def attend_fp16(at, chunk):
    """A cache in fp16."""
    _attend(e.wide_fp16, e.put_fp16, at, chunk)
