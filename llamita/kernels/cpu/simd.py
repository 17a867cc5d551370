"""Vectors of sixteen lanes for Numba, and the few machine operations that kernels are written with.

Kernels work on addresses (int64), not on arrays: so a kernel has one signature, whatever it is given. The vectors are
LLVM's: a machine with shorter registers takes several for each. What asks for more of the machine takes the way that
`isa` names for it.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, register_model

from llamita.kernels.cpu import dot_bytes, isa
from llamita.kernels.cpu.pieces import Builder, Value
from llamita.kernels.cpu.pieces import call as _call

isa.aim()  # before Numba looks at what machine this is, which it does once
LANES = 16
STACK = 1 << 17  # bytes that a kernel may work in
_F16, _F32, _F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
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
i64, f32, void = types.int64, types.float32, types.void


def _operation(signature: Any, emit: Callable[..., Value]) -> Any:
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
    ]
    return intrinsic(typings[len(signature.args)])


def _at(b: Builder, address: Value, kind: ir.Type) -> Value:
    # An address is a sum of integers, and LLVM takes any of them for the pointer: Numba compiles every part by itself
    # and gives its callers what came of that, `inttoptr(a)[b]`. Where a is 0 then, LLVM takes it for an access through
    # null, which cannot be, and removes the way that leads there. This says that it can be; who inlines it says so too.
    set.add(b.function.attributes, "null_pointer_is_valid")  # past llvmlite's list of the attributes it knows
    return b.inttoptr(address, kind.as_pointer())


def _read(b: Builder, address: Value, kind: ir.Type, align: int = 1) -> Value:
    return b.load(_at(b, address, kind), align=align)


def _write(b: Builder, address: Value, value: Value, align: int = 1) -> None:
    b.store(value, _at(b, address, value.type), align=align)


def _spread(b: Builder, value: Value) -> Value:
    """One value in every lane."""
    vector = ir.VectorType(value.type, LANES)
    first = b.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    return b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(_WORDS, [0] * LANES))


def _all(kind: ir.Type, number: float) -> Value:
    """A number, or so many of it as a vector has lanes."""
    return ir.Constant(kind, [number] * LANES if isinstance(kind, ir.VectorType) else number)


def _widened_bf16(b: Builder, halves: Value, whole: ir.Type, wide: ir.Type) -> Value:
    return b.bitcast(b.shl(b.zext(halves, whole), _all(whole, 16)), wide)


def _narrow_bf16(b: Builder, value: Value, whole: ir.Type, narrow: ir.Type) -> Value:
    """To the nearest, halves to even, as torch rounds; a NaN may come out as infinity."""
    pattern = b.bitcast(value, whole)
    odd = b.and_(b.lshr(pattern, _all(whole, 16)), _all(whole, 1))
    return b.trunc(b.lshr(b.add(pattern, b.add(odd, _all(whole, 0x7FFF))), _all(whole, 16)), narrow)


def _half(whole: ir.Type) -> ir.Type | None:
    """LLVM's halves for these words, or None where it would call a library that may not be there, and abort."""
    if instructions().fp16 == "integers":
        return None
    return ir.VectorType(_F16, LANES) if isinstance(whole, ir.VectorType) else _F16


def _widened_fp16(b: Builder, halves: Value, whole: ir.Type, wide: ir.Type) -> Value:
    if (half := _half(whole)) is not None:
        return b.fpext(b.bitcast(halves, half), wide)
    pattern = b.zext(halves, whole)
    size = b.shl(b.and_(pattern, _all(whole, 0x7FFF)), _all(whole, 13))
    number = b.bitcast(b.fmul(b.bitcast(size, wide), _all(wide, 2.0**112)), whole)  # moves the exponent's zero
    endless = b.icmp_unsigned(">=", size, _all(whole, 0x7C00 << 13))
    number = b.select(endless, b.or_(size, _all(whole, 0x7F800000)), number)
    return b.bitcast(b.or_(number, b.shl(b.and_(pattern, _all(whole, 0x8000)), _all(whole, 16))), wide)


