"""Vectors of sixteen lanes for Numba, and the vector operations that kernels are written with.

Kernels work on addresses (int64), not on arrays, so each has one signature for all arguments. The vectors are LLVM's: a
machine with shorter registers uses several for each. `isa` names the version of operations that depend on the machine.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

from llamita.kernels.cpu import simd_code as code
from llamita.kernels.cpu.compile_target import instructions, target
from llamita.kernels.cpu.half_precision import narrow_bf16, narrow_fp16, paired_bf16, widened_bf16, widened_fp16
from llamita.kernels.cpu.pieces import Builder, Value, call_intrinsic
from llamita.kernels.cpu.simd_code import F32, FLOATS, I8, I16, I32, I64, LANES, WORDS, pointer

__all__ = ["call_intrinsic", "instructions", "target"]  # what those who import this ask it for, besides its own
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


Floats = Lanes("floats", FLOATS)  # sixteen fp32
Words = Lanes("words", WORDS)  # sixteen int32, or sixty-four bytes
Quads = Lanes("quads", ir.VectorType(F32, 4))  # four fp32
i64, f32, void = types.int64, types.float32, types.void


def operation(signature: Any, emit: Callable[..., Value]) -> Any:
    """The Numba function of this signature whose code `emit(builder, *arguments)` writes."""

    def emitted(context: Any, builder: Builder, signature: Any, arguments: Any) -> Value:
        value = emit(builder, *arguments)
        return context.get_dummy_value() if signature.return_type is void else value

    # Numba counts the parameters of the function it is given.
    typings: list[Callable[..., Any]] = [
        lambda context: (signature, emitted),
        lambda context, a: (signature, emitted),
        lambda context, a, b: (signature, emitted),
        lambda context, a, b, c: (signature, emitted),
        lambda context, a, b, c, d: (signature, emitted),
    ]
    return intrinsic(typings[len(signature.args)])


# Vectors
load = operation(Floats(i64), lambda b, at: code.read(b, at, FLOATS))  # 64 bytes of fp32
load_some = operation(Floats(i64, i64), code.load_some)  # the first `count` fp32 at an address, then 0
store_some = operation(void(i64, Floats, i64), code.store_some)  # the first `count` lanes
load_quad = operation(Quads(i64), lambda b, at: code.read(b, at, ir.VectorType(F32, 4)))
store_quad = operation(void(i64, Quads), lambda b, at, value: code.write(b, at, value))
add_quads = operation(Quads(Quads, Quads), lambda b, x, y: b.fadd(x, y))
extract_quad = operation(f32(Quads, i64), lambda b, x, i: b.extract_element(x, b.trunc(i, I32)))
load_fp16 = operation(
    Floats(i64), lambda b, at: widened_fp16(b, code.read(b, at, ir.VectorType(I16, LANES)), WORDS, FLOATS)
)
load_bf16 = operation(
    Floats(i64), lambda b, at: widened_bf16(b, code.read(b, at, ir.VectorType(I16, LANES)), WORDS, FLOATS)
)
load_words = operation(Words(i64), lambda b, at: code.read(b, at, WORDS))  # 64 bytes as they are
load_uint8 = operation(Words(i64), lambda b, at: b.zext(code.read(b, at, ir.VectorType(I8, LANES)), WORDS))  # 16 uint8
load_int8 = operation(Words(i64), lambda b, at: b.sext(code.read(b, at, ir.VectorType(I8, LANES)), WORDS))  # 16 int8
broadcast_word = operation(Words(i64), lambda b, at: code.broadcast(b, code.read(b, at, I32)))  # 4 bytes in every lane
store = operation(void(i64, Floats), lambda b, at, value: code.write(b, at, value))
store_bf16 = operation(
    void(i64, Floats),
    lambda b, at, value: code.write(b, at, narrow_bf16(b, value, WORDS, ir.VectorType(I16, LANES))),
)
store_int8 = operation(
    void(i64, Words), lambda b, at, value: code.write(b, at, b.trunc(value, ir.VectorType(I8, LANES)))
)
broadcast = operation(Floats(f32), code.broadcast)
zero_fp32 = operation(Floats(), lambda b: ir.Constant(FLOATS, [0.0] * LANES))
one_words = operation(Words(), lambda b: ir.Constant(WORDS, [1] * LANES))
zero_words = operation(Words(), lambda b: ir.Constant(WORDS, [0] * LANES))
add = operation(Floats(Floats, Floats), lambda b, x, y: b.fadd(x, y))
sub = operation(Floats(Floats, Floats), lambda b, x, y: b.fsub(x, y))
mul = operation(Floats(Floats, Floats), lambda b, x, y: b.fmul(x, y))
max = operation(Floats(Floats, Floats), lambda b, x, y: call_intrinsic(b, "llvm.maxnum.v16f32", FLOATS, x, y))
min = operation(Floats(Floats, Floats), lambda b, x, y: call_intrinsic(b, "llvm.minnum.v16f32", FLOATS, x, y))
div = operation(Floats(Floats, Floats), lambda b, x, y: b.fdiv(x, y))
scale_by_power_of_two = operation(  # times two to the power of integers; two steps reach small results
    Floats(Floats, Words), code.scale_by_power_of_two
)
abs = operation(Floats(Floats), lambda b, x: call_intrinsic(b, "llvm.fabs.v16f32", FLOATS, x))
extract_first = operation(f32(Floats), lambda b, x: b.extract_element(x, I32(0)))
extract = operation(f32(Floats, i64), lambda b, x, i: b.extract_element(x, b.trunc(i, I32)))
extract_word = operation(  # four bytes of a lane, as a number without sign
    i64(Words, i64), lambda b, x, i: b.zext(b.extract_element(x, b.trunc(i, I32)), I64)
)
fma = operation(  # x * y + z, rounded once
    Floats(Floats, Floats, Floats), lambda b, x, y, z: call_intrinsic(b, "llvm.fma.v16f32", FLOATS, x, y, z)
)
reduce_add = operation(f32(Floats), code.reduce_add)  # the sum of the lanes
reduce_add_4 = operation(Quads(Floats, Floats, Floats, Floats), code.reduce_add_4)  # the sums of four vectors
merge_8 = operation(Floats(Floats, Floats), lambda b, x, y: code.merge(b, x, y, 8))
merge_4 = operation(Floats(Floats, Floats), lambda b, x, y: code.merge(b, x, y, 4))
merge_2 = operation(Floats(Floats, Floats), lambda b, x, y: code.merge(b, x, y, 2))
merge_1 = operation(Floats(Floats, Floats), lambda b, x, y: code.merge(b, x, y, 1))
first_quad = operation(Quads(Floats), lambda b, x: code.shuffled(b, x, x, [0, 1, 2, 3]))  # of sixteen lanes
second_quad = operation(Quads(Floats), lambda b, x: code.shuffled(b, x, x, [4, 5, 6, 7]))
third_quad = operation(Quads(Floats), lambda b, x: code.shuffled(b, x, x, [8, 9, 10, 11]))
fourth_quad = operation(Quads(Floats), lambda b, x: code.shuffled(b, x, x, [12, 13, 14, 15]))
first_evens = operation(Quads(Floats), lambda b, x: code.shuffled(b, x, x, [0, 2, 4, 6]))
last_evens = operation(Quads(Floats), lambda b, x: code.shuffled(b, x, x, [8, 10, 12, 14]))
reduce_max = operation(f32(Floats), code.reduce_max)
reduce_add_words = operation(
    i64(Words), lambda b, x: b.sext(call_intrinsic(b, "llvm.vector.reduce.add.v16i32", I32, x), I64)
)
to_fp32 = operation(Floats(Words), lambda b, x: b.sitofp(x, FLOATS))
round_to_words = operation(  # to the nearest integer, halves to even
    Words(Floats), lambda b, x: b.fptosi(call_intrinsic(b, "llvm.rint.v16f32", FLOATS, x), WORDS)
)
extract_bits = operation(Words(Words, i64, i64), code.extract_bits)  # (value >> shift) & mask
or_words = operation(Words(Words, Words), lambda b, x, y: b.or_(x, y))
shl = operation(Words(Words, i64), lambda b, x, by: b.shl(x, code.broadcast(b, b.trunc(by, I32))))
dot_u8s8 = operation(  # total + four products of codes and signed bytes a lane
    Words(Words, Words, Words), code.dot_u8s8
)
xor_words = operation(Words(Words, i64), lambda b, x, mask: b.xor(x, code.broadcast(b, b.trunc(mask, I32))))

blend_from = operation(  # the lanes of x from a number on, before it those of y
    Floats(Floats, i64, Floats), lambda b, x, start, y: b.select(code.lanes_from(b, start), x, y)
)
store_fp16 = operation(
    void(i64, Floats),
    lambda b, at, value: code.write(b, at, narrow_fp16(b, value, WORDS, ir.VectorType(I16, LANES))),
)
dot_bf16 = operation(Floats(Floats, Words, Words), code.dot_bf16)  # total + two products of bf16 a lane
low_bf16 = operation(  # of pairs, the numbers in the low halves of the lanes
    Floats(Words), lambda b, x: b.bitcast(b.shl(x, ir.Constant(WORDS, [16] * LANES)), FLOATS)
)
high_bf16 = operation(Floats(Words), lambda b, x: b.bitcast(b.and_(x, ir.Constant(WORDS, [-65536] * LANES)), FLOATS))
low_fp16 = operation(  # of pairs of fp16, the numbers in the low halves of the lanes
    Floats(Words), lambda b, x: widened_fp16(b, b.trunc(x, ir.VectorType(I16, LANES)), WORDS, FLOATS)
)
high_fp16 = operation(
    Floats(Words),
    lambda b, x: widened_fp16(
        b, b.trunc(b.lshr(x, ir.Constant(WORDS, [16] * LANES)), ir.VectorType(I16, LANES)), WORDS, FLOATS
    ),
)
pack_bf16 = operation(  # as bf16: the first in the low halves of the lanes, the second above
    Words(Floats, Floats), code.pack_bf16
)
pair_for_dot = operation(  # the same for a dot product: what it takes for 0 may be 0
    Words(Floats, Floats), lambda b, low, high: b.bitcast(paired_bf16(b, low, high), WORDS)
)
round_bf16 = operation(  # fp32 whose low sixteen bits are 0
    Floats(Floats),
    lambda b, x: widened_bf16(b, narrow_bf16(b, x, WORDS, ir.VectorType(I16, LANES)), WORDS, FLOATS),
)
store_words = operation(void(i64, Words), lambda b, at, value: code.write(b, at, value))
store_uint16 = operation(
    void(i64, Words), lambda b, at, value: code.write(b, at, b.trunc(value, ir.VectorType(I16, LANES)))
)
load_uint16 = operation(  # 16 uint16
    Words(i64), lambda b, at: b.zext(code.read(b, at, ir.VectorType(I16, LANES)), WORDS)
)

# Single values
copy_2_bytes = operation(void(i64, i64), lambda b, at, to: code.write(b, to, code.read(b, at, I16, 2), 2))
read = operation(i64(i64), lambda b, at: code.read(b, at, I64, 8))
write = operation(void(i64, i64), lambda b, at, value: code.write(b, at, value, 8))
read_fp32 = operation(f32(i64), lambda b, at: code.read(b, at, F32, 4))
write_fp32 = operation(void(i64, f32), lambda b, at, value: code.write(b, at, value, 4))
write_int32 = operation(void(i64, i64), lambda b, at, value: code.write(b, at, b.trunc(value, I32), 4))
read_fp16 = operation(f32(i64), lambda b, at: widened_fp16(b, code.read(b, at, I16, 2), I32, F32))
read_bf16 = operation(f32(i64), lambda b, at: widened_bf16(b, code.read(b, at, I16, 2), I32, F32))
write_fp16 = operation(void(i64, f32), lambda b, at, value: code.write(b, at, narrow_fp16(b, value, I32, I16), 2))
write_bf16 = operation(void(i64, f32), lambda b, at, value: code.write(b, at, narrow_bf16(b, value, I32, I16), 2))

transpose = operation(void(i64, i64, i64), code.transpose)  # sixteen vectors `step` bytes apart, to sixteen in a row
transpose_rounded = operation(  # the same of sixteen times 32 fp32, each rounded to bf16, for dot products
    void(i64, i64, i64), code.transpose_rounded
)
stack = operation(i64(), code.on_stack)  # the address of STACK bytes that are the kernel's own while it runs

# A number that LLVM must not know: a loop up to it stays one, where written out it would need more registers.
hidden = operation(i64(i64), lambda b, x: b.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [x], side_effect=True))

# Threads
fetch_add = operation(  # add one to a counter that several threads count on; what it was before
    i64(i64), lambda b, at: b.atomic_rmw("add", pointer(b, at, I64), I64(1), "acq_rel")
)
load_acquire = operation(i64(i64), lambda b, at: b.load_atomic(pointer(b, at, I64), "acquire", 8))
call = operation(  # call a kernel at an address with two numbers
    void(i64, i64, i64),
    lambda b, at, x, y: b.call(pointer(b, at, ir.FunctionType(ir.VoidType(), [I64, I64])), (x, y)),
)
yield_core = operation(  # call a function that offers the core to others
    void(i64), lambda b, at: b.call(pointer(b, at, ir.FunctionType(I32, [])), ())
)

# For memory that is read once and in order: the processor's own prefetcher stops at the end of each page.
_fetch_line = operation(void(i64), lambda b, at: code.prefetch(b, at, 1))
prefetch_line = operation(void(i64), lambda b, at: code.prefetch(b, at, 2))  # 64 bytes, into the second cache


def prefetcher(ahead: int, count: int, *, level: int, step: int) -> Any:
    """The operation that prefetches `count` bytes, `ahead` bytes after an address, into the cache of this level.

    They need not exist. Of every `step` bytes one line is prefetched. Each is an instruction of its own: few of them in
    a loop took as long as many products.
    """
    places = range(ahead, ahead + count, step)
    return operation(void(i64), lambda b, at: [code.prefetch(b, b.add(at, I64(i)), level) for i in places])


@njit(forceinline=True)
def prefetch_lines(at: int, count: int) -> None:
    """Prefetch the `count` bytes at an address into the second cache."""
    for i in range(0, count, 64):
        prefetch_line(at + i)


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
