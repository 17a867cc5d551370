"""Vectors of sixteen lanes for Numba, and the vector operations that kernels are written with.

Kernels work on addresses (int64), not on arrays, so each has one signature for all arguments. The vectors are LLVM's: a
machine with shorter registers uses several for each. `isa` names the version of operations that depend on the machine.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

from llamita.kernels.cpu import dot_bytes
from llamita.kernels.cpu.compile_target import instructions, target
from llamita.kernels.cpu.half_precision import (
    joined_bf16,
    narrow_bf16,
    narrow_fp16,
    paired_bf16,
    widened_bf16,
    widened_fp16,
)
from llamita.kernels.cpu.pieces import Builder, Value, call_intrinsic
from llamita.kernels.cpu.transposition import transposed

__all__ = ["call_intrinsic", "instructions", "target"]  # what those who import this ask it for, besides its own
LANES = 16
STACK = 3 << 16  # bytes that a kernel may work in
_F32 = ir.FloatType()
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOATS, _WORDS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)

Vector = Any  # what kernels call sixteen lanes


class Lanes(types.Type):
    """A Numba type that is one LLVM vector."""

    def __init__(self, name: str, vector: ir.VectorType) -> None:
        self.vector = vector
        super().__init__(name=name)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, fe_type.vector)


Floats = Lanes("floats", _FLOATS)  # sixteen fp32
Words = Lanes("words", _WORDS)  # sixteen int32, or sixty-four bytes
Quads = Lanes("quads", ir.VectorType(_F32, 4))  # four fp32
i64, f32, void = types.int64, types.float32, types.void


def operation(signature: Any, emit: Callable[..., Value]) -> Any:
    """The Numba function of this signature whose code `emit(builder, *arguments)` writes."""

    def code(context: Any, builder: Builder, signature: Any, arguments: Any) -> Value:
        value = emit(builder, *arguments)
        return context.get_dummy_value() if signature.return_type is void else value

    # Numba counts the parameters of the function it is given.
    typings: list[Callable[..., Any]] = [
        lambda context: (signature, code),
        lambda context, a: (signature, code),
        lambda context, a, b: (signature, code),
        lambda context, a, b, c: (signature, code),
        lambda context, a, b, c, d: (signature, code),
    ]
    return intrinsic(typings[len(signature.args)])


def pointer(b: Builder, address: Value, kind: ir.Type) -> Value:
    """An address as LLVM's pointer."""
    # An address is a sum of integers, and LLVM takes any of them for the pointer: Numba compiles every part by itself
    # and gives its callers what came of that, `inttoptr(a)[b]`. Where a is 0 then, LLVM takes it for an access through
    # null, which cannot be, and removes the way that leads there. This says that it can be; who inlines it says so too.
    set.add(b.function.attributes, "null_pointer_is_valid")  # past llvmlite's list of the attributes it knows
    return b.inttoptr(address, kind.as_pointer())


def _read(b: Builder, address: Value, kind: ir.Type, align: int = 1) -> Value:
    return b.load(pointer(b, address, kind), align=align)


def _write(b: Builder, address: Value, value: Value, align: int = 1) -> None:
    b.store(value, pointer(b, address, value.type), align=align)


def _spread(b: Builder, value: Value) -> Value:
    """One value in every lane."""
    vector = ir.VectorType(value.type, LANES)
    first = b.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    return b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(_WORDS, [0] * LANES))


def _reduce_add(b: Builder, x: Value) -> Value:
    """The sum of the lanes as a tree: the upper half onto the lower, again and again. This order is the definition."""
    for size in (8, 4, 2, 1):
        low, high = ([start + i for i in range(size)] for start in (0, size))
        x = b.fadd(_shuffled(b, x, x, low), _shuffled(b, x, x, high))
    return b.extract_element(x, _I32(0))


