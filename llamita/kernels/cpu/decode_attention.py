"""Attention of a few new tokens a row: turn them, store them, let each look at what the cache holds up to itself.

Must equal reference.attend, which is plain attention over a cache of the same dtype, up to the order of the sums.

Arguments: q (B, T, N, H), k and v (B, T, K, H) in fp32 and not yet turned; cosines and sines (B * T, H/2); keys and
values of the cache (B, K, capacity, H); slots, int64 (1 + B,): where the first new token is stored, then each row's
first visible slot; out (B, T, N, H); scores (B, N, capacity) to work in; sizes, int64: T, K, N / K, H, capacity,
window, and the bits of the scale. H is a multiple of 16. A chunk is a row's key/value head with the query heads that
read it.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.elementwise import exponential
from llamita.kernels.cpu.runtime.program import inline, kernel


@inline
def turn(
    dtype: int,
    x: int,
    start: int,
    angles: tuple[int, int, int],
    factor: float,
    to_dtype: int,
    to: int,
    to_start: int,
) -> None:
    """Turn a head (H,) that begins at element `start` of x, times factor, and put it elsewhere.

    angles: H/2, and where its cosines and sines are.
    """
    half, cosines, sines = angles
    i, scale = 0, v.broadcast(factor)
    while i + 16 <= half:
        cosine, sine = v.mul(scale, v.load(cosines + 4 * i)), v.mul(scale, v.load(sines + 4 * i))
        first, second = e.wide(dtype, x, start + i), e.wide(dtype, x, start + half + i)
        e.put_wide(to_dtype, to, to_start + i, v.sub(v.mul(first, cosine), v.mul(second, sine)))
        e.put_wide(to_dtype, to, to_start + half + i, v.add(v.mul(second, cosine), v.mul(first, sine)))
        i += 16
    while i < half:
        cosine, sine = factor * v.read_fp32(cosines + 4 * i), factor * v.read_fp32(sines + 4 * i)
        first, second = e.one(dtype, x, start + i), e.one(dtype, x, start + half + i)
        e.put(to_dtype, to, to_start + i, first * cosine - second * sine)
        e.put(to_dtype, to, to_start + half + i, second * cosine + first * sine)
        i += 1


@inline
def _scores(dtype, q, keys, start, first, end, width, scores):
    """Products of q (H,) with the keys of the slots; returns the largest."""
    most = -3.4e38
    for slot in range(first, end):
        a = v.zero_fp32()
        for i in range(0, width, 16):
            a = v.fma(e.wide(dtype, keys, start + slot * width + i), v.load(q + 4 * i), a)
        score = v.reduce_add(a)
        most = max(most, score)
        v.write_fp32(scores + 4 * slot, score)
    return most


@inline
def _likelihoods(scores, first, end, most):
    """e to the scores less the largest, in place; returns one over their sum."""
    total, slot = 0.0, first
    sums = v.zero_fp32()
    while slot + 16 <= end:
        part = exponential(v.sub(v.load(scores + 4 * slot), v.broadcast(most)))
        sums = v.add(sums, part)
        v.store(scores + 4 * slot, part)
        slot += 16
    while slot < end:
        part = v.extract_first(exponential(v.broadcast(v.read_fp32(scores + 4 * slot) - most)))
        total += part
        v.write_fp32(scores + 4 * slot, part)
        slot += 1
    return 1.0 / (total + v.reduce_add(sums))


@inline
def _mix(dtype, scores, factor, values, start, first, end, width, out):
    """The values of the slots, each by its likelihood."""
    for i in range(0, width, 16):
        a = b = v.zero_fp32()
        for slot in range(first, end - 1, 2):
            a = v.fma(v.broadcast(v.read_fp32(scores + 4 * slot)), e.wide(dtype, values, start + slot * width + i), a)
            b = v.fma(
                v.broadcast(v.read_fp32(scores + 4 * slot + 4)),
                e.wide(dtype, values, start + (slot + 1) * width + i),
                b,
            )
        if (end - first) % 2:
            a = v.fma(
                v.broadcast(v.read_fp32(scores + 4 * (end - 1))),
                e.wide(dtype, values, start + (end - 1) * width + i),
                a,
            )
        v.store(out + 4 * i, v.mul(v.add(a, b), v.broadcast(factor)))


@inline
def _store(dtype, at, chunk, slot):
    """Turn a row's new keys of one head and put them into the cache, the values beside them."""
    sizes = v.read(at + 80)
    tokens, heads, width, capacity = v.read(sizes), v.read(sizes + 8), v.read(sizes + 24), v.read(sizes + 32)
    row, head, half = chunk // heads, chunk % heads, width // 2
    for token in range(row * tokens, (row + 1) * tokens):
        new, to = (token * heads + head) * width, (chunk * capacity + slot) * width
        angles = (half, v.read(at + 24) + 4 * half * token, v.read(at + 32) + 4 * half * token)
        turn(e.FP32, v.read(at + 8), new, angles, 1.0, dtype, v.read(at + 40), to)
        for i in range(0, width, 16):
            e.put_wide(dtype, v.read(at + 48), to + i, v.load(v.read(at + 16) + 4 * (new + i)))
        slot += 1


@inline
def _attend(dtype, at, chunk):
    slots, sizes, out = v.read(at + 56), v.read(at + 80), v.read(at + 64)
    tokens, heads, group, width = v.read(sizes), v.read(sizes + 8), v.read(sizes + 16), v.read(sizes + 24)
    capacity, window, scale = v.read(sizes + 32), v.read(sizes + 40), v.read_fp32(sizes + 48)
    row, half, slot = chunk // heads, width // 2, v.read(slots)
    keys, values, start = v.read(at + 40), v.read(at + 48), chunk * capacity * width
    _store(dtype, at, chunk, slot)
    for token in range(row * tokens, (row + 1) * tokens):
        angles = (half, v.read(at + 24) + 4 * half * token, v.read(at + 32) + 4 * half * token)
        first = min(slot, max(v.read(slots + 8 + 8 * row), slot - window + 1))  # padding sees itself, and stays finite
        for one in range(chunk % heads * group, (chunk % heads + 1) * group):
            place = (token * heads * group + one) * width
            mine = out + 4 * place  # it holds q until its values are mixed
            scores = v.read(at + 72) + 4 * (row * heads * group + one) * capacity
            turn(e.FP32, v.read(at), place, angles, scale, e.FP32, out, place)
            most = _scores(dtype, mine, keys, start, first, slot + 1, width, scores)
            factor = _likelihoods(scores, first, slot + 1, most)
            _mix(dtype, scores, factor, values, start, first, slot + 1, width, mine)
        slot += 1


@kernel
def attend_fp32(at: int, chunk: int) -> None:
    """A cache in fp32."""
    _attend(e.FP32, at, chunk)


@kernel
def attend_bf16(at: int, chunk: int) -> None:
    """A cache in bf16."""
    _attend(e.BF16, at, chunk)


@kernel
def attend_fp16(at: int, chunk: int) -> None:
    """A cache in fp16."""
    _attend(e.FP16, at, chunk)
