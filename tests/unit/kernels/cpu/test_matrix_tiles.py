"""Products by the registers for tiles of a matrix: plain integers, where this machine has them."""

import pytest
import torch
from torch import Tensor

from llamita.kernels.cpu import isa, matrix_tiles
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.runtime.program import Kernel, kernel
from tests.unit.kernels.cpu.launch import launch

pytestmark = pytest.mark.skipif(not isa.chosen().matrix_tiles, reason="this processor has no AMX, or may not use it")
LINE = 200  # bytes from one row of x to the next


@kernel
def of_32_columns(at: int, chunk: int) -> None:
    """x, codes, out."""
    near = v.stack()
    matrix_tiles.configure_32(near)
    matrix_tiles.multiply(v.read(at), LINE, v.read(at + 8), v.read(at + 16))
    matrix_tiles.release()


@kernel
def of_16_columns(at: int, chunk: int) -> None:
    """x, codes, out."""
    near = v.stack()
    matrix_tiles.configure_16(near)
    matrix_tiles.multiply(v.read(at), LINE, v.read(at + 8), v.read(at + 16))
    matrix_tiles.release()


@kernel
def signed(at: int, chunk: int) -> None:
    """Codes around 128, around 8, out."""
    out = v.read(at + 16)
    v.store_words(out, matrix_tiles.signed(v.load_words(v.read(at)), 7))
    v.store_words(out + 64, matrix_tiles.signed(v.load_words(v.read(at + 8)), 3))


def expected(x: Tensor, codes: Tensor, columns: int) -> Tensor:
    """Sums (16, 32) of x (16, LINE) and codes: (columns / 4, 32 rows, 4 columns), as words of two tiles."""
    rows = codes[: columns // 4].permute(1, 0, 2).reshape(32, columns)
    return x[:, :columns].int() @ rows.int().t()


@pytest.mark.parametrize(("compute", "columns"), [(of_32_columns, 32), (of_16_columns, 16)])
@pytest.mark.parametrize("values", [(-128, 127), tuple(range(-128, 128))], ids=["extremes", "any"])
def test_sums_are_those_of_integers(compute: Kernel, columns: int, values: tuple[int, ...]) -> None:
    table = torch.tensor(values, dtype=torch.int8)
    x, codes = table[torch.randint(len(table), (16, LINE))], table[torch.randint(len(table), (8, 32, 4))]
    out = torch.empty(16, 32, dtype=torch.int32)
    launch(compute, x, codes, out)
    assert torch.equal(out, expected(x, codes, columns))


def test_codes_become_signed_bytes() -> None:
    wide, narrow = torch.arange(0, 256, 4, dtype=torch.uint8), torch.arange(64, dtype=torch.uint8) % 16
    out = torch.empty(2, 64, dtype=torch.int8)
    launch(signed, wide, narrow, out)
    assert torch.equal(out.int(), torch.stack((wide.int() - 128, narrow.int() - 8)))
