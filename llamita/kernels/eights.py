"""Eight vectors at a time: as many sums as the machine's products need on their way."""

from llamita.kernels import simd as v
from llamita.kernels.program import part

Eight = tuple[v.Vector, v.Vector, v.Vector, v.Vector, v.Vector, v.Vector, v.Vector, v.Vector]


@part
def no_eight() -> Eight:
    """Eight times nothing."""
    zero = v.no_floats()
    return zero, zero, zero, zero, zero, zero, zero, zero


@part
def load_eight(at: int) -> Eight:
    """Eight vectors, one behind the other."""
    return (
        v.load(at), v.load(at + 64), v.load(at + 128), v.load(at + 192),
        v.load(at + 256), v.load(at + 320), v.load(at + 384), v.load(at + 448),
    )  # fmt: skip


@part
def scaled_eight(at: int, factor: v.Vector) -> Eight:
    """Eight vectors, times a factor."""
    a, b, c, d, e, f, g, h = load_eight(at)
    return (
        v.times(a, factor), v.times(b, factor), v.times(c, factor), v.times(d, factor),
        v.times(e, factor), v.times(f, factor), v.times(g, factor), v.times(h, factor),
    )  # fmt: skip


@part
def store_eight(at: int, eight: Eight) -> None:
    """Write eight vectors."""
    for vector in eight:
        v.store(at, vector)
        at += 64


@part
def add_products(sums: Eight, pairs: v.Vector, at: int, step: int) -> Eight:
    """Add the products of pairs of bf16 with eight others, `step` bytes apart, each in all lanes."""
    a, b, c, d, e, f, g, h = sums
    return (
        v.dot2(a, pairs, v.load_everywhere(at)), v.dot2(b, pairs, v.load_everywhere(at + step)),
        v.dot2(c, pairs, v.load_everywhere(at + 2 * step)), v.dot2(d, pairs, v.load_everywhere(at + 3 * step)),
        v.dot2(e, pairs, v.load_everywhere(at + 4 * step)), v.dot2(f, pairs, v.load_everywhere(at + 5 * step)),
        v.dot2(g, pairs, v.load_everywhere(at + 6 * step)), v.dot2(h, pairs, v.load_everywhere(at + 7 * step)),
    )  # fmt: skip