def _reduce_max(b: Builder, x: Value) -> Value:
    """The largest lane, as a tree: LLVM's own goes through the lanes one after the other, for the sake of NaN."""
    for size in (8, 4, 2):
        kind, (low, high) = ir.VectorType(_F32, size), ([start + i for i in range(size)] for start in (0, size))
        halves = _shuffled(b, x, x, low), _shuffled(b, x, x, high)
        x = call_intrinsic(b, f"llvm.maxnum.v{size}f32", kind, *halves)
    return call_intrinsic(b, "llvm.maxnum.f32", _F32, b.extract_element(x, _I32(0)), b.extract_element(x, _I32(1)))


def _shuffled(b: Builder, x: Value, y: Value, lanes: list[int]) -> Value:
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _reduce_add_4(b: Builder, x: Value, y: Value, z: Value, w: Value) -> Value:
    """The sums of four vectors, each in the order of `_reduce_add`, side by side."""
    early, late = [*range(8), *range(16, 24)], [*range(8, 16), *range(24, 32)]
    xy = b.fadd(_shuffled(b, x, y, early), _shuffled(b, x, y, late))
    zw = b.fadd(_shuffled(b, z, w, early), _shuffled(b, z, w, late))
    early = [start + i for start in (0, 8, 16, 24) for i in range(4)]
    quarters = b.fadd(_shuffled(b, xy, zw, early), _shuffled(b, xy, zw, [lane + 4 for lane in early]))
    early = [start + i for start in (0, 4, 8, 12) for i in range(2)]
    pairs = b.fadd(_shuffled(b, quarters, quarters, early), _shuffled(b, quarters, quarters, [i + 2 for i in early]))
    return b.fadd(_shuffled(b, pairs, pairs, [0, 2, 4, 6]), _shuffled(b, pairs, pairs, [1, 3, 5, 7]))


def _merge(b: Builder, x: Value, y: Value, size: int) -> Value:
    """A step of `_reduce_add` for two vectors at once: sums of x are in lanes without the bit `size`, y's with it."""
    is_first = [not lane & size for lane in range(LANES)]
    stay = [lane if first else LANES + lane for lane, first in enumerate(is_first)]
    move = [lane ^ size if first else LANES + (lane ^ size) for lane, first in enumerate(is_first)]
    return b.fadd(_shuffled(b, x, y, stay), _shuffled(b, x, y, move))


def _some(b: Builder, count: Value) -> Value:
    """The mask of the first `count` lanes."""
    return b.icmp_signed("<", ir.Constant(_WORDS, list(range(LANES))), _spread(b, b.trunc(count, _I32)))


def _load_some(b: Builder, at: Value, count: Value) -> Value:
    nothing = ir.Constant(_FLOATS, [0.0] * LANES)
    name, address_type = "llvm.masked.load.v16f32.p0", _FLOATS.as_pointer()
    mask = ir.VectorType(ir.IntType(1), LANES)
    kind = ir.FunctionType(_FLOATS, [address_type, _I32, mask, _FLOATS])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    return b.call(function, (pointer(b, at, _FLOATS), _I32(4), _some(b, count), nothing))


def _store_some(b: Builder, at: Value, value: Value, count: Value) -> None:
    name, address_type = "llvm.masked.store.v16f32.p0", _FLOATS.as_pointer()
    mask = ir.VectorType(ir.IntType(1), LANES)
    kind = ir.FunctionType(ir.VoidType(), [_FLOATS, address_type, _I32, mask])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    b.call(function, (value, pointer(b, at, _FLOATS), _I32(4), _some(b, count)))


def _scaled(b: Builder, value: Value, power: Value) -> Value:
    half = b.ashr(power, ir.Constant(_WORDS, [1] * LANES))
    for part in (half, b.sub(power, half)):
        exponent = b.add(part, ir.Constant(_WORDS, [127] * LANES))
        value = b.fmul(value, b.bitcast(b.shl(exponent, ir.Constant(_WORDS, [23] * LANES)), _FLOATS))
    return value


