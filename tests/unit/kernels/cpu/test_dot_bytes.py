"""Dot products of bytes: plain integers, by every instruction for them that this machine has, and without any."""

from itertools import product
from typing import Any

import llvmlite.binding as llvm
import pytest
import torch
from llvmlite import ir
from torch import Tensor

from llamita.kernels.cpu import block_dots, dot_bytes, isa, simd, simd_code
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.runtime.program import Kernel, kernel
from tests.unit.kernels.cpu.launch import compiled_for, launch

TRIPLE, _, FEATURES = simd.target()
HAS = set(FEATURES.split(","))
WAYS = {row.dot_u8s8 for row in compiled_for()}
if {"+avx512vl", "+avx512vnni"} <= HAS:
    WAYS.add("vpdpbusd.256")  # what processors with AVX-VNNI have, under another encoding
EXTREMES = (-128, -127, -1, 0, 1, 126, 127)


def three(emit: Any) -> Kernel:
    """A kernel of an operation on a total, words and x, each 64 bytes, and what comes out."""
    operation = v.operation(v.Words(v.Words, v.Words, v.Words), emit)

    def compute(at: int, chunk: int) -> None:
        total, words, x = v.load_words(v.read(at)), v.load_words(v.read(at + 8)), v.load_words(v.read(at + 16))
        v.store_words(v.read(at + 24), operation(total, words, x))

    return kernel(compute)


def pairs_of(first: range, second: tuple[int, ...], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Sixty-four bytes of the first and of the second: every four alike, mixed extremes, and any at all."""
    alike = [(a, b) for a, b in product((first[0], first[-1]), second)]
    cases = [(torch.full((64,), a, dtype=dtype), torch.full((64,), b, dtype=torch.int8)) for a, b in alike]
    values, xs = torch.tensor(list(first), dtype=dtype), torch.tensor(second, dtype=torch.int8)
    for _ in range(20):
        cases.append((values[torch.randint(len(values), (64,))], xs[torch.randint(len(xs), (64,))]))
    return cases


def expect(compute: Kernel, words: Tensor, x: Tensor) -> None:
    """What comes out of a kernel is what integers give."""
    total, out = torch.randint(-(2**30), 2**30, (16,), dtype=torch.int32), torch.empty(16, dtype=torch.int32)
    launch(compute, total, words.contiguous(), x.contiguous(), out)
    assert torch.equal(out, total + (words.int() * x.int()).view(16, 4).sum(-1).int())


@pytest.mark.parametrize("way", sorted(WAYS))
def test_unsigned_codes_times_signed_bytes(way: str) -> None:
    compute = three(dot_bytes.DOT_U8S8[way])
    for codes, x in pairs_of(range(256), EXTREMES, torch.uint8):
        expect(compute, codes, x)


@pytest.mark.parametrize("way", [*sorted(WAYS & set(dot_bytes.DOT_S8S8)), "integers"])
def test_signed_bytes_times_signed_bytes_but_the_least(way: str) -> None:
    compute = three(dot_bytes.DOT_S8S8.get(way, dot_bytes.dot_s8s8_in_integers))
    for weights, x in pairs_of(range(-128, 128), EXTREMES[1:], torch.int8):
        expect(compute, weights, x)


def test_the_operations_take_the_way_of_this_machine() -> None:
    for emit, codes in ((simd_code.dot_u8s8, range(256)), (block_dots._dot_s8s8, range(-128, 128))):
        compute = three(emit)
        for words, x in pairs_of(codes, EXTREMES[1:], torch.uint8 if codes[0] == 0 else torch.int8):
            expect(compute, words, x)


@pytest.mark.parametrize("way", sorted(dot_bytes.PAIRS))
@pytest.mark.parametrize(("bits", "words"), [(4, 8), (5, 4), (6, 2), (7, 1)])
def test_pairs_of_products_gather_in_sixteen_bits(way: str, bits: int, words: int) -> None:
    """As many words as `block_dots` lets gather, all at their largest."""
    if way not in WAYS:
        pytest.skip(f"kernels are compiled for a processor without {way}")
    size = dot_bytes.PAIRS[way]

    def emit(b: Any, total: Any, codes: Any, x: Any) -> Any:
        sums = dot_bytes.pair_products(size, b, codes, x)
        gathered = sums
        for _ in range(words - 1):
            gathered = dot_bytes.add_pairs(b, gathered, sums)
        return dot_bytes.add_up_pairs(size, b, total, gathered)

    compute = three(emit)
    for codes, x in pairs_of(range(1 << bits), EXTREMES[1:], torch.uint8):
        total, out = torch.zeros(16, dtype=torch.int32), torch.empty(16, dtype=torch.int32)
        launch(compute, total, codes, x, out)
        assert torch.equal(out, words * (codes.int() * x.int()).view(16, 4).sum(-1).int())


@pytest.mark.parametrize(("way", "instruction"), [("usdot.128", "usdot"), ("sdot.128", "sdot")])
def test_arm_has_an_instruction_for_it(way: str, instruction: str) -> None:
    """As LLVM compiles it for a machine of that kind; no call is left for a library that nobody has."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    row = next(row for row in isa.INSTRUCTION_SETS if row.dot_u8s8 == way)
    words = ir.VectorType(ir.IntType(32), 16)
    module = ir.Module()
    module.triple = "aarch64-unknown-linux-gnu"
    for name, emit in {"u8s8": dot_bytes.DOT_U8S8[way], "s8s8": dot_bytes.DOT_S8S8[way]}.items():
        function = ir.Function(module, ir.FunctionType(words, [words] * 3), name)
        builder = ir.IRBuilder(function.append_basic_block())
        builder.ret(emit(builder, *function.args))
    features = ",".join(f"+{feature}" for feature in sorted(row.needs))
    machine = llvm.Target.from_triple(module.triple).create_target_machine(cpu=row.cpu, features=features)
    text = machine.emit_assembly(llvm.parse_assembly(str(module)))
    assert f"\t{instruction}\t" in text and "\tsdot\t" in text and "\tbl\t" not in text
