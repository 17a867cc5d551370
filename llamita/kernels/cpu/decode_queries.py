"""The queries of a chunk of decode attention: how they begin, and how their results are written."""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Attend, Row, Sizes, offsets
from llamita.kernels.cpu.elementwise import put_rounded
from llamita.kernels.cpu.interleaved import first_columns, last_columns
from llamita.kernels.cpu.online_softmax import begin_softmax, inverse_of
from llamita.kernels.cpu.rotary import rotate
from llamita.kernels.cpu.runtime.program import inline

AT, SIZE, ROW = offsets(Attend), offsets(Sizes), offsets(Row)
QUERIES = 16  # of a chunk that are worked on at once
# Where they lie in the kernel's own memory, in bytes; columns are at most 256.
SCORES, OUT, Q, STATE = 1 << 16, 69632, 86016, 102400


@inline
def begin_queries(
    dtype: int, is_paired: bool, at: int, row: int, head: int, begin: int, count: int, scratch: int, own: int
) -> None:
    """Rotate, scale and round the queries as the cache is rounded, and begin their softmax.

    own: the first of their numbers in the kernel's memory.
    """
    sizes = v.read(at + AT.sizes)
    heads, group = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group)
    width, scale = v.read(sizes + SIZE.width), v.read_fp32(sizes + SIZE.scale)
    for i in range(count):
        number = v.read(row + ROW.offset) + (begin + i) // group
        x = v.read(at + AT.q) + 4 * width * ((number * heads + head) * group + (begin + i) % group)
        cosines, sines = v.read(at + AT.cosines) + 2 * width * number, v.read(at + AT.sines) + 2 * width * number
        to, out, state = (
            scratch + Q + 1024 * (own + i),
            scratch + OUT + 1024 * (own + i),
            scratch + STATE + 16 * (own + i),
        )
        if is_paired:
            rotate(x, cosines, sines, width // 2, scale, e.BF16, to, 0)
        else:
            rotate(x, cosines, sines, width // 2, scale, e.FP32, to, 0)
            if dtype == e.BF16:
                for column in range(0, width, 16):
                    v.store(to + 4 * column, v.round_bf16(v.load(to + 4 * column)))
        v.zero_memory(out, -(-width // 32) * 2)
        begin_softmax(state)


@inline
def end_queries(is_paired: bool, at: int, row: int, head: int, begin: int, count: int, scratch: int, own: int) -> None:
    """Write the results of a head's queries."""
    sizes = v.read(at + AT.sizes)
    heads, group, width = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group), v.read(sizes + SIZE.width)
    for i in range(count):
        number = v.read(row + ROW.offset) + (begin + i) // group
        to = v.read(at + AT.out) + 4 * width * ((number * heads + head) * group + (begin + i) % group)
        inverse = inverse_of(v.broadcast(v.read_fp32(scratch + STATE + 16 * (own + i) + 4)))
        _put(is_paired, scratch + OUT + 1024 * (own + i), inverse, width, to)


@inline
def _put(is_paired, sums, inverse, width, to):
    """Write sums (H,) times the inverse of their softmax's sum."""
    for i in range(0, width, 32 if is_paired else 16):
        x = v.load(sums + 4 * i)
        if is_paired:
            y = v.load(sums + 4 * i + 64)
            v.store(to + 4 * i, v.mul(first_columns(x, y), inverse))
            if i + 32 <= width:
                v.store(to + 4 * i + 64, v.mul(last_columns(x, y), inverse))
        else:
            v.store(to + 4 * i, v.mul(x, inverse))


@inline
def round_heads(at: int, row: int, head: int, heads: int) -> None:
    """Write the results of some heads, which lie together, again, rounded."""
    sizes = v.read(at + AT.sizes)
    all_heads, each = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group) * v.read(sizes + SIZE.width)
    halves, q8_blocks = v.read(at + AT.halves), v.read(at + AT.q8_blocks)
    for token in range(v.read(row + ROW.tokens)):
        start = ((v.read(row + ROW.offset) + token) * all_heads + head) * each
        put_rounded(v.read(at + AT.out) + 4 * start, start, heads * each, halves, q8_blocks)
