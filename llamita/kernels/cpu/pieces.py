"""Split vectors of 64 bytes into pieces of a register's size, for instructions of one machine."""

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir

Builder = Any
Value = Any

BYTES = 64
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def call_intrinsic(b: Builder, name: str, returns: ir.Type, *values: Value) -> Value:
    """Call an LLVM intrinsic."""
    kind = ir.FunctionType(returns, [value.type for value in values])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    return b.call(function, values)


def by_pieces(b: Builder, size: int, operate: Callable[..., Value], *vectors: Value) -> Value:
    """A vector of the first one's type: of each `size` bytes what `operate(builder, *pieces)` makes of them."""
    split = [_split(b, vector, size) for vector in vectors]
    pieces = [operate(b, *several) for several in zip(*split, strict=True)]
    pieces = [b.bitcast(piece, ir.VectorType(I8, size)) for piece in pieces]
    while len(pieces) > 1:
        both = places(range(2 * BYTES // len(pieces)))
        pieces = [b.shuffle_vector(x, y, both) for x, y in zip(pieces[::2], pieces[1::2], strict=True)]
    return b.bitcast(pieces[0], vectors[0].type)


def _split(b: Builder, vector: Value, size: int) -> list[Value]:
    vector = b.bitcast(vector, ir.VectorType(I8, BYTES))
    starts = range(0, BYTES, size) if size < BYTES else ()
    return [b.shuffle_vector(vector, vector, places(range(i, i + size))) for i in starts] or [vector]


def places(numbers: Iterable[int]) -> Value:
    """What `shuffle_vector` takes these lanes by."""
    numbers = list(numbers)
    return ir.Constant(ir.VectorType(I32, len(numbers)), numbers)


def filled(kind: ir.VectorType, number: int) -> Value:
    """A number in every lane."""
    return ir.Constant(kind, [number] * kind.count)
