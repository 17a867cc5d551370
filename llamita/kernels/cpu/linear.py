"""Products as rows of programs, and one as an operator of torch: compile sees its shapes, but not its insides."""

import torch
from torch import Tensor

from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu.arguments import GatedQuantized, Linear, LinearQuantized, Round
from llamita.kernels.cpu.constants import DTYPES, LINES, Q8_BLOCK
from llamita.kernels.cpu.packed_layout import Packed
from llamita.kernels.cpu.runtime.program import Kernel, Program, named

PLAIN: dict[torch.dtype, Kernel] = {dtype: named("gemm", f"linear_{name}") for dtype, name in DTYPES.items()}
QUANTIZED: dict[str, Kernel] = {name: named("block_kernels", f"linear_{name}") for name in FORMATS}
GATED: dict[str, Kernel] = {name: named("block_kernels", f"gated_{name}") for name in FORMATS}
ROUND = named("elementwise", "round_rows")
FEW = 16  # rows of x up to which the matrix's way from memory takes the longest
_CHUNK = 1 << 16  # bytes of a matrix that a thread takes at once, and a quarter of that at least
_ROWS, _BATCH = 64, 512  # of a chunk of a product with many rows of x


def linear(x: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times a packed matrix: (..., N) in x's dtype. x goes in bytes, one scale for 32 columns."""
    # Calling an operator loads torch's compiler: a second and 100 MB that nobody needs who does not compile.
    call = linear_packed if torch.compiler.is_compiling() else _packed
    return call(x, packed.stream, packed.format_name, packed.rows, bias)


def _packed(x: Tensor, stream: Tensor, kind: str, rows: int, bias: Tensor | None) -> Tensor:
    flat = x.detach().reshape(-1, x.shape[-1]).float().contiguous()
    batch, columns = flat.shape
    out = torch.empty(batch, rows, dtype=torch.float32, device="cpu")
    q8_blocks = torch.empty(batch * columns // 32 * Q8_BLOCK, dtype=torch.uint8, device="cpu")
    bias = None if bias is None else bias.detach().float().contiguous()
    program = Program()
    add_round(program, flat, q8_blocks=q8_blocks)
    add_quantized(program, Packed(stream, format_name=kind, rows=rows, columns=columns), q8_blocks, out, bias, batch)
    program.run()
    return out.view(*x.shape[:-1], rows).to(x.dtype)


linear_packed = torch.library.custom_op("llamita::linear_packed", _packed, mutates_args=(), device_types="cpu")


@linear_packed.register_fake
def _(x: Tensor, stream: Tensor, kind: str, rows: int, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


def input_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of x that a product with this matrix reads."""
    return torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32


def add_plain(
    program: Program,
    weight: Tensor,
    x: Tensor,
    out: Tensor,
    bias: Tensor | None,
    *,
    adds: bool = False,
    concurrent: bool = False,
) -> int:
    """A matrix of torch's times x (batch, K) of its `input_dtype`, into out fp32 (batch, N) or onto it."""
    (rows, columns), batch = weight.shape, len(x)
    size = columns * weight.element_size()
    lines = -(-lines_of_chunk(rows, size) // 4) * 4 if batch <= FEW else _ROWS
    parts = -(-batch // _BATCH)
    count = -(-batch // parts)
    return program.add(
        PLAIN[weight.dtype], Linear(weight, x, out, bias, rows, columns, batch, int(adds), lines, count),
        chunks=-(-rows // lines) * -(-batch // count), concurrent=concurrent,
        streams=lines * size if batch <= FEW else 0,
    )  # fmt: skip


def add_quantized(
    program: Program,
    packed: Packed,
    q8_blocks: Tensor,
    out: Tensor,
    bias: Tensor | None,
    batch: int,
    *,
    adds: bool = False,
    concurrent: bool = False,
) -> int:
    """A packed matrix times q8_blocks of x, into out (batch, N) or onto it."""
    # Several rows take tiles in pairs. Of many a pair is a chunk, as it takes long enough, and threads end together.
    tiles = 2 if batch >= FEW else lines_of_chunk(packed.stream.shape[0], packed.stream.shape[1])
    tiles += tiles % 2 if batch > 1 else 0
    parts, count = parts_of(batch)
    arguments = LinearQuantized(
        packed.stream, q8_blocks, out, bias, packed.rows, packed.columns, batch, tiles, int(adds), count
    )
    chunks, size = -(-packed.stream.shape[0] // tiles) * parts, packed.stream.shape[1]
    return program.add(
        QUANTIZED[packed.format_name], arguments, chunks=chunks, concurrent=concurrent, streams=tiles * size
    )


def add_gated(program: Program, gate: Packed, up: Packed, q8_blocks: Tensor, out: Tensor, batch: int) -> int:
    """silu(gate x) * (up x) of packed matrices of one format and ROWS or more rows of x: q8_blocks (batch, F / 32)."""
    parts, count = parts_of(batch)
    arguments = GatedQuantized(gate.stream, up.stream, q8_blocks, out, gate.rows, gate.columns, batch, count)
    return program.add(GATED[gate.format_name], arguments, chunks=gate.rows // 32 * parts)


def parts_of(batch: int) -> tuple[int, int]:
    """How many even parts the rows of x are split into, and the rows of a part, at most LINES."""
    parts = -(-batch // LINES)
    return parts, -(-batch // max(1, parts))


def add_round(program: Program, x: Tensor, *, halves: Tensor | None = None, q8_blocks: Tensor | None = None) -> int:
    """x fp32 as halves or as q8_blocks."""
    size, columns = x.numel(), 2048
    return program.add(ROUND, Round(x, halves, q8_blocks, columns, size), chunks=-(-size // columns))


def lines_of_chunk(lines: int, size: int) -> int:
    """How many of the `lines` rows of a matrix, of `size` bytes each, a thread takes at once."""
    least, most = max(1, _CHUNK // 4 // size), max(1, _CHUNK // size)
    return max(least, min(most, lines // 8))
