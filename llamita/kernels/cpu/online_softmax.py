"""The softmax of decode attention, block after block of keys (arXiv:1805.02867): a lane is a key."""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.constants import KEYS
from llamita.kernels.cpu.functions import exponential
from llamita.kernels.cpu.runtime.program import inline

NEVER = -1e30  # less than any score
Four = tuple[v.Vector, v.Vector, v.Vector, v.Vector]  # of one query and 64 keys


@inline
def begin_softmax(state: int) -> None:
    """Begin the state of a query."""
    v.write_fp32(state, v.extract_first(v.broadcast(NEVER)))
    v.write_fp32(state + 4, v.extract_first(v.zero_fp32()))


@inline
def softmax_step(
    dtype: int, is_paired: bool, scores: Four, first: int, low: int, high: int, to: int, state: int
) -> None:
    """A step of the online softmax: a query's factors for a block of values, of which it sees tokens `low` to `high`.

    state: its largest score, the sum of its factors, and what its sums so far are to be multiplied by.
    """
    a, b, c, d = scores
    is_cut = first < low or high < first + KEYS - 1
    if is_cut:
        a, b, c, d = _hide((a, b, c, d), low - first, high + 1 - first, v.broadcast(NEVER))
    before = v.broadcast(v.read_fp32(state))
    largest = v.max(before, v.broadcast(v.reduce_max(v.max(v.max(a, b), v.max(c, d)))))
    rescale = exponential(v.sub(before, largest))
    a, b = exponential(v.sub(a, largest)), exponential(v.sub(b, largest))
    c, d = exponential(v.sub(c, largest)), exponential(v.sub(d, largest))
    if is_cut:
        a, b, c, d = _hide((a, b, c, d), low - first, high + 1 - first, v.zero_fp32())
    _put_factors(dtype, is_paired, (a, b, c, d), to)
    added = v.broadcast(v.reduce_add(v.add(v.add(v.add(a, b), c), d)))
    v.write_fp32(state, v.extract_first(largest))
    v.write_fp32(state + 4, v.extract_first(v.fma(v.broadcast(v.read_fp32(state + 4)), rescale, added)))
    v.write_fp32(state + 8, v.extract_first(rescale))


@inline
def _put_factors(dtype, is_paired, factors, to):
    """Write the factors as they are multiplied with values."""
    a, b, c, d = factors
    if is_paired:
        v.store_bf16(to, a)
        v.store_bf16(to + 32, b)
        v.store_bf16(to + 64, c)
        v.store_bf16(to + 96, d)
        return
    if dtype == e.BF16:
        a, b, c, d = v.round_bf16(a), v.round_bf16(b), v.round_bf16(c), v.round_bf16(d)
    v.store(to, a)
    v.store(to + 64, b)
    v.store(to + 128, c)
    v.store(to + 192, d)


@inline
def _hide(four: Four, start: int, end: int, hidden: v.Vector) -> Four:
    """The 64 lanes of four vectors, those before `start` and from `end` on replaced."""
    a, b, c, d = four
    a, b = v.blend_from(a, start, hidden), v.blend_from(b, start - 16, hidden)
    c, d = v.blend_from(c, start - 32, hidden), v.blend_from(d, start - 48, hidden)
    a, b = v.blend_from(hidden, end, a), v.blend_from(hidden, end - 16, b)
    return a, b, v.blend_from(hidden, end - 32, c), v.blend_from(hidden, end - 48, d)


@inline
def inverse_of(total: v.Vector) -> v.Vector:
    """One over sums; 0 for the sum of a query that sees nothing, which is padding."""
    return v.div(v.min(total, v.broadcast(1.0)), v.max(total, v.broadcast(1.0)))  # of any other the largest term is 1