def _lanes_from(b: Builder, start: Value) -> Value:
    return b.icmp_signed(">=", ir.Constant(_WORDS, list(range(LANES))), _spread(b, b.trunc(start, _I32)))


def _on_stack(b: Builder) -> Value:
    room = ir.ArrayType(_FLOATS, STACK // 64)
    with b.goto_entry_block():
        place = b.alloca(room)
    place.align = 64
    return b.ptrtoint(place, _I64)


def _transpose(b: Builder, source: Value, step: Value, target: Value) -> None:
    rows = [_read(b, b.add(source, b.mul(step, _I64(i))), _FLOATS) for i in range(LANES)]
    _write_all(b, target, transposed(b, rows))


def _transpose_rounded(b: Builder, source: Value, step: Value, target: Value) -> None:
    rows = [b.add(source, b.mul(step, _I64(i))) for i in range(LANES)]
    halves = [joined_bf16(b, _read(b, at, _FLOATS), _read(b, b.add(at, _I64(64)), _FLOATS)) for at in rows]
    _write_all(b, target, transposed(b, [b.bitcast(row, _FLOATS) for row in halves]))


def _write_all(b: Builder, at: Value, vectors: list[Value]) -> None:
    for i, vector in enumerate(vectors):
        _write(b, b.add(at, _I64(64 * i)), vector)


def _fetch(b: Builder, address: Value, level: int) -> None:
    name, number = "llvm.prefetch.p0", _I32
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), number, number, number])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    b.call(function, (pointer(b, address, _I8), number(0), number(4 - level), number(1)))


def _dot_u8s8(b: Builder, total: Value, codes: Value, x: Value) -> Value:
    return dot_bytes.DOT_U8S8[instructions().dot_u8s8](b, total, codes, x)


def _dot2(b: Builder, total: Value, x: Value, y: Value) -> Value:
    if instructions().dot_bf16 == "vdpbf16ps.512":
        return call_intrinsic(b, "llvm.x86.avx512bf16.dpbf16ps.512", _FLOATS, total, x, y)
    return _dot2_anywhere(b, total, x, y)


def _dot2_anywhere(b: Builder, total: Value, x: Value, y: Value) -> Value:
    """The same as two fma: the instruction adds the product of the high halves first, and rounds after each."""
    sixteen, high = ir.Constant(_WORDS, [16] * LANES), ir.Constant(_WORDS, [-65536] * LANES)
    for pick in (lambda pair: b.and_(pair, high), lambda pair: b.shl(pair, sixteen)):
        first, second = b.bitcast(pick(x), _FLOATS), b.bitcast(pick(y), _FLOATS)
        total = call_intrinsic(b, "llvm.fma.v16f32", _FLOATS, first, second, total)
    return total


def _pair(b: Builder, low: Value, high: Value) -> Value:
    narrow = ir.VectorType(_I16, LANES)
    low, high = (b.zext(narrow_bf16(b, x, _WORDS, narrow), _WORDS) for x in (low, high))
    return b.or_(low, b.shl(high, ir.Constant(_WORDS, [16] * LANES)))


_dot4_anywhere = dot_bytes.dot_u8s8_in_integers


def _bits(b: Builder, value: Value, shift: Value, mask: Value) -> Value:
    return b.and_(b.lshr(value, _spread(b, b.trunc(shift, _I32))), _spread(b, b.trunc(mask, _I32)))


