"""Products with the kernels as operators of torch: compile and export see them, with shapes but not their insides."""

import torch
from torch import Tensor

from llamita.kernels.layout import DTYPES, LINES, RECORD, ROWS
from llamita.kernels.packed import LAYOUTS, Packed
from llamita.kernels.program import Kernel, Program, named

DENSE: dict[torch.dtype, Kernel] = {dtype: named("dense", f"linear_{name}") for dtype, name in DTYPES.items()}
PACKED: dict[str, Kernel] = {kind: named("blocks", f"linear_{kind}") for kind in LAYOUTS}
FEW = 16  # rows of x up to which our product of plain weights is the faster
_CHUNK = 1 << 16  # bytes of weights that a thread takes at once, and a quarter of that at least


def linear(x: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times a packed matrix: (..., N) in x's dtype. x goes in bytes, one scale for 32 columns."""
    # Calling an operator loads torch's compiler: a second and 100 MB that nobody needs who does not compile.
    call = linear_packed if torch.compiler.is_compiling() else _packed
    return call(x, packed.stream, packed.kind, packed.rows, bias)


def few(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear for few rows of x: fp32 sums, the result in x's dtype. weight (N, K) in fp32, bf16 or fp16."""
    return (linear_few if torch.compiler.is_compiling() else _few)(x, weight, bias)


def _packed(x: Tensor, stream: Tensor, kind: str, rows: int, bias: Tensor | None) -> Tensor:
    flat = x.detach().reshape(-1, x.shape[-1]).float().contiguous()
    batch, columns = flat.shape
    out = torch.empty(batch, rows)
    records = torch.empty(batch * columns // 32 * RECORD, dtype=torch.uint8)
    bias = None if bias is None else bias.detach().float().contiguous()
    program = Program()
    add_bytes(program, flat, records)
    add_packed(program, Packed(stream, kind=kind, rows=rows, columns=columns), records, out, bias, batch)
    program.run()
    return out.view(*x.shape[:-1], rows).to(x.dtype)


def _few(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    flat = x.detach().reshape(-1, x.shape[-1]).float().contiguous()
    out = torch.empty(flat.shape[0], weight.shape[0])
    bias = None if bias is None else bias.detach().float().contiguous()
    program = Program()
    add_dense(program, weight.detach().contiguous(), flat, out, bias, flat.shape[0])
    program.run()
    return out.view(*x.shape[:-1], weight.shape[0]).to(x.dtype)


linear_packed = torch.library.custom_op("llamita::linear_packed", _packed, mutates_args=(), device_types="cpu")
linear_few = torch.library.custom_op("llamita::linear_few", _few, mutates_args=(), device_types="cpu")


@linear_packed.register_fake
def _(x: Tensor, stream: Tensor, kind: str, rows: int, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


@linear_few.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


# Rows of programs


def add_dense(
    program: Program,
    weight: Tensor,
    x: Tensor,
    out: Tensor,
    bias: Tensor | None,
    batch: int,
    *,
    adds: bool = False,
    beside: bool = False,
) -> int:
    """A matrix of torch's times x fp32 (batch, K), into out (batch, N) or, where it `adds`, onto it."""
    rows, columns = weight.shape
    lines = lines_of_chunk(rows, columns * weight.element_size())
    return program.add(
        DENSE[weight.dtype], weight, x, out, bias, rows, columns, batch, lines, int(adds),
        chunks=-(-rows // lines), beside=beside,
    )  # fmt: skip


def add_packed(
    program: Program,
    packed: Packed,
    records: Tensor,
    out: Tensor,
    bias: Tensor | None,
    batch: int,
    *,
    adds: bool = False,
    beside: bool = False,
) -> int:
    """A packed matrix times records of x, into out (batch, N) or onto it."""
    tiles = lines_of_chunk(packed.stream.shape[0], packed.stream.shape[1])
    tiles += tiles % 2 if batch >= ROWS else 0  # for many rows they are taken in pairs
    across = -(-packed.stream.shape[0] // tiles)
    parts = -(-batch // LINES)
    return program.add(
        PACKED[packed.kind], packed.stream, records, out, bias, packed.rows, packed.columns, batch, tiles, int(adds),
        -(-batch // max(1, parts)), chunks=across * parts, beside=beside,
    )  # fmt: skip


def add_bytes(program: Program, x: Tensor, records: Tensor) -> int:
    """x fp32 as records of bytes."""
    size, columns = x.numel(), 2048
    return program.add(named("elementwise", "bytes_of"), x, records, columns, size, chunks=-(-size // columns))


def lines_of_chunk(lines: int, size: int) -> int:
    """How many rows of a matrix, of so many bytes each, a thread takes at once."""
    least, most = max(1, _CHUNK // 4 // size), max(1, _CHUNK // size)
    return max(least, min(most, lines // 8))
