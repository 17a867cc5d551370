"""Kernels compiled for lesser processors than this machine's: the same bits as those of the reference.

All cases on all levels would be compiled for minutes: `LLAMITA_CPU=x86-64-v2 python -m
tests.unit.kernels.cpu.runtime.lesser_cases` runs them.
"""

import json
import os
from dataclasses import dataclass

import pytest
import torch

from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu import dot_bytes, isa
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.runtime.program import kernel
from tests.architecture.source import ROOT
from tests.unit.kernels.cpu.launch import launch
from tests.unit.kernels.cpu.runtime.lesser_cases import CASES
from tests.zygote import Zygote, result

dot4_anywhere = v.operation(v.Words(v.Words, v.Words, v.Words), dot_bytes.dot_u8s8_in_integers)


@kernel
def both_dots(at: int, chunk: int) -> None:
    """total, codes and x of sixteen lanes; the machine's result, then the other."""
    total, codes, x = v.load_words(v.read(at)), v.load_words(v.read(at + 8)), v.load_words(v.read(at + 16))
    for i in range(16):
        v.write_int32(v.read(at + 24) + 4 * i, v.extract_word(v.dot_u8s8(total, codes, x), i))
        v.write_int32(v.read(at + 32) + 4 * i, v.extract_word(dot4_anywhere(total, codes, x), i))


def test_the_dot_product_of_bytes_is_the_same_everywhere() -> None:
    for _ in range(20):
        total = torch.randint(-1_000_000, 1_000_000, (16,), dtype=torch.int32)
        codes, x = torch.randint(256, (64,), dtype=torch.uint8), torch.randint(-128, 128, (64,), dtype=torch.int8)
        codes[:4], x[:4], codes[4:8], x[4:8] = 255, 127, 255, -128
        here, anywhere = torch.empty(2, 16, dtype=torch.int32)
        launch(both_dots, total, codes, x, here, anywhere)
        expected = total + (codes.int() * x.int()).view(16, 4).sum(-1)
        assert torch.equal(here, expected.int()) and torch.equal(anywhere, expected.int())


@dataclass(frozen=True)
class Level:
    """A processor, an instruction set that it lacks, and its cases: each level has some of every kind of kernel."""

    name: str
    lacks: str
    cases: tuple[str, ...]


EVERYWHERE = ("between", "numbers", "prefill bf16")
# One dtype of "decode" a level: what it is compiled to takes four to six seconds.
LEVELS = (
    Level(  # registers of sixteen bytes, and no instruction for dot products of bytes or for a lookup
        "x86-64", "ssse3",
        (*EVERYWHERE, "decode fp32", "product fp32", "product q4_0", "product iq4_nl", "pack q8_0"),
    ),
    Level(  # registers of sixteen bytes; no multiply-add in one, no half floats, no lookup in long registers
        "x86-64-v2", "avx2",
        (*EVERYWHERE, "product fp16", "product q4_k", "product iq4_nl", "pack q5_k", "pack q8_0", "decode fp16"),
    ),
    Level(  # registers of thirty-two bytes
        "x86-64-v3", "avx512f",
        (*EVERYWHERE, "decode bf16", "product fp32", "product bf16", "product q8_0", "product q6_k", "product q4_0",
         "pack q6_k"),
    ),
    Level(  # of sixty-four, but no dot products of bytes or of bf16
        "x86-64-v4", "avx512vnni",
        (*EVERYWHERE, "product bf16", "product q8_0", "product q5_1", "pack q5_1", "decode fp32"),
    ),
)  # fmt: skip


@pytest.mark.early
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_kernels_for_a_lesser_processor_equal_the_reference_bit_for_bit(level: Level, zygote: Zygote) -> None:
    """Where this machine has what the processor lacks: if not, it is one of that kind, and so are all its tests."""
    if not isa.has(level.lacks):
        pytest.skip(f"this machine has no {level.lacks} itself")
    script = f"from tests.unit.kernels.cpu.runtime import lesser_cases; lesser_cases.main(*{level.cases!r})"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "NUMBA_CPU_"))}
    environment = kept | {isa.VARIABLE: level.name, "PYTHONPATH": str(ROOT)}
    assert json.loads(result(zygote.start(script, environment))) == {}


WITH_MATRIX_TILES = """
from numba import types
from llamita.kernels.cpu import isa
features = dict.fromkeys([*isa._host_features(), "amx-tile", "amx-int8"], True)
isa._host_features, isa._lacking = lambda: features, lambda needed: []
from llamita.kernels.cpu.block_kernels import KERNELS
from llamita.kernels.cpu.compile_target import instructions
from llamita.kernels.cpu.runtime.compiler import inline
assert instructions().matrix_tiles
inline(KERNELS["linear_q8_0"]._function).compile((types.int64, types.int64))
"""


@pytest.mark.early
@pytest.mark.skipif(not isa.host()[0].startswith("x86_64"), reason="LLVM is asked for this kind of machine only")
def test_a_product_for_matrix_tiles_can_be_compiled_on_any_machine(zygote: Zygote) -> None:
    """Its types are inferred and LLVM's code is written; to optimize that too would take as long again."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "NUMBA_CPU_"))}
    environment = kept | {isa.VARIABLE: "sapphirerapids", "PYTHONPATH": str(ROOT)}
    assert result(zygote.start(WITH_MATRIX_TILES, environment)) == ""


def kind(case: str) -> str:
    """What a case tests: "product fp16" is of plain products, "product q4_k" of quantized ones."""
    name, _, of = case.partition(" ")
    return f"quantized {name}" if name == "product" and of in FORMATS else name


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_every_kind_of_kernel_is_among_the_cases_of_each_level(level: Level) -> None:
    assert set(level.cases) <= CASES.keys()
    assert {kind(case) for case in level.cases} == {kind(case) for case in CASES}
