"""The softmax of decode attention, block after block of keys (arXiv:1805.02867): a lane is a key."""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.functions import exponential
from llamita.kernels.cpu.runtime.program import inline

NEVER = -1e30  # less than any score
Scores = tuple[v.Vector, v.Vector, v.Vector, v.Vector]  # of one query, with 64 keys


@inline
def begin_softmax(state: int) -> None:
    """Begin the state of a query."""
    v.write_fp32(state, v.extract_first(v.broadcast(NEVER)))
    v.write_fp32(state + 4, v.extract_first(v.zero_fp32()))


@inline
def softmax_step(
    dtype: int, is_paired: bool, scores: Scores, first: int, low: int, high: int, to: int, state: int
) -> None:
    """A step of the online softmax: a query's factors for a block of values, of which it sees tokens `low` to `high`.

    state: its largest score, the sum of its factors, and what its sums so far are to be multiplied by.
    """
    a, b, c, d = scores
    never = v.broadcast(NEVER)
    a, b = _hide(a, first, low, high, never), _hide(b, first + 16, low, high, never)
    c, d = _hide(c, first + 32, low, high, never), _hide(d, first + 48, low, high, never)
    before = v.broadcast(v.read_fp32(state))
    largest = v.max(before, v.broadcast(v.reduce_max(v.max(v.max(a, b), v.max(c, d)))))
    rescale = exponential(v.sub(before, largest))
    a = _exponentials(dtype, is_paired, a, largest, first, low, high, to, 0)
    b = _exponentials(dtype, is_paired, b, largest, first + 16, low, high, to, 16)
    c = _exponentials(dtype, is_paired, c, largest, first + 32, low, high, to, 32)
    d = _exponentials(dtype, is_paired, d, largest, first + 48, low, high, to, 48)
    added = v.broadcast(v.reduce_add(v.add(v.add(v.add(a, b), c), d)))
    v.write_fp32(state, v.extract_first(largest))
    v.write_fp32(state + 4, v.extract_first(v.fma(v.broadcast(v.read_fp32(state + 4)), rescale, added)))
    v.write_fp32(state + 8, v.extract_first(rescale))


@inline
def _exponentials(dtype, is_paired, x, largest, first, low, high, to, i):
    """exp(score - largest), written as factors of values; returns them as they are before they are rounded for that."""
    x = _hide(exponential(v.sub(x, largest)), first, low, high, v.zero_fp32())
    if is_paired:
        v.store_bf16(to + 2 * i, x)
    elif dtype == e.BF16:
        v.store(to + 4 * i, v.round_bf16(x))
    else:
        v.store(to + 4 * i, x)
    return x


@inline
def _hide(x: v.Vector, first: int, low: int, high: int, hidden: v.Vector) -> v.Vector:
    """x with the lanes before token `low` and after `high` replaced; lane 0 is token `first`."""
    x = v.blend_from(x, low - first, hidden)
    return v.blend_from(hidden, high + 1 - first, x)


@inline
def inverse_of(total: v.Vector) -> v.Vector:
    """One over sums; 0 for the sum of a query that sees nothing, which is padding."""
    return v.div(v.min(total, v.broadcast(1.0)), v.max(total, v.broadcast(1.0)))  # of any other the largest term is 1