def _narrow_fp16(b: Builder, value: Value, whole: ir.Type, narrow: ir.Type) -> Value:
    """To the nearest, halves to even."""
    if (half := _half(whole)) is not None:
        return b.bitcast(b.fptrunc(value, half), narrow)
    pattern = b.bitcast(value, whole)
    size = b.and_(pattern, _all(whole, 0x7FFFFFFF))
    odd = b.and_(b.lshr(size, _all(whole, 13)), _all(whole, 1))
    number = b.lshr(b.add(size, b.add(odd, _all(whole, 0xFFF - (112 << 23)))), _all(whole, 13))
    # Added to a half, the smallest numbers are rounded to multiples of the smallest fp16.
    tiny = b.bitcast(b.fadd(b.bitcast(size, value.type), _all(value.type, 0.5)), whole)
    tiny = b.sub(tiny, _all(whole, 0x3F000000))
    number = b.select(b.icmp_unsigned("<", size, _all(whole, 0x38800000)), tiny, number)
    endless = b.select(b.icmp_unsigned(">", size, _all(whole, 0x7F800000)), _all(whole, 0x7E00), _all(whole, 0x7C00))
    number = b.select(b.icmp_unsigned(">=", size, _all(whole, 0x47800000)), endless, number)
    return b.trunc(b.or_(number, b.lshr(b.and_(pattern, _all(whole, 0x80000000)), _all(whole, 16))), narrow)


def _reduction(b: Builder, name: str, returns: ir.Type, vector: ir.Type) -> Value:
    name = f"llvm.vector.reduce.{name}.v16f32"
    kind = ir.FunctionType(returns, [returns, vector])
    return b.module.globals.get(name) or ir.Function(b.module, kind, name)


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


def target() -> tuple[str, str, str]:
    """What code is compiled for, as Numba's settings leave it: LLVM's triple, the processor, its features."""
    context: Any = cpu_target.target_context
    return context.codegen().magic_tuple()


def instructions() -> isa.InstructionSet:
    """The row of the table for that."""
    return isa.fitting(*target())


def _transpose(b: Builder, source: Value, step: Value, target: Value) -> None:
    rows = [_read(b, b.add(source, b.mul(step, _I64(i))), _FLOATS) for i in range(LANES)]
    for size in (8, 4, 2, 1):  # swap the blocks beside the diagonal
        early = ir.Constant(_WORDS, [lane if not lane & size else LANES + (lane ^ size) for lane in range(LANES)])
        late = ir.Constant(_WORDS, [lane ^ size if not lane & size else LANES + lane for lane in range(LANES)])
        for i in (i for i in range(LANES) if not i & size):
            x, y = rows[i], rows[i | size]
            rows[i], rows[i | size] = b.shuffle_vector(x, y, early), b.shuffle_vector(x, y, late)
    for i, row in enumerate(rows):
        _write(b, b.add(target, _I64(64 * i)), row)


def _fetch(b: Builder, address: Value) -> None:
    name, number = "llvm.prefetch.p0", _I32
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), number, number, number])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    b.call(function, (_at(b, address, _I8), number(0), number(3), number(1)))


def _dot_u8s8(b: Builder, total: Value, codes: Value, x: Value) -> Value:
    return dot_bytes.DOT_U8S8[instructions().dot_u8s8](b, total, codes, x)


def _dot_s8s8(b: Builder, total: Value, weights: Value, x: Value) -> Value:
    return dot_bytes.DOT_S8S8.get(instructions().dot_u8s8, dot_bytes.dot_s8s8_in_integers)(b, total, weights, x)


def _pair_products(b: Builder, codes: Value, x: Value) -> Value:
    return dot_bytes.pair_products(dot_bytes.PAIRS[instructions().dot_u8s8], b, codes, x)


