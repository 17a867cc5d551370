"""Many rows of x with plain matrices in bf16, and the gated layer in one go, plain or packed."""

import pytest
import torch
import torch.nn.functional as F

from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu import elementwise, isa, linear
from llamita.kernels.cpu.constants import Q8_BLOCK
from llamita.kernels.cpu.linear import add_gated, add_gated_many, add_many, add_packed, add_quantize
from llamita.kernels.cpu.packed_layout import pack
from llamita.kernels.cpu.runtime.program import Program
from tests.unit.kernels.cpu.launch import launch, quantized

SIZES = [(16, 32, 17), (48, 96, 18), (32, 288, 31), (64, 512, 259), (112, 544, 600)]  # N, K, B


def bf16(*shape: int) -> torch.Tensor:
    return torch.randn(shape).bfloat16()


@pytest.mark.parametrize(("rows", "columns", "batch"), SIZES)
@pytest.mark.parametrize("is_biased", [False, True])
def test_many_rows(rows: int, columns: int, batch: int, is_biased: bool) -> None:
    weight, x, bias = bf16(rows, columns), bf16(batch, columns), torch.randn(rows) if is_biased else None
    out = torch.full((batch + 1, rows), 9.0, dtype=torch.bfloat16)
    program = Program()
    add_many(program, weight, x, out[:batch], bias)
    program.run()
    expected = F.linear(x.float(), weight.float(), bias)
    torch.testing.assert_close(out[:batch].float(), expected, rtol=8e-3, atol=1e-5 * columns)  # sums are fp32
    assert bool((out[batch] == 9).all())


@pytest.mark.parametrize(("rows", "columns", "batch"), SIZES)
def test_the_gated_layer_in_bf16(rows: int, columns: int, batch: int) -> None:
    gate, up, x = bf16(rows, columns) / 4, bf16(rows, columns) / 4, bf16(batch, columns)
    out = torch.full((batch + 1, rows), 9.0, dtype=torch.bfloat16)
    program = Program()
    add_gated_many(program, gate, up, x, out[:batch])
    program.run()
    expected = F.silu(F.linear(x.float(), gate.float())) * F.linear(x.float(), up.float())
    torch.testing.assert_close(out[:batch].float(), expected, rtol=8e-3, atol=1e-6 * columns)  # sums are fp32
    assert bool((out[batch] == 9).all())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("rows", "batch"), [(32, 4), (96, 5), (64, 300)])
def test_the_gated_layer_of_packed_matrices_is_to_the_bit_that_in_steps(kind: str, rows: int, batch: int) -> None:
    gate, up = (pack(quantized(kind, rows, 512), kind) for _ in "gu")
    x = torch.randn(batch, 512)
    records = torch.zeros(x.numel() // 32 * Q8_BLOCK, dtype=torch.uint8)
    mine, expected = (torch.zeros(batch * rows // 32 * Q8_BLOCK + 8, dtype=torch.uint8) for _ in "me")
    one, two, program = torch.empty(batch, rows), torch.empty(batch, rows), Program()
    add_quantize(program, x, records)
    add_gated(program, gate, up, records, mine, batch)
    add_packed(program, gate, records, one, None, batch)
    add_packed(program, up, records, two, None, batch)
    program.run()
    launch(elementwise.gate_fp32, one, two, one, rows, one.numel(), expected, chunks=batch)
    assert torch.equal(mine, expected) and bool(mine.any())


@pytest.mark.parametrize(
    ("features", "is_faster"),
    [
        ("+avx512f,+avx512bf16", True),
        ("+avx512bf16,-amx-bf16", True),
        ("+avx512bf16,+amx-bf16", False),
        ("+avx2", False),
    ],
)
def test_the_machine_decides(features: str, is_faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "target", lambda: ("x86_64", "any", features))
    linear._multiplies_pairs.cache_clear()
    try:
        assert linear.takes_many([bf16(16, 32)]) is is_faster
        for other in (bf16(24, 32), bf16(16, 48), bf16(16, 32).float(), bf16(32, 32).t()):
            assert not linear.takes_many([bf16(16, 32), other])
    finally:
        linear._multiplies_pairs.cache_clear()