# Vectors
load = operation(Floats(i64), lambda b, at: _read(b, at, _FLOATS))  # 64 bytes of fp32
load_some = operation(Floats(i64, i64), _load_some)  # the first `count` fp32 at an address, then 0
store_some = operation(void(i64, Floats, i64), _store_some)  # the first `count` lanes
load_quad = operation(Quads(i64), lambda b, at: _read(b, at, ir.VectorType(_F32, 4)))
store_quad = operation(void(i64, Quads), lambda b, at, value: _write(b, at, value))
add_quads = operation(Quads(Quads, Quads), lambda b, x, y: b.fadd(x, y))
extract_quad = operation(f32(Quads, i64), lambda b, x, i: b.extract_element(x, b.trunc(i, _I32)))
load_fp16 = operation(
    Floats(i64), lambda b, at: widened_fp16(b, _read(b, at, ir.VectorType(_I16, LANES)), _WORDS, _FLOATS)
)
load_bf16 = operation(
    Floats(i64), lambda b, at: widened_bf16(b, _read(b, at, ir.VectorType(_I16, LANES)), _WORDS, _FLOATS)
)
load_words = operation(Words(i64), lambda b, at: _read(b, at, _WORDS))  # 64 bytes as they are
load_uint8 = operation(Words(i64), lambda b, at: b.zext(_read(b, at, ir.VectorType(_I8, LANES)), _WORDS))  # 16 uint8
load_int8 = operation(Words(i64), lambda b, at: b.sext(_read(b, at, ir.VectorType(_I8, LANES)), _WORDS))  # 16 int8
broadcast_word = operation(Words(i64), lambda b, at: _spread(b, _read(b, at, _I32)))  # 4 bytes in every lane
store = operation(void(i64, Floats), lambda b, at, value: _write(b, at, value))
store_bf16 = operation(
    void(i64, Floats),
    lambda b, at, value: _write(b, at, narrow_bf16(b, value, _WORDS, ir.VectorType(_I16, LANES))),
)
store_int8 = operation(void(i64, Words), lambda b, at, value: _write(b, at, b.trunc(value, ir.VectorType(_I8, LANES))))
broadcast = operation(Floats(f32), _spread)
zero_fp32 = operation(Floats(), lambda b: ir.Constant(_FLOATS, [0.0] * LANES))
one_words = operation(Words(), lambda b: ir.Constant(_WORDS, [1] * LANES))
zero_words = operation(Words(), lambda b: ir.Constant(_WORDS, [0] * LANES))
add = operation(Floats(Floats, Floats), lambda b, x, y: b.fadd(x, y))
sub = operation(Floats(Floats, Floats), lambda b, x, y: b.fsub(x, y))
mul = operation(Floats(Floats, Floats), lambda b, x, y: b.fmul(x, y))
max = operation(Floats(Floats, Floats), lambda b, x, y: call_intrinsic(b, "llvm.maxnum.v16f32", _FLOATS, x, y))
min = operation(Floats(Floats, Floats), lambda b, x, y: call_intrinsic(b, "llvm.minnum.v16f32", _FLOATS, x, y))
div = operation(Floats(Floats, Floats), lambda b, x, y: b.fdiv(x, y))
scale_by_power_of_two = operation(
    Floats(Floats, Words), _scaled
)  # times two to the power of integers; two steps reach small results
abs = operation(Floats(Floats), lambda b, x: call_intrinsic(b, "llvm.fabs.v16f32", _FLOATS, x))
extract_first = operation(f32(Floats), lambda b, x: b.extract_element(x, _I32(0)))
extract = operation(f32(Floats, i64), lambda b, x, i: b.extract_element(x, b.trunc(i, _I32)))
extract_word = operation(  # four bytes of a lane, as a number without sign
    i64(Words, i64), lambda b, x, i: b.zext(b.extract_element(x, b.trunc(i, _I32)), _I64)
)
fma = operation(  # x * y + z, rounded once
    Floats(Floats, Floats, Floats), lambda b, x, y, z: call_intrinsic(b, "llvm.fma.v16f32", _FLOATS, x, y, z)
)
reduce_add = operation(f32(Floats), _reduce_add)  # the sum of the lanes
reduce_add_4 = operation(Quads(Floats, Floats, Floats, Floats), _reduce_add_4)  # the sums of four vectors
merge_8 = operation(Floats(Floats, Floats), lambda b, x, y: _merge(b, x, y, 8))
merge_4 = operation(Floats(Floats, Floats), lambda b, x, y: _merge(b, x, y, 4))
merge_2 = operation(Floats(Floats, Floats), lambda b, x, y: _merge(b, x, y, 2))
merge_1 = operation(Floats(Floats, Floats), lambda b, x, y: _merge(b, x, y, 1))
first_quad = operation(Quads(Floats), lambda b, x: _shuffled(b, x, x, [0, 1, 2, 3]))  # of sixteen lanes
second_quad = operation(Quads(Floats), lambda b, x: _shuffled(b, x, x, [4, 5, 6, 7]))
third_quad = operation(Quads(Floats), lambda b, x: _shuffled(b, x, x, [8, 9, 10, 11]))
fourth_quad = operation(Quads(Floats), lambda b, x: _shuffled(b, x, x, [12, 13, 14, 15]))
first_evens = operation(Quads(Floats), lambda b, x: _shuffled(b, x, x, [0, 2, 4, 6]))
last_evens = operation(Quads(Floats), lambda b, x: _shuffled(b, x, x, [8, 10, 12, 14]))
reduce_max = operation(f32(Floats), _reduce_max)
reduce_add_words = operation(
    i64(Words), lambda b, x: b.sext(call_intrinsic(b, "llvm.vector.reduce.add.v16i32", _I32, x), _I64)
)
to_fp32 = operation(Floats(Words), lambda b, x: b.sitofp(x, _FLOATS))
round_to_words = operation(  # to the nearest integer, halves to even
    Words(Floats), lambda b, x: b.fptosi(call_intrinsic(b, "llvm.rint.v16f32", _FLOATS, x), _WORDS)
)
extract_bits = operation(Words(Words, i64, i64), _bits)  # (value >> shift) & mask
or_words = operation(Words(Words, Words), lambda b, x, y: b.or_(x, y))
shl = operation(Words(Words, i64), lambda b, x, by: b.shl(x, _spread(b, b.trunc(by, _I32))))
dot_u8s8 = operation(Words(Words, Words, Words), _dot_u8s8)  # total + four products of codes and signed bytes a lane
xor_words = operation(Words(Words, i64), lambda b, x, mask: b.xor(x, _spread(b, b.trunc(mask, _I32))))