def _add_up_pairs(b: Builder, total: Value, sums: Value) -> Value:
    return dot_bytes.add_up_pairs(dot_bytes.PAIRS[instructions().dot_u8s8], b, total, sums)


def _dot2(b: Builder, total: Value, x: Value, y: Value) -> Value:
    if instructions().dot_bf16 == "vdpbf16ps.512":
        return _call(b, "llvm.x86.avx512bf16.dpbf16ps.512", _FLOATS, total, x, y)
    return _dot2_anywhere(b, total, x, y)


def _dot2_anywhere(b: Builder, total: Value, x: Value, y: Value) -> Value:
    """The same in LLVM's own terms; it rounds once more often."""
    sixteen, high = ir.Constant(_WORDS, [16] * LANES), ir.Constant(_WORDS, [-65536] * LANES)
    for pick in (lambda pair: b.shl(pair, sixteen), lambda pair: b.and_(pair, high)):
        first, second = b.bitcast(pick(x), _FLOATS), b.bitcast(pick(y), _FLOATS)
        total = _call(b, "llvm.fma.v16f32", _FLOATS, first, second, total)
    return total


def _pair(b: Builder, low: Value, high: Value) -> Value:
    narrow = ir.VectorType(_I16, LANES)
    low, high = (b.zext(_narrow_bf16(b, x, _WORDS, narrow), _WORDS) for x in (low, high))
    return b.or_(low, b.shl(high, ir.Constant(_WORDS, [16] * LANES)))


_dot4_anywhere = dot_bytes.dot_u8s8_in_integers


def _bits(b: Builder, value: Value, shift: Value, mask: Value) -> Value:
    return b.and_(b.lshr(value, _spread(b, b.trunc(shift, _I32))), _spread(b, b.trunc(mask, _I32)))


