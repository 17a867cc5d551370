"""A few rows of x with a turned matrix in bf16, held to reference.few; and when that way is taken."""

import pytest
import torch

from llamita.kernels import reference
from llamita.kernels.cpu import isa, linear
from llamita.kernels.cpu.linear import add_dense
from llamita.kernels.cpu.runtime.program import Program
from tests.unit.kernels.cpu.launch import guarded

SIZES = [(16, 32, 3), (48, 96, 4), (32, 288, 5), (80, 544, 16), (176, 64, 21)]  # N, K, B


@pytest.fixture(autouse=True)
def any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way is right everywhere, though not the faster one."""
    monkeypatch.setattr(linear, "_has_wide_registers", lambda: True)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The kernels that programs are given."""
    kernels: list[object] = []
    add = Program.add
    monkeypatch.setattr(
        Program, "add", lambda self, kernel, *a, **k: (kernels.append(kernel), add(self, kernel, *a, **k))[1]
    )
    return kernels


def product(
    weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, before: torch.Tensor | None
) -> torch.Tensor:
    out, behind = guarded(len(x), len(weight))
    if before is not None:
        out.copy_(before)
    program = Program()
    add_dense(program, weight, x, out, bias, len(x), adds=before is not None)
    program.run()
    assert bool((behind == 9).all())
    return out


@pytest.mark.parametrize(("rows", "columns", "batch"), SIZES)
def test_any_size(rows: int, columns: int, batch: int, taken: list[object]) -> None:
    weight, x = torch.randn(rows, columns).bfloat16(), torch.randn(batch, columns)
    bias, before = torch.randn(rows), torch.randn(batch, rows)
    expected = reference.few(x, weight)
    torch.testing.assert_close(product(weight, x, None, None), expected, rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(product(weight, x, bias, before), expected + bias + before, rtol=2e-6, atol=2e-5)
    assert taken == [linear.TURNED] * 2


def test_a_row_of_x_is_its_own() -> None:
    """An infinity stays in its row, and a row does not depend on its neighbours."""
    weight, x = torch.rand(32, 64).bfloat16() + 1, torch.randn(7, 64)
    alone = torch.cat([product(weight, row.expand(3, -1).contiguous(), None, None)[:1] for row in x])
    x[2, 5] = torch.inf
    out = product(weight, x, None, None)
    assert bool(out[2].isinf().all())
    assert torch.equal(out[[0, 1, 3, 4, 5, 6]], alone[[0, 1, 3, 4, 5, 6]])


@pytest.mark.parametrize("shape", [(16, 32, 2), (24, 32, 4), (16, 48, 4)])
def test_what_is_left_to_the_other_kernel(shape: tuple[int, int, int], taken: list[object]) -> None:
    rows, columns, batch = shape
    weight, x = torch.randn(rows, columns).bfloat16(), torch.randn(batch, columns)
    torch.testing.assert_close(product(weight, x, None, None), reference.few(x, weight), rtol=2e-6, atol=2e-5)
    product(torch.randn(16, 32), torch.randn(4, 32), None, None)
    assert linear.TURNED not in taken
    weight, x = torch.randn(16, linear.WIDE + 32).bfloat16(), torch.randn(2, linear.WIDE + 32)
    product(weight, x, None, None)
    assert taken[-1] is linear.TURNED


@pytest.mark.parametrize(("features", "is_turned"), [("+avx2,+avx512f", True), ("+avx2", False), ("", False)])
def test_the_machine_decides(features: str, is_turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fixture's answer
    monkeypatch.setattr(isa, "target", lambda: ("any", "any", features))
    linear._has_wide_registers.cache_clear()
    try:
        assert linear._has_wide_registers() is is_turned
    finally:
        linear._has_wide_registers.cache_clear()