blend_from = operation(  # the lanes of x from a number on, before it those of y
    Floats(Floats, i64, Floats), lambda b, x, start, y: b.select(_lanes_from(b, start), x, y)
)
store_fp16 = operation(
    void(i64, Floats),
    lambda b, at, value: _write(b, at, narrow_fp16(b, value, _WORDS, ir.VectorType(_I16, LANES))),
)
dot_bf16 = operation(Floats(Floats, Words, Words), _dot2)  # total + two products of bf16 a lane
low_bf16 = operation(  # of pairs, the numbers in the low halves of the lanes
    Floats(Words), lambda b, x: b.bitcast(b.shl(x, ir.Constant(_WORDS, [16] * LANES)), _FLOATS)
)
high_bf16 = operation(Floats(Words), lambda b, x: b.bitcast(b.and_(x, ir.Constant(_WORDS, [-65536] * LANES)), _FLOATS))
pack_bf16 = operation(
    Words(Floats, Floats), _pair
)  # as bf16: the first in the low halves of the lanes, the second above
pair_for_dot = operation(  # the same for a dot product: what it takes for 0 may be 0
    Words(Floats, Floats), lambda b, low, high: b.bitcast(paired_bf16(b, low, high), _WORDS)
)
round_bf16 = operation(  # fp32 whose low sixteen bits are 0
    Floats(Floats),
    lambda b, x: widened_bf16(b, narrow_bf16(b, x, _WORDS, ir.VectorType(_I16, LANES)), _WORDS, _FLOATS),
)
store_words = operation(void(i64, Words), lambda b, at, value: _write(b, at, value))
store_uint16 = operation(
    void(i64, Words), lambda b, at, value: _write(b, at, b.trunc(value, ir.VectorType(_I16, LANES)))
)
load_uint16 = operation(  # 16 uint16
    Words(i64), lambda b, at: b.zext(_read(b, at, ir.VectorType(_I16, LANES)), _WORDS)
)

