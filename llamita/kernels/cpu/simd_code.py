"""The code of the operations of `simd`: a function of LLVM's builder, and of values, writes each."""

from collections.abc import Callable

from llvmlite import ir

from llamita.kernels.cpu import dot_bytes
from llamita.kernels.cpu.compile_target import instructions
from llamita.kernels.cpu.half_precision import joined_bf16, narrow_bf16
from llamita.kernels.cpu.pieces import Builder, Value, call_intrinsic
from llamita.kernels.cpu.transposition import transposed

LANES = 16
STACK = 3 << 16  # bytes that a kernel may work in
F32 = ir.FloatType()
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOATS, WORDS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)


def pointer(b: Builder, address: Value, kind: ir.Type) -> Value:
    """An address as LLVM's pointer."""
    # An address is a sum of integers, and LLVM takes any of them for the pointer: Numba compiles every part by itself
    # and gives its callers what came of that, `inttoptr(a)[b]`. Where a is 0 then, LLVM takes it for an access through
    # null, which cannot be, and removes the way that leads there. This says that it can be; who inlines it says so too.
    set.add(b.function.attributes, "null_pointer_is_valid")  # past llvmlite's list of the attributes it knows
    return b.inttoptr(address, kind.as_pointer())


def read(b: Builder, address: Value, kind: ir.Type, align: int = 1) -> Value:
    """Load a value of a type at an address."""
    return b.load(pointer(b, address, kind), align=align)


def write(b: Builder, address: Value, value: Value, align: int = 1) -> None:
    """Store a value at an address."""
    b.store(value, pointer(b, address, value.type), align=align)


def broadcast(b: Builder, value: Value) -> Value:
    """One value in every lane."""
    vector = ir.VectorType(value.type, LANES)
    first = b.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(WORDS, [0] * LANES))


def reduce_add(b: Builder, x: Value) -> Value:
    """The sum of the lanes as a tree: the upper half onto the lower, again and again. This order is the definition."""
    for size in (8, 4, 2, 1):
        low, high = ([start + i for i in range(size)] for start in (0, size))
        x = b.fadd(shuffled(b, x, x, low), shuffled(b, x, x, high))
    return b.extract_element(x, I32(0))


def reduce_max(b: Builder, x: Value) -> Value:
    """The largest lane, as a tree: LLVM's own goes through the lanes one after the other, for the sake of NaN."""
    for size in (8, 4, 2):
        kind, (low, high) = ir.VectorType(F32, size), ([start + i for i in range(size)] for start in (0, size))
        halves = shuffled(b, x, x, low), shuffled(b, x, x, high)
        x = call_intrinsic(b, f"llvm.maxnum.v{size}f32", kind, *halves)
    return call_intrinsic(b, "llvm.maxnum.f32", F32, b.extract_element(x, I32(0)), b.extract_element(x, I32(1)))


def shuffled(b: Builder, x: Value, y: Value, lanes: list[int]) -> Value:
    """The lanes of two vectors, x's before y's, by their numbers."""
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def reduce_add_4(b: Builder, x: Value, y: Value, z: Value, w: Value) -> Value:
    """The sums of four vectors, each in the order of `reduce_add`, side by side."""
    return reduce_4(b, b.fadd, x, y, z, w)


def reduce_4(b: Builder, join: Callable[[Value, Value], Value], x: Value, y: Value, z: Value, w: Value) -> Value:
    """What an operation makes of the lanes of each of four vectors, side by side."""
    early, late = [*range(8), *range(16, 24)], [*range(8, 16), *range(24, 32)]
    xy = join(shuffled(b, x, y, early), shuffled(b, x, y, late))
    zw = join(shuffled(b, z, w, early), shuffled(b, z, w, late))
    early = [start + i for start in (0, 8, 16, 24) for i in range(4)]
    quarters = join(shuffled(b, xy, zw, early), shuffled(b, xy, zw, [lane + 4 for lane in early]))
    early = [start + i for start in (0, 4, 8, 12) for i in range(2)]
    pairs = join(shuffled(b, quarters, quarters, early), shuffled(b, quarters, quarters, [i + 2 for i in early]))
    return join(shuffled(b, pairs, pairs, [0, 2, 4, 6]), shuffled(b, pairs, pairs, [1, 3, 5, 7]))


def merge(b: Builder, x: Value, y: Value, size: int) -> Value:
    """A step of `reduce_add` for two vectors at once: sums of x are in lanes without the bit `size`, y's with it."""
    is_first = [not lane & size for lane in range(LANES)]
    stay = [lane if first else LANES + lane for lane, first in enumerate(is_first)]
    move = [lane ^ size if first else LANES + (lane ^ size) for lane, first in enumerate(is_first)]
    return b.fadd(shuffled(b, x, y, stay), shuffled(b, x, y, move))


def first_lanes(b: Builder, count: Value) -> Value:
    """The mask of the first `count` lanes."""
    return b.icmp_signed("<", ir.Constant(WORDS, list(range(LANES))), broadcast(b, b.trunc(count, I32)))


