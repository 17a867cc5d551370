"""Eight accumulators at a time: enough independent sums to hide the latency of multiply-adds."""

from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.runtime.program import inline

Four = tuple[v.Vector, v.Vector, v.Vector, v.Vector]
Eight = tuple[v.Vector, v.Vector, v.Vector, v.Vector, v.Vector, v.Vector, v.Vector, v.Vector]


@inline
def no_eight() -> Eight:
    """Eight vectors of 0."""
    zero = v.zero_fp32()
    return zero, zero, zero, zero, zero, zero, zero, zero


@inline
def load_eight(at: int) -> Eight:
    """Load eight vectors, one after the other."""
    return (
        v.load(at), v.load(at + 64), v.load(at + 128), v.load(at + 192),
        v.load(at + 256), v.load(at + 320), v.load(at + 384), v.load(at + 448),
    )  # fmt: skip


@inline
def scaled_eight(at: int, factor: v.Vector) -> Eight:
    """Eight vectors, times a factor."""
    a, b, c, d, e, f, g, h = load_eight(at)
    return (
        v.mul(a, factor), v.mul(b, factor), v.mul(c, factor), v.mul(d, factor),
        v.mul(e, factor), v.mul(f, factor), v.mul(g, factor), v.mul(h, factor),
    )  # fmt: skip


@inline
def store_eight(at: int, eight: Eight) -> None:
    """Write eight vectors."""
    for vector in eight:
        v.store(at, vector)
        at += 64


@inline
def load_eight_apart(at: int, step: int) -> Eight:
    """Load eight vectors, `step` bytes apart."""
    return (
        v.load(at), v.load(at + step), v.load(at + 2 * step), v.load(at + 3 * step),
        v.load(at + 4 * step), v.load(at + 5 * step), v.load(at + 6 * step), v.load(at + 7 * step),
    )  # fmt: skip


@inline
def store_eight_apart(at: int, step: int, eight: Eight) -> None:
    """Write eight vectors, `step` bytes apart."""
    for vector in eight:
        v.store(at, vector)
        at += step


@inline
def add_columns(sums: Eight, x: v.Vector, at: int, step: int) -> Eight:
    """Add x times the fp32 at eight places `step` bytes apart, each in all lanes."""
    a, b, c, d, e, f, g, h = sums
    return (
        v.fma(v.broadcast(v.read_fp32(at)), x, a), v.fma(v.broadcast(v.read_fp32(at + step)), x, b),
        v.fma(v.broadcast(v.read_fp32(at + 2 * step)), x, c), v.fma(v.broadcast(v.read_fp32(at + 3 * step)), x, d),
        v.fma(v.broadcast(v.read_fp32(at + 4 * step)), x, e), v.fma(v.broadcast(v.read_fp32(at + 5 * step)), x, f),
        v.fma(v.broadcast(v.read_fp32(at + 6 * step)), x, g), v.fma(v.broadcast(v.read_fp32(at + 7 * step)), x, h),
    )  # fmt: skip


@inline
def add_products(sums: Eight, pairs: v.Vector, at: int, step: int) -> Eight:
    """Add products of pairs of bf16: a vector times eight pairs, `step` bytes apart, each broadcast to all lanes."""
    a, b, c, d, e, f, g, h = sums
    return (
        v.dot_bf16(a, pairs, v.broadcast_word(at)), v.dot_bf16(b, pairs, v.broadcast_word(at + step)),
        v.dot_bf16(c, pairs, v.broadcast_word(at + 2 * step)), v.dot_bf16(d, pairs, v.broadcast_word(at + 3 * step)),
        v.dot_bf16(e, pairs, v.broadcast_word(at + 4 * step)), v.dot_bf16(f, pairs, v.broadcast_word(at + 5 * step)),
        v.dot_bf16(g, pairs, v.broadcast_word(at + 6 * step)), v.dot_bf16(h, pairs, v.broadcast_word(at + 7 * step)),
    )  # fmt: skip


@inline
def _no_four() -> Four:
    zero = v.zero_fp32()
    return zero, zero, zero, zero


@inline
def _scaled_four(at: int, factor: v.Vector) -> Four:
    return (
        v.mul(v.load(at), factor), v.mul(v.load(at + 64), factor),
        v.mul(v.load(at + 128), factor), v.mul(v.load(at + 192), factor),
    )  # fmt: skip


@inline
def _add_columns_of_four(sums: Four, x: v.Vector, at: int, step: int) -> Four:
    a, b, c, d = sums
    return (
        v.fma(v.broadcast(v.read_fp32(at)), x, a), v.fma(v.broadcast(v.read_fp32(at + step)), x, b),
        v.fma(v.broadcast(v.read_fp32(at + 2 * step)), x, c), v.fma(v.broadcast(v.read_fp32(at + 3 * step)), x, d),
    )  # fmt: skip


# By how many sums registers hold: no sums, load and scale them, add columns to them, write them.
EIGHT = no_eight, scaled_eight, add_columns, store_eight
FOUR = _no_four, _scaled_four, _add_columns_of_four, store_eight