# Single values
copy_2_bytes = operation(void(i64, i64), lambda b, at, to: _write(b, to, _read(b, at, _I16, 2), 2))
read = operation(i64(i64), lambda b, at: _read(b, at, _I64, 8))
write = operation(void(i64, i64), lambda b, at, value: _write(b, at, value, 8))
read_fp32 = operation(f32(i64), lambda b, at: _read(b, at, _F32, 4))
write_fp32 = operation(void(i64, f32), lambda b, at, value: _write(b, at, value, 4))
write_int32 = operation(void(i64, i64), lambda b, at, value: _write(b, at, b.trunc(value, _I32), 4))
read_fp16 = operation(f32(i64), lambda b, at: widened_fp16(b, _read(b, at, _I16, 2), _I32, _F32))
read_bf16 = operation(f32(i64), lambda b, at: widened_bf16(b, _read(b, at, _I16, 2), _I32, _F32))
write_fp16 = operation(void(i64, f32), lambda b, at, value: _write(b, at, narrow_fp16(b, value, _I32, _I16), 2))
write_bf16 = operation(void(i64, f32), lambda b, at, value: _write(b, at, narrow_bf16(b, value, _I32, _I16), 2))

transpose = operation(void(i64, i64, i64), _transpose)  # sixteen vectors `step` bytes apart, to sixteen in a row
transpose_rounded = operation(  # the same of sixteen times 32 fp32, each rounded to bf16, for dot products
    void(i64, i64, i64), _transpose_rounded
)
stack = operation(i64(), _on_stack)  # the address of STACK bytes that are the kernel's own while it runs

# A number that LLVM must not know: a loop up to it stays one, where written out it would need more registers.
hidden = operation(i64(i64), lambda b, x: b.asm(ir.FunctionType(_I64, [_I64]), "", "=r,0", [x], side_effect=True))

# Threads
fetch_add = operation(  # add one to a counter that several threads count on; what it was before
    i64(i64), lambda b, at: b.atomic_rmw("add", pointer(b, at, _I64), _I64(1), "acq_rel")
)
load_acquire = operation(i64(i64), lambda b, at: b.load_atomic(pointer(b, at, _I64), "acquire", 8))
call = operation(  # call a kernel at an address with two numbers
    void(i64, i64, i64),
    lambda b, at, x, y: b.call(pointer(b, at, ir.FunctionType(ir.VoidType(), [_I64, _I64])), (x, y)),
)
yield_core = operation(  # call a function that offers the core to others
    void(i64), lambda b, at: b.call(pointer(b, at, ir.FunctionType(_I32, [])), ())
)

# For memory that is read once and in order: the processor's own prefetcher stops at the end of each page.
AHEAD = 4096
_fetch_line = operation(void(i64), lambda b, at: _fetch(b, at, 1))
prefetch_line = operation(void(i64), lambda b, at: _fetch(b, at, 2))  # 64 bytes, into the second cache


@njit(forceinline=True)
def prefetch_ahead(at: int, count: int) -> None:
    """Prefetch `count` bytes, AHEAD bytes after an address; they need not exist."""
    for i in range(0, count, 64):
        _fetch_line(at + AHEAD + i)


@njit(forceinline=True)
def zero_memory(at: int, count: int) -> None:
    """Write `count` vectors of 0."""
    for i in range(count):
        store(at + 64 * i, zero_fp32())


@njit(forceinline=True)
def prefetch(at: int, count: int) -> None:
    """Prefetch the `count` bytes at an address; they need not exist."""
    for i in range(0, count, 64):
        _fetch_line(at + i)