# Vectors
load = _operation(Floats(i64), lambda b, at: _read(b, at, _FLOATS))  # 64 bytes of fp32
load_fp16 = _operation(
    Floats(i64), lambda b, at: _widened_fp16(b, _read(b, at, ir.VectorType(_I16, LANES)), _WORDS, _FLOATS)
)
load_bf16 = _operation(
    Floats(i64), lambda b, at: _widened_bf16(b, _read(b, at, ir.VectorType(_I16, LANES)), _WORDS, _FLOATS)
)
load_words = _operation(Words(i64), lambda b, at: _read(b, at, _WORDS))  # 64 bytes as they are
load_uint8 = _operation(Words(i64), lambda b, at: b.zext(_read(b, at, ir.VectorType(_I8, LANES)), _WORDS))  # 16 uint8
load_int8 = _operation(Words(i64), lambda b, at: b.sext(_read(b, at, ir.VectorType(_I8, LANES)), _WORDS))  # 16 int8
broadcast_word = _operation(Words(i64), lambda b, at: _spread(b, _read(b, at, _I32)))  # 4 bytes in every lane
store = _operation(void(i64, Floats), lambda b, at, value: _write(b, at, value))
store_bf16 = _operation(
    void(i64, Floats),
    lambda b, at, value: _write(b, at, _narrow_bf16(b, value, _WORDS, ir.VectorType(_I16, LANES))),
)
store_int8 = _operation(void(i64, Words), lambda b, at, value: _write(b, at, b.trunc(value, ir.VectorType(_I8, LANES))))
broadcast = _operation(Floats(f32), _spread)
zero_fp32 = _operation(Floats(), lambda b: ir.Constant(_FLOATS, [0.0] * LANES))
zero_words = _operation(Words(), lambda b: ir.Constant(_WORDS, [0] * LANES))
add = _operation(Floats(Floats, Floats), lambda b, x, y: b.fadd(x, y))
sub = _operation(Floats(Floats, Floats), lambda b, x, y: b.fsub(x, y))
mul = _operation(Floats(Floats, Floats), lambda b, x, y: b.fmul(x, y))
max = _operation(Floats(Floats, Floats), lambda b, x, y: _call(b, "llvm.maxnum.v16f32", _FLOATS, x, y))
min = _operation(Floats(Floats, Floats), lambda b, x, y: _call(b, "llvm.minnum.v16f32", _FLOATS, x, y))
div = _operation(Floats(Floats, Floats), lambda b, x, y: b.fdiv(x, y))
scale_by_power_of_two = _operation(
    Floats(Floats, Words), _scaled
)  # times two to the power of integers; two steps reach small results
abs = _operation(Floats(Floats), lambda b, x: _call(b, "llvm.fabs.v16f32", _FLOATS, x))
extract_first = _operation(f32(Floats), lambda b, x: b.extract_element(x, _I32(0)))
extract = _operation(f32(Floats, i64), lambda b, x, i: b.extract_element(x, b.trunc(i, _I32)))
extract_word = _operation(  # four bytes of a lane, as a number without sign
    i64(Words, i64), lambda b, x, i: b.zext(b.extract_element(x, b.trunc(i, _I32)), _I64)
)
fma = _operation(  # x * y + z, rounded once
    Floats(Floats, Floats, Floats), lambda b, x, y, z: _call(b, "llvm.fma.v16f32", _FLOATS, x, y, z)
)
reduce_add = _operation(  # the sum of the lanes
    f32(Floats), lambda b, x: b.call(_reduction(b, "fadd", _F32, _FLOATS), (_F32(0.0), x), fastmath=("reassoc",))
)
reduce_max = _operation(f32(Floats), lambda b, x: _call(b, "llvm.vector.reduce.fmax.v16f32", _F32, x))
reduce_add_words = _operation(i64(Words), lambda b, x: b.sext(_call(b, "llvm.vector.reduce.add.v16i32", _I32, x), _I64))
to_fp32 = _operation(Floats(Words), lambda b, x: b.sitofp(x, _FLOATS))
round_to_words = _operation(  # to the nearest integer, halves to even
    Words(Floats), lambda b, x: b.fptosi(_call(b, "llvm.rint.v16f32", _FLOATS, x), _WORDS)
)
extract_bits = _operation(Words(Words, i64, i64), _bits)  # (value >> shift) & mask
or_words = _operation(Words(Words, Words), lambda b, x, y: b.or_(x, y))
shl = _operation(Words(Words, i64), lambda b, x, by: b.shl(x, _spread(b, b.trunc(by, _I32))))
dot_u8s8 = _operation(  # total + four products of unsigned codes and signed bytes a lane
    Words(Words, Words, Words), _dot_u8s8
)
dot_s8s8 = _operation(  # the same of signed bytes, of which the second are not -128
    Words(Words, Words, Words), _dot_s8s8
)
# For instruction sets that multiply bytes in pairs (`dot_bytes.PAIRS`), and codes of at most seven bits.
pair_products = _operation(Words(Words, Words), _pair_products)  # two sums of 16 bits a lane
add_pairs = _operation(Words(Words, Words), dot_bytes.add_pairs)
add_up_pairs = _operation(Words(Words, Words), _add_up_pairs)  # total + the two sums of a lane
xor_words = _operation(Words(Words, i64), lambda b, x, mask: b.xor(x, _spread(b, b.trunc(mask, _I32))))

