"""Matrix times few rows, held to reference.few."""

import pytest
import torch

from llamita.kernels import reference
from llamita.kernels.cpu.linear import DENSE
from tests.unit.kernels.cpu.launch import DTYPES, guarded, launch

SIZES = [(1, 1, 1), (3, 15, 2), (5, 16, 3), (17, 17, 4), (7, 63, 5), (33, 64, 7), (9, 129, 8), (19, 200, 17)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns", "batch"), SIZES)
def test_any_size(dtype: torch.dtype, rows: int, columns: int, batch: int) -> None:
    weight, x = torch.randn(rows, columns).to(dtype), torch.randn(batch, columns)
    out, behind = guarded(batch, rows)
    launch(DENSE[dtype], weight, x, out, None, rows, columns, batch, 4, 0, chunks=-(-rows // 4))
    torch.testing.assert_close(out, reference.few(x, weight), rtol=2e-6, atol=1e-5)
    assert bool((behind == 9).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 5])
def test_a_bias_is_added_and_so_is_what_was_there(dtype: torch.dtype, batch: int) -> None:
    weight, x, bias, before = (
        torch.randn(7, 35).to(dtype),
        torch.randn(batch, 35),
        torch.randn(7),
        torch.randn(batch, 7),
    )
    expected = reference.few(x, weight, bias)
    out = before.clone()
    launch(DENSE[dtype], weight, x, out, bias, 7, 35, batch, 3, 1, chunks=3)
    torch.testing.assert_close(out, expected + before, rtol=2e-6, atol=1e-5)
    launch(DENSE[dtype], weight, x, out, bias, 7, 35, batch, 3, 0, chunks=3)
    torch.testing.assert_close(out, expected, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_a_row_of_x_is_its_own(batch: int) -> None:
    """An infinity, as an overflown fp16 model may bring, stays in its row."""
    weight, x = torch.rand(5, 33) + 1, torch.ones(batch, 33)
    x[0, 32] = torch.inf
    out = torch.empty(batch, 5)
    launch(DENSE[torch.float32], weight, x, out, None, 5, 33, batch, 5, 0)
    assert bool(out[0].isinf().all()) and bool(out[1:].isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_of_a_dtype_is_read_right(dtype: torch.dtype) -> None:
    """Times one at one column: subnormals, zeros of both signs and the largest; through lanes and through tails."""
    if dtype == torch.float32:
        weight = torch.tensor([1e-45, -1e-40, 1.1754944e-38, 3.4028235e38, -0.0, 0.1])[:, None]
    else:
        every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
        weight = every[every.isfinite()][:, None]
    for columns in (1, 16):
        wide = torch.nn.functional.pad(weight, (columns - 1, 0)).contiguous()
        x, out = torch.zeros(1, columns), torch.empty(1, len(wide))
        x[0, -1] = 1
        launch(DENSE[dtype], wide, x, out, None, len(wide), columns, 1, 1 << 20, 0)
        assert torch.equal(out[0], weight[:, 0].float())
