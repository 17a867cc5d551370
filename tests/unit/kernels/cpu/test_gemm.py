"""Products with a plain matrix, held to reference.product bit for bit."""

import pytest
import torch
from torch import Tensor

from llamita.kernels import reference
from llamita.kernels.cpu import gemm, linear
from llamita.kernels.cpu.arguments import Linear
from llamita.kernels.cpu.runtime.program import Program
from tests.unit.kernels.cpu.launch import DTYPES, call, guarded

KERNELS = dict(zip(DTYPES, (gemm.linear_fp32, gemm.linear_bf16, gemm.linear_fp16), strict=True))
SHAPES = [
    (1, 1, 1),
    (7, 5, 2),
    (3, 16, 3),
    (4, 33, 6),
    (13, 70, 9),
    (36, 64, 1),
    (33, 1100, 14),
    (11, 1664, 33),
    (10, 2050, 7),
    (6, 8230, 13),
]


def product(
    weight: Tensor, x: Tensor, bias: Tensor | None = None, *, rows: int = 8, lines: int = 34, adds: Tensor | None = None
) -> Tensor:
    """What the kernel makes of x (B, K), in chunks of so many rows of the matrix and of x."""
    (n, k), batch = weight.shape, len(x)
    out, behind = guarded(batch, n)
    if adds is not None:
        out.copy_(adds)
    x = x.to(linear.input_dtype(weight))
    arguments = Linear(weight, x, out, bias, n, k, batch, int(adds is not None), rows, lines)
    call(KERNELS[weight.dtype], arguments, chunks=-(-n // rows) * -(-batch // lines), threads=2)
    assert bool((behind == 9).all())
    return out.clone()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns", "batch"), SHAPES)
def test_every_shape_equals_the_reference(dtype: torch.dtype, rows: int, columns: int, batch: int) -> None:
    weight, x, bias = torch.randn(rows, columns).to(dtype), torch.randn(batch, columns), torch.randn(rows)
    expected = reference.product(x, weight, bias)
    assert torch.equal(product(weight, x, bias), expected)
    assert torch.equal(product(weight, x, bias, rows=4, lines=5), expected)
    before = torch.randn(batch, rows)
    assert torch.equal(product(weight, x, bias, adds=before), expected + before)
    exact = x.to(linear.input_dtype(weight)).double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(expected.double(), exact, rtol=0, atol=1e-6 * columns)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_far_apart_numbers_are_added_in_the_stated_order(dtype: torch.dtype) -> None:
    weight = (torch.randn(9, 130) * 10.0 ** torch.randint(-4, 4, (9, 130))).to(dtype)
    x = torch.randn(8, 130) * 10.0 ** torch.randint(-4, 4, (8, 130))
    assert torch.equal(product(weight, x), reference.product(x, weight))


def test_denormals_are_zero() -> None:
    """The instruction for pairs of bf16 takes them so, and no other way may differ."""
    weight, x = torch.full((4, 32), 1e-39).bfloat16(), torch.full((1, 32), 1e30)
    assert bool((product(weight, x) == 0).all())
    assert bool((product(weight.float(), x) == 0).all())


@pytest.mark.parametrize("batch", [1, 5, 16, 17, 400])
def test_a_row_of_a_program(batch: int) -> None:
    weight, x = torch.randn(70, 96).bfloat16(), torch.randn(batch, 96).bfloat16()
    out, program = torch.zeros(batch, 70), Program()
    linear.add_plain(program, weight, x, out, None)
    program.run(2)
    alone = torch.cat([product(weight, x[i : i + 1]) for i in range(batch)])
    assert torch.equal(out, alone)
