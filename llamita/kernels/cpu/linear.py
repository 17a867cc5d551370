"""Products with the kernels as operators of torch: compile and export see them, with shapes but not their insides."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu.constants import DTYPES, LINES, Q8_BLOCK, ROWS
from llamita.kernels.cpu.packed_layout import Packed
from llamita.kernels.cpu.runtime.program import Kernel, Program, named

DENSE: dict[torch.dtype, Kernel] = {dtype: named("gemv", f"linear_{name}") for dtype, name in DTYPES.items()}
PACKED: dict[str, Kernel] = {name: named("block_kernels", f"linear_{name}") for name in FORMATS}
MANY, GATED_MANY = named("gemm_bf16", "linear_many"), named("gemm_bf16", "gated_many")
GATED: dict[str, Kernel] = {name: named("block_kernels", f"gated_{name}") for name in FORMATS}
TURNED = named("gemv_bf16_small_batch", "linear_bf16")
WIDE = 4096  # columns beyond which two rows of x fill the first cache, so that it pays to turn the weights
FEW = 16  # rows of x up to which our products in fp32 are the faster, and a whole pass is one program
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
    out = torch.empty(batch, rows, dtype=torch.float32, device="cpu")
    records = torch.empty(batch * columns // 32 * Q8_BLOCK, dtype=torch.uint8, device="cpu")
    bias = None if bias is None else bias.detach().float().contiguous()
    program = Program()
    add_quantize(program, flat, records)
    add_packed(program, Packed(stream, kind=kind, rows=rows, columns=columns), records, out, bias, batch)
    program.run()
    return out.view(*x.shape[:-1], rows).to(x.dtype)


def _few(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    flat = x.detach().reshape(-1, x.shape[-1]).float().contiguous()
    out = torch.empty(flat.shape[0], weight.shape[0], dtype=torch.float32, device="cpu")
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
    lines, kernel = lines_of_chunk(rows, columns * weight.element_size()), DENSE[weight.dtype]
    is_much = batch > 2 or (batch == 2 and columns > WIDE)
    if is_much and _has_wide_registers() and weight.dtype == torch.bfloat16 and rows % 16 == 0 and columns % 32 == 0:
        lines, kernel = -(-lines // 32) * 32, TURNED
    return program.add(
        kernel, weight, x, out, bias, rows, columns, batch, lines, int(adds),
        chunks=-(-rows // lines), beside=beside, streams=lines * columns * weight.element_size(),
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
    parts, lines = parts_of(batch)
    return program.add(
        PACKED[packed.kind], packed.stream, records, out, bias, packed.rows, packed.columns, batch, tiles, int(adds),
        lines, chunks=across * parts, beside=beside, streams=tiles * packed.stream.shape[1],
    )  # fmt: skip


def takes_many(weights: Sequence[Tensor]) -> bool:
    """Whether `add_many` and `add_gated_many` can multiply with these, and are the faster way on this machine.

    That is one which multiplies pairs of bf16, but not tiles of them, which torch's library would use.
    """
    fit = (w.shape[0] % 16 == 0 and w.shape[1] % 32 == 0 and w.is_contiguous() for w in weights)
    return all(w.dtype == torch.bfloat16 for w in weights) and all(fit) and _multiplies_pairs()


@cache
def _multiplies_pairs() -> bool:
    return "+avx512bf16" in _features() and "+amx-bf16" not in _features()


@cache
def _has_wide_registers() -> bool:
    """Whether the sums of turned weights stay in registers: eight vectors of sixteen lanes, and what makes them."""
    return "+avx512f" in _features()


def _features() -> list[str]:
    from llamita.kernels.cpu import isa  # with it comes LLVM, which only who runs kernels needs

    return isa.target()[2].split(",")


def add_many(
    program: Program, weight: Tensor, x: Tensor, out: Tensor, bias: Tensor | None, *, beside: bool = False
) -> int:
    """A matrix in bf16 times more than FEW rows of x bf16 (B, K), into out bf16 (B, N). bias: fp32."""
    (rows, columns), (parts, lines) = weight.shape, parts_of(len(x))
    return program.add(
        MANY, weight, x, out, bias, rows, columns, len(x), lines, chunks=-(-rows // 32) * parts, beside=beside
    )


def add_gated_many(program: Program, gate: Tensor, up: Tensor, x: Tensor, out: Tensor) -> int:
    """silu(gate x) * (up x) of more than FEW rows of x (B, K), into out (B, F), all in bf16."""
    (rows, columns), (parts, lines) = gate.shape, parts_of(len(x))
    return program.add(GATED_MANY, gate, up, x, out, rows, columns, len(x), lines, chunks=rows // 16 * parts)


def add_gated(program: Program, gate: Packed, up: Packed, records: Tensor, out: Tensor, batch: int) -> int:
    """silu(gate x) * (up x) of packed matrices of one kind and ROWS or more rows of x, as records (batch, F / 32)."""
    parts, lines = parts_of(batch)
    return program.add(
        GATED[gate.kind], gate.stream, up.stream, records, out, gate.rows, gate.columns, batch, lines,
        chunks=gate.rows // 32 * parts,
    )  # fmt: skip


def parts_of(batch: int) -> tuple[int, int]:
    """Into how many parts rows of x are shared out evenly, and the rows of one, at most LINES."""
    parts = -(-batch // LINES)
    return parts, -(-batch // max(1, parts))


def add_quantize(program: Program, x: Tensor, records: Tensor) -> int:
    """x fp32 as records of bytes."""
    size, columns = x.numel(), 2048
    return program.add(named("elementwise", "quantize_rows"), x, records, columns, size, chunks=-(-size // columns))


def lines_of_chunk(lines: int, size: int) -> int:
    """How many rows of a matrix, of so many bytes each, a thread takes at once."""
    least, most = max(1, _CHUNK // 4 // size), max(1, _CHUNK // size)
    return max(least, min(most, lines // 8))
