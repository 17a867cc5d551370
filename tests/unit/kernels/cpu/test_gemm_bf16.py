"""Sums of products in bf16 equal those of the same rounded numbers in fp64, but for the sums of fp32."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from llamita.kernels.cpu import training
from llamita.kernels.cpu.training import Right

CLOSE = 1e-6  # of the norm: sums of up to a thousand products in fp32
DTYPES = (torch.float32, torch.bfloat16)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def rounded(x: Tensor) -> Tensor:
    """As a product reads it."""
    return x.to(torch.bfloat16).double()


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "out"), [(1, 32, 16), (17, 96, 48), (70, 352, 112), (529, 64, 800)])
def test_products_with_a_matrix_turned(rows: int, columns: int, out: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(rows, columns, dtype=dtype), torch.randn(out, columns, dtype=dtype)
    found = training.products((training.rows_of(x), Right(weight, True)), dtype=torch.float32)
    wanted = rounded(x) @ rounded(weight).t()
    assert found.shape == (rows, out) and distance(found, wanted) < CLOSE
    halves = training.products((training.rows_of(x), Right(weight, True)), dtype=torch.bfloat16)
    assert torch.equal(halves, found.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "out"), [(3, 32, 16), (50, 384, 80)])
def test_products_with_a_matrix_as_it_is(rows: int, columns: int, out: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(rows, columns, dtype=dtype), torch.randn(columns, out, dtype=dtype)
    found = training.products((training.rows_of(x), Right(weight)), dtype=torch.float32)
    assert distance(found, rounded(x) @ rounded(weight)) < CLOSE


@pytest.mark.parametrize(("rows", "left", "right"), [(1, 16, 32), (67, 48, 64), (300, 96, 144)])
def test_columns_on_the_left(rows: int, left: int, right: int) -> None:
    """As the gradient of a weight needs; of an odd number of rows too."""
    x, other = (torch.randn(rows, columns).bfloat16() for columns in (left, right))
    found = training.products((training.columns_of(x), Right(other)), dtype=torch.float32)
    assert distance(found, x.double().t() @ other.double()) < CLOSE


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_of_products_onto_what_is_there(dtype: torch.dtype) -> None:
    x, weight = torch.randn(21, 64), torch.randn(64, 80)
    other, more = torch.randn(21, 32).bfloat16(), torch.randn(80, 32).bfloat16()
    out = torch.randn(21, 80).to(dtype)
    wanted = rounded(x) @ rounded(weight) + other.double() @ more.double().t() + out.double()
    terms = (training.rows_of(x), Right(weight)), (training.rows_of(other), Right(more, True))
    assert training.products(*terms, dtype=dtype, out=out) is out
    assert distance(out, wanted) < (CLOSE if dtype == torch.float32 else 4e-3)


def test_a_product_with_some_of_the_columns() -> None:
    """As of several adapters side by side: sixteen columns from an even one on."""
    x, weight, more = torch.randn(37, 64).bfloat16(), torch.randn(16, 32), torch.randn(16, 16)
    weight[:, 16:] = 0  # which is read, and not added
    lines = training.rows_of(x).part(slice(16, 32))
    found = training.products((lines, Right(weight, True)), (lines, Right(more)), dtype=torch.float32)
    wanted = x[:, 16:32].double() @ (rounded(weight[:, :16]).t() + rounded(more))
    assert distance(found, wanted) < CLOSE


@pytest.mark.parametrize("is_turned", [False, True])
def test_what_is_too_long_is_added_in_parts(monkeypatch: pytest.MonkeyPatch, is_turned: bool) -> None:
    monkeypatch.setattr(training, "_LONG", 16)
    x, weight = torch.randn(19, 96), torch.randn(96, 64)
    right = Right(weight.t().contiguous(), True) if is_turned else Right(weight)
    terms = (training.rows_of(x[:, :32].contiguous()), Right(weight[:32])), (training.rows_of(x), right)
    found = training.products(*terms, dtype=torch.float32)
    wanted = rounded(x[:, :32]) @ rounded(weight[:32]) + rounded(x) @ rounded(weight)
    assert distance(found, wanted) < CLOSE


def test_nothing_is_written_behind_the_result() -> None:
    room = torch.full((19 * 64 + 64,), 9.0)
    out = room[: 19 * 64].view(19, 64).zero_()
    training.products((training.rows_of(torch.randn(19, 32)), Right(torch.randn(64, 32), True)), dtype=torch.float32,
                      out=out)  # fmt: skip
    assert out.any() and (room[19 * 64 :] == 9).all()