def load_some(b: Builder, at: Value, count: Value) -> Value:
    """The first `count` fp32 at an address, then 0; no other memory is read."""
    nothing = ir.Constant(FLOATS, [0.0] * LANES)
    name, address_type = "llvm.masked.load.v16f32.p0", FLOATS.as_pointer()
    mask = ir.VectorType(ir.IntType(1), LANES)
    kind = ir.FunctionType(FLOATS, [address_type, I32, mask, FLOATS])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    return b.call(function, (pointer(b, at, FLOATS), I32(4), first_lanes(b, count), nothing))


def store_some(b: Builder, at: Value, value: Value, count: Value) -> None:
    """Store the first `count` lanes; no other memory is written."""
    name, address_type = "llvm.masked.store.v16f32.p0", FLOATS.as_pointer()
    mask = ir.VectorType(ir.IntType(1), LANES)
    kind = ir.FunctionType(ir.VoidType(), [FLOATS, address_type, I32, mask])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    b.call(function, (value, pointer(b, at, FLOATS), I32(4), first_lanes(b, count)))


def scale_by_power_of_two(b: Builder, value: Value, power: Value) -> Value:
    """x times two to the power of integers, in two steps, which reach small results."""
    half = b.ashr(power, ir.Constant(WORDS, [1] * LANES))
    for part in (half, b.sub(power, half)):
        exponent = b.add(part, ir.Constant(WORDS, [127] * LANES))
        value = b.fmul(value, b.bitcast(b.shl(exponent, ir.Constant(WORDS, [23] * LANES)), FLOATS))
    return value


def lanes_from(b: Builder, start: Value) -> Value:
    """The mask of the lanes from `start` on."""
    return b.icmp_signed(">=", ir.Constant(WORDS, list(range(LANES))), broadcast(b, b.trunc(start, I32)))


def on_stack(b: Builder) -> Value:
    """The address of STACK bytes of the kernel's own."""
    kind = ir.ArrayType(FLOATS, STACK // 64)
    with b.goto_entry_block():
        memory = b.alloca(kind)
    memory.align = 64
    return b.ptrtoint(memory, I64)


def transpose(b: Builder, source: Value, step: Value, target: Value) -> None:
    """Sixteen vectors `step` bytes apart, as sixteen columns one after the other."""
    rows = [read(b, b.add(source, b.mul(step, I64(i))), FLOATS) for i in range(LANES)]
    write_all(b, target, transposed(b, rows))


def transpose_rounded(b: Builder, source: Value, step: Value, target: Value) -> None:
    """Sixteen times 32 fp32, `step` bytes apart, each rounded to bf16, as columns of pairs."""
    rows = [b.add(source, b.mul(step, I64(i))) for i in range(LANES)]
    halves = [joined_bf16(b, read(b, at, FLOATS), read(b, b.add(at, I64(64)), FLOATS)) for at in rows]
    write_all(b, target, transposed(b, [b.bitcast(row, FLOATS) for row in halves]))


def write_all(b: Builder, at: Value, vectors: list[Value]) -> None:
    """Store vectors one after the other."""
    for i, vector in enumerate(vectors):
        write(b, b.add(at, I64(64 * i)), vector)


def prefetch(b: Builder, address: Value, level: int) -> None:
    """Prefetch the line of an address into the cache of a level; it need not exist."""
    name, number = "llvm.prefetch.p0", I32
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), number, number, number])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    b.call(function, (pointer(b, address, I8), number(0), number(4 - level), number(1)))


def dot_u8s8(b: Builder, total: Value, codes: Value, x: Value) -> Value:
    """total + four products of codes and signed bytes a lane, by the machine's instruction."""
    return dot_bytes.DOT_U8S8[instructions().dot_u8s8](b, total, codes, x)


def dot_bf16(b: Builder, total: Value, x: Value, y: Value) -> Value:
    """total + two products of bf16 a lane, by the instruction where there is one."""
    if instructions().dot_bf16 == "vdpbf16ps.512":
        return call_intrinsic(b, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, x, y)
    return dot_bf16_by_fma(b, total, x, y)


def dot_bf16_by_fma(b: Builder, total: Value, x: Value, y: Value) -> Value:
    """The same as two fma: the instruction adds the product of the high halves first, and rounds after each."""
    sixteen, high = ir.Constant(WORDS, [16] * LANES), ir.Constant(WORDS, [-65536] * LANES)
    for pick in (lambda pair: b.and_(pair, high), lambda pair: b.shl(pair, sixteen)):
        first, second = b.bitcast(pick(x), FLOATS), b.bitcast(pick(y), FLOATS)
        total = call_intrinsic(b, "llvm.fma.v16f32", FLOATS, first, second, total)
    return total


def pack_bf16(b: Builder, low: Value, high: Value) -> Value:
    """Two vectors as bf16: the first in the low halves of the lanes, the second above."""
    narrow = ir.VectorType(I16, LANES)
    low, high = (b.zext(narrow_bf16(b, x, WORDS, narrow), WORDS) for x in (low, high))
    return b.or_(low, b.shl(high, ir.Constant(WORDS, [16] * LANES)))


def extract_bits(b: Builder, value: Value, shift: Value, mask: Value) -> Value:
    """(value >> shift) & mask."""
    return b.and_(b.lshr(value, broadcast(b, b.trunc(shift, I32))), broadcast(b, b.trunc(mask, I32)))