blend_from = _operation(  # the lanes of x from a number on, before it those of y
    Floats(Floats, i64, Floats), lambda b, x, start, y: b.select(_lanes_from(b, start), x, y)
)
store_fp16 = _operation(
    void(i64, Floats),
    lambda b, at, value: _write(b, at, _narrow_fp16(b, value, _WORDS, ir.VectorType(_I16, LANES))),
)
dot_bf16 = _operation(Floats(Floats, Words, Words), _dot2)  # total + two products of bf16 a lane
low_bf16 = _operation(  # of pairs, the numbers in the low halves of the lanes
    Floats(Words), lambda b, x: b.bitcast(b.shl(x, ir.Constant(_WORDS, [16] * LANES)), _FLOATS)
)
high_bf16 = _operation(Floats(Words), lambda b, x: b.bitcast(b.and_(x, ir.Constant(_WORDS, [-65536] * LANES)), _FLOATS))
pack_bf16 = _operation(
    Words(Floats, Floats), _pair
)  # as bf16: the first in the low halves of the lanes, the second above
store_words = _operation(void(i64, Words), lambda b, at, value: _write(b, at, value))
load_uint16 = _operation(  # 16 uint16
    Words(i64), lambda b, at: b.zext(_read(b, at, ir.VectorType(_I16, LANES)), _WORDS)
)

# Single values
read = _operation(i64(i64), lambda b, at: _read(b, at, _I64, 8))
read_fp32 = _operation(f32(i64), lambda b, at: _read(b, at, _F32, 4))
write_fp32 = _operation(void(i64, f32), lambda b, at, value: _write(b, at, value, 4))
write_int32 = _operation(void(i64, i64), lambda b, at, value: _write(b, at, b.trunc(value, _I32), 4))
read_fp16 = _operation(f32(i64), lambda b, at: _widened_fp16(b, _read(b, at, _I16, 2), _I32, _F32))
read_bf16 = _operation(f32(i64), lambda b, at: _widened_bf16(b, _read(b, at, _I16, 2), _I32, _F32))
write_fp16 = _operation(void(i64, f32), lambda b, at, value: _write(b, at, _narrow_fp16(b, value, _I32, _I16), 2))
write_bf16 = _operation(void(i64, f32), lambda b, at, value: _write(b, at, _narrow_bf16(b, value, _I32, _I16), 2))

transpose = _operation(void(i64, i64, i64), _transpose)  # sixteen vectors so many bytes apart, to sixteen in a row
stack = _operation(i64(), _on_stack)  # the address of STACK bytes that are the kernel's own while it runs

# A number that LLVM must not know: a loop up to it stays one, where written out it would need more registers.
hidden = _operation(i64(i64), lambda b, x: b.asm(ir.FunctionType(_I64, [_I64]), "", "=r,0", [x], side_effect=True))

# Threads
fetch_add = _operation(  # add one to a counter that several threads count on; what it was before
    i64(i64), lambda b, at: b.atomic_rmw("add", _at(b, at, _I64), _I64(1), "acq_rel")
)
load_acquire = _operation(i64(i64), lambda b, at: b.load_atomic(_at(b, at, _I64), "acquire", 8))
call = _operation(  # call a kernel at an address with two numbers
    void(i64, i64, i64), lambda b, at, x, y: b.call(_at(b, at, ir.FunctionType(ir.VoidType(), [_I64, _I64])), (x, y))
)
yield_core = _operation(  # call a function that offers the core to others
    void(i64), lambda b, at: b.call(_at(b, at, ir.FunctionType(_I32, [])), ())
)

# What is read once and in order comes from memory: the processor's own guess ends with each page.
AHEAD = 4096
_fetch_line = _operation(void(i64), _fetch)


@njit(forceinline=True)
def prefetch_ahead(at: int, count: int) -> None:
    """Begin to load the `count` bytes that stand AHEAD of an address; they need not exist."""
    for i in range(0, count, 64):
        _fetch_line(at + AHEAD + i)


@njit(forceinline=True)
def zero_memory(at: int, count: int) -> None:
    """Write so many vectors of nothing."""
    for i in range(count):
        store(at + 64 * i, zero_fp32())


@njit(forceinline=True)
def prefetch(at: int, count: int) -> None:
    """Begin to load the `count` bytes at an address; they need not exist."""
    for i in range(0, count, 64):
        _fetch_line(at + i)
