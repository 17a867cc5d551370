"""Sums of products of a plain matrix with some rows of x that are multiplied together, in registers (AVX-512).

Must equal reference.product bit for bit. Sums of one row of x are joined to those of more.
"""

from typing import NamedTuple

from llamita.kernels.cpu import gemm_tiles as tiles
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.gemm_tiles import Four
from llamita.kernels.cpu.runtime.program import Inline, inline

ROW = 256  # bytes of a row's sums in memory: of four rows of the matrix

Two = tuple[Four, Four]  # of two rows of x


class Sums(NamedTuple):
    """The sums of some rows of x.

    begin() makes them, add(add, load, w, x, step, sums) adds products of w with as many columns of each row, `step`
    bytes apart, load(at) and store(at, sums) take them from memory and write them, ROW bytes a row of x.
    """

    rows: int
    begin: Inline
    add: Inline
    load: Inline
    store: Inline


@inline
def _add_vector(add, load, w, x, step, sums):
    return add(sums, w, load(x))


@inline
def _add_four(add, load, w, x, step, sums):
    return tiles.add_four(add, sums, w, load(x))


def _joined(first: Sums, second: Sums) -> Sums:
    """The sums of more rows of x: those of `second` come after those of `first`."""
    count = first.rows
    begin_one, add_one, load_one, store_one = first[1:]
    begin_other, add_other, load_other, store_other = second[1:]

    @inline
    def begin():
        return begin_one(), begin_other()

    @inline
    def add(add, load, w, x, step, sums):
        return (
            add_one(add, load, w, x, step, sums[0]),
            add_other(add, load, w, x + count * step, step, sums[1]),
        )

    @inline
    def load(at):
        return load_one(at), load_other(at + count * ROW)

    @inline
    def store(at, sums):
        store_one(at, sums[0])
        store_other(at + count * ROW, sums[1])

    return Sums(count + second.rows, begin, add, load, store)


def _of_rows(one: Sums) -> tuple[Sums, ...]:
    """The sums of one to six rows of x."""
    two = _joined(one, one)
    four = _joined(two, two)
    return one, two, _joined(two, one), four, _joined(four, one), _joined(four, two)


# Of one row of the matrix, and of four, with one to six rows of x.
VECTORS = _of_rows(Sums(1, v.zero_fp32, _add_vector, v.load, v.store))
FOURS = _of_rows(Sums(1, tiles.zeros, _add_four, tiles.load_four, tiles.store_four))


# Add up the lanes of four sums for each row of x, and write them. While lanes are added, sums of other rows take the
# places that become free: that takes half the shuffles, on ports that products need, of one row after the other.


@inline
def _put_1(sums: Four, out: int, step: int, bias: int, left: int, adds: int) -> None:
    tiles.put_four(sums, out, bias, left, adds)


@inline
def _put_2(sums: Two, out: int, step: int, bias: int, left: int, adds: int) -> None:
    a, b = sums
    early = v.merge_4(v.merge_8(a[0], b[0]), v.merge_8(a[2], b[2]))
    late = v.merge_4(v.merge_8(a[1], b[1]), v.merge_8(a[3], b[3]))
    both = v.merge_2(early, late)
    both = v.merge_1(both, both)
    tiles.put_quad(v.first_evens(both), out, bias, left, adds)
    tiles.put_quad(v.last_evens(both), out + step, bias, left, adds)


@inline
def _merge_4(a: v.Vector, b: v.Vector, c: v.Vector, d: v.Vector) -> v.Vector:
    return v.merge_4(v.merge_8(a, c), v.merge_8(b, d))


@inline
def _put_4(sums: tuple[Two, Two], out: int, step: int, bias: int, left: int, adds: int) -> None:
    (a, b), (c, d) = sums
    even = v.merge_2(_merge_4(a[0], b[0], c[0], d[0]), _merge_4(a[2], b[2], c[2], d[2]))
    odd = v.merge_2(_merge_4(a[1], b[1], c[1], d[1]), _merge_4(a[3], b[3], c[3], d[3]))
    four = v.merge_1(even, odd)
    tiles.put_quad(v.first_quad(four), out, bias, left, adds)
    tiles.put_quad(v.second_quad(four), out + step, bias, left, adds)
    tiles.put_quad(v.third_quad(four), out + 2 * step, bias, left, adds)
    tiles.put_quad(v.fourth_quad(four), out + 3 * step, bias, left, adds)


def _put_both(count: int, first: Inline, second: Inline) -> Inline:
    @inline
    def put(sums, out: int, step: int, bias: int, left: int, adds: int) -> None:
        first(sums[0], out, step, bias, left, adds)
        second(sums[1], out + count * step, step, bias, left, adds)

    return put


# put(sums, out, step, bias, left, adds) of one to six rows of x, which are `step` bytes apart in the result.
PUT = (_put_1, _put_2, _put_both(2, _put_2, _put_1), _put_4, _put_both(4, _put_4, _put_1), _put_both(4, _put_4, _put_2))
