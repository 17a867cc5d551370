"""Two rows of bf16 as words of pairs, one number of each row in a word, for sums that take rows in pairs.

The instructions that interleave work inside of sixteen bytes, so the words of 32 columns come in an order of their own:
`low_pairs` has columns 0 to 3, 8 to 11 and so on, `high_pairs` the others. Sums over them are put in order once, by
`first_columns` and `last_columns`. `first_pairs` and `last_pairs` keep the order of columns, by a slower instruction.
"""

from llvmlite import ir

from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.pieces import I16, I32, Builder, Value, places

_HALVES, _WORDS, _FLOATS = ir.VectorType(I16, 32), ir.VectorType(I32, 16), ir.VectorType(ir.FloatType(), 16)
_PARTS = range(4)  # of sixteen bytes in a vector


def _interleaved(b: Builder, x: Value, y: Value, start: int) -> Value:
    """Of each sixteen bytes the four numbers from `start` on, those of x below those of y."""
    x, y = b.bitcast(x, _HALVES), b.bitcast(y, _HALVES)
    lanes = [8 * part + start + i + row for part in _PARTS for i in range(4) for row in (0, 32)]
    return b.bitcast(b.shuffle_vector(x, y, places(lanes)), _WORDS)


def _columns(b: Builder, low: Value, high: Value, start: int) -> Value:
    """Sixteen columns in their order, from two parts of sixteen bytes on of sums of both kinds."""
    lanes = [4 * part + i + kind for part in (start, start + 1) for kind in (0, 16) for i in range(4)]
    return b.shuffle_vector(low, high, places(lanes))


def _load_half(b: Builder, at: Value) -> Value:
    half = ir.VectorType(I32, 8)
    value = b.load(v.pointer(b, at, half), align=1)
    return b.shuffle_vector(value, ir.Constant(half, [0] * 8), places(range(16)))


def _zipped(b: Builder, x: Value, y: Value, start: int) -> Value:
    """Sixteen numbers from `start` on in their order, those of x below those of y."""
    x, y = b.bitcast(x, _HALVES), b.bitcast(y, _HALVES)
    return b.bitcast(b.shuffle_vector(x, y, places(start + i + row for i in range(16) for row in (0, 32))), _WORDS)


first_pairs = v.operation(v.Words(v.Words, v.Words), lambda b, x, y: _zipped(b, x, y, 0))
last_pairs = v.operation(v.Words(v.Words, v.Words), lambda b, x, y: _zipped(b, x, y, 16))
low_pairs = v.operation(v.Words(v.Words, v.Words), lambda b, x, y: _interleaved(b, x, y, 0))
high_pairs = v.operation(v.Words(v.Words, v.Words), lambda b, x, y: _interleaved(b, x, y, 4))
first_columns = v.operation(v.Floats(v.Floats, v.Floats), lambda b, low, high: _columns(b, low, high, 0))
last_columns = v.operation(v.Floats(v.Floats, v.Floats), lambda b, low, high: _columns(b, low, high, 2))
load_half = v.operation(v.Words(v.i64), _load_half)  # 32 bytes, then 0
