"""Products of any number of rows of x with a matrix in fp32, fp16 or bf16, as torch lays it out: GEMV and GEMM in one.

Must equal reference.product bit for bit, so a row's result does not depend on the other rows. Arguments: `Linear`.
"""

from llamita.kernels.cpu import gemm_narrow as narrow
from llamita.kernels.cpu import gemm_tiles as tiles
from llamita.kernels.cpu import gemm_wide as wide
from llamita.kernels.cpu import isa
from llamita.kernels.cpu.runtime.program import kernel

IS_WIDE = isa.has("avx512f")  # whether a register holds sixteen lanes, and there are 32 of them


@kernel
def linear_fp32(at: int, chunk: int) -> None:
    """A matrix in fp32, x in fp32."""
    if IS_WIDE:
        wide.linear(tiles.floats_of, tiles.floats_of, tiles.add_floats, 16, 4, 4, at, chunk)
    else:
        narrow.linear(False, tiles.floats_of, tiles.floats_of, tiles.add_floats, 16, 4, 4, at, chunk)


@kernel
def linear_bf16(at: int, chunk: int) -> None:
    """A matrix in bf16, x in bf16."""
    if IS_WIDE:
        wide.linear(tiles.words_of, tiles.words_of, tiles.add_words, 32, 2, 2, at, chunk)
    else:
        narrow.linear(True, tiles.words_of, tiles.words_of, tiles.add_words, 32, 2, 2, at, chunk)


@kernel
def linear_fp16(at: int, chunk: int) -> None:
    """A matrix in fp16, x in fp32."""
    wide.linear(tiles.halves_of, tiles.floats_of, tiles.add_floats, 16, 2, 4, at, chunk)
