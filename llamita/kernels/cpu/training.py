"""Products and what is between them in a training step in bf16, by our kernels, on processors with bf16 dot products.

Matrices are 2-D and contiguous. What enters a product is rounded to bf16, and sums are fp32.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from llamita.kernels.cpu.arguments import bits
from llamita.kernels.cpu.constants import DTYPES, LINES_OF_PART, NUMBERS, PANEL
from llamita.kernels.cpu.runtime.program import Kernel, Program, call, named, unsupported_reason
from llamita.kernels.cpu.training_arguments import (
    GateGradients,
    NormGradients,
    PackLines,
    Rotate,
    SoftmaxGradient,
    SumOfProducts,
    Term,
    TrainedNorm,
)

COLUMNS = 32  # what columns of a product's sides are a multiple of
READ = (torch.float32, torch.bfloat16)  # the dtypes of matrices that they read
_LINES = 16  # rows of a chunk of a norm
_FEW, _SHORT = 16, 128  # panels below which a chunk has so few lines, to be work for many threads
_LONG = 1 << 10  # pairs of columns of the left side that stay in the caches while all panels are multiplied
_SIZE = 1 << 14  # elements of a chunk
_PRODUCTS = named("gemm_bf16", "sum_of_products")
_PACK_ROWS = {dtype: named("gemm_bf16", f"pack_rows_{DTYPES[dtype]}") for dtype in READ}
_PACK_COLUMNS = named("gemm_bf16", "pack_columns_bf16")
_NORM, _NORM_GRADIENTS = (
    {dtype: named("layer_gradients", f"{name}_{DTYPES[dtype]}") for dtype in READ}
    for name in ("norm", "norm_gradients")
)
_GATE, _GATE_GRADIENTS, _ROTATE, _SOFTMAX = (
    named("layer_gradients", name) for name in ("gate", "gate_gradients", "rotate", "softmax_gradient")
)


@cache
def has_kernels() -> bool:
    """Whether this machine can run our kernels."""
    return unsupported_reason() is None


def has_pairs() -> bool:
    """Whether this machine has bf16 dot products, which add in pairs."""
    from llamita.kernels.cpu import isa  # it imports LLVM, which only kernels need

    return isa.has("avx512bf16")


def has_products() -> bool:
    """Whether our products are as fast as torch's, which are several times as fast where there are tiles of bf16."""
    from llamita.kernels.cpu import isa

    return has_pairs() and not isa.has("amx-bf16")


def is_known(x: Tensor) -> bool:
    """Whether kernels take a tensor: it is on the CPU, has memory or is a shape alone, and nobody traces it."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not has_kernels():
        return False
    return type(x.data) is Tensor or (is_shape(x) and get_proxy_mode() is None)


def reads(matrix: Tensor) -> bool:
    """Whether products read a matrix as it lies."""
    return matrix.dtype in READ and matrix.is_contiguous() and is_known(matrix)


def is_shape(x: object) -> bool:
    """Whether a tensor is a fake one, of a step whose memory is estimated: results are made, and no kernel runs."""
    return isinstance(x, Tensor) and isinstance(x.data, FakeTensor)


class Lines(NamedTuple):
    """The packed left side of a product, see PackLines: `lines` of them, with `pairs` pairs of columns from `first` on.

    every: the pairs of a line in memory.
    """

    packed: Tensor
    lines: int
    pairs: int
    every: int
    first: int = 0

    def part(self, columns: slice) -> "Lines":
        """Some columns, from an even one on, an even number of them."""
        return self._replace(first=columns.start // 2, pairs=(columns.stop - columns.start) // 2)


class Right(NamedTuple):
    """The right side: a matrix, fp32 or bf16; is_turned: its rows are columns of the product."""

    matrix: Tensor
    is_turned: bool = False


def rows_of(x: Tensor) -> Lines:
    """The rows of x (n, K), fp32 or bf16, K a multiple of COLUMNS, as lines."""
    rows, columns = x.shape
    packed = empty(-(-rows // 16) * 16 * columns, dtype=torch.bfloat16)
    run(_PACK_ROWS[x.dtype], PackLines(x, packed, rows, columns), chunks=-(-rows // 16))
    return Lines(packed, rows, columns // 2, columns // 2)


def columns_of(x: Tensor) -> Lines:
    """The columns of x bf16 (n, K), K a multiple of 16, as lines."""
    rows, columns = x.shape
    packed = empty(columns * -(-rows // 2) * 2, dtype=torch.bfloat16)
    run(_PACK_COLUMNS, PackLines(x, packed, rows, columns), chunks=-(-columns // 64))
    return Lines(packed, columns, -(-rows // 2), -(-rows // 2))


def products(*terms: tuple[Lines, Right], dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The sum of products of lines (n, K) with matrices, (N, K) turned or (K, N): (n, N), or added to `out`."""
    left, (matrix, is_turned) = terms[0]
    columns = matrix.shape[0 if is_turned else 1]
    if dtype != torch.float32 and out is None and any(one.pairs > _LONG for one, _ in terms):
        return products(*terms, dtype=torch.float32).to(dtype)  # parts are added in fp32
    found = empty(left.lines, columns, dtype=dtype) if out is None else out
    if is_shape(found):
        return found
    adds, program = out is not None, Program()
    parts = -(-left.lines // (_SHORT if -(-columns // PANEL) < _FEW else LINES_OF_PART))
    some = -(-left.lines // (16 * parts)) * 16
    parts = -(-left.lines // some)
    panels = _panels(columns, parts)
    for rows in _parts(terms, can_add=found.dtype == torch.float32):
        arguments = SumOfProducts(
            torch.tensor(rows, dtype=torch.int64, device="cpu"),
            len(rows),
            found,
            left.lines,
            columns,
            NUMBERS[dtype],
            int(adds),
            some,
            panels,
        )
        program.add(_PRODUCTS, arguments, chunks=panels * parts)
        adds = True
    program.run()
    return found


def _panels(columns: int, parts: int) -> int:
    """How many panels the columns are divided into: the least for which threads have equally many chunks."""
    groups, threads = columns // 16, torch.get_num_threads()
    least = -(-columns // PANEL)
    even = (count for count in range(least, groups // 2 + 1) if count * parts % threads == 0)
    return next(even, least)


def _parts(terms: Sequence[tuple[Lines, Right]], *, can_add: bool) -> list[list[Term]]:
    """The terms to be added at once: all, but that what is too long for the caches is added part by part."""
    parts = list[list[Term]]([[]])
    for left, right in terms:
        most = _LONG if can_add else left.pairs
        for first in range(0, left.pairs, most):
            if first:
                parts.append([])
            parts[-1].append(_term(left, right, first, min(most, left.pairs - first)))
    return parts


def _term(left: Lines, right: Right, first: int, pairs: int) -> Term:
    """The product of some pairs of columns of the left side."""
    matrix, is_turned = right
    size, stride = matrix.element_size(), matrix.stride(0) * matrix.element_size()
    at = matrix.data_ptr() + 2 * first * (size if is_turned else stride)
    length = len(matrix) if is_turned else min(2 * pairs, len(matrix) - 2 * first)
    lines = left.packed.data_ptr() + 64 * (left.first + first)
    return Term(lines, 64 * left.every, pairs, at, stride, length, NUMBERS[matrix.dtype], int(is_turned))


def norm(x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm of x (n, D), D a multiple of COLUMNS: bf16 (n, D), and what x was multiplied by, fp32 (n,)."""
    out, rstd = empty(*x.shape, dtype=torch.bfloat16), empty(len(x))
    arguments = TrainedNorm(x, scale.float(), out, rstd, len(x), x.shape[1], _LINES, bits(eps))
    run(_NORM[x.dtype], arguments, chunks=-(-len(x) // _LINES))
    return out, rstd


def norm_gradients(x: Tensor, scale: Tensor, rstd: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x (n, D) and scale (D,) from d_out fp32 (n, D)."""
    chunks = -(-len(x) // _LINES)
    d_x, parts = torch.empty_like(x), empty(chunks, x.shape[1])
    arguments = NormGradients(x, scale.float(), rstd, d_out, d_x, parts, len(x), x.shape[1], _LINES)
    run(_NORM_GRADIENTS[x.dtype], arguments, chunks=chunks)
    return d_x, parts.sum(0).to(scale.dtype)


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, all bf16 (n, F), F a multiple of 16."""
    out = torch.empty_like(gate)
    run(_GATE, GateGradients(gate, up, out, None, None, None, _SIZE, out.numel()), chunks=-(-out.numel() // _SIZE))
    return out


def gate_gradients(gate: Tensor, up: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """silu(gate) * up again, and the gradients of gate and up, all bf16."""
    out, d_gate, d_up = (torch.empty_like(gate) for _ in range(3))
    arguments = GateGradients(gate, up, out, d_out, d_gate, d_up, _SIZE, out.numel())
    run(_GATE_GRADIENTS, arguments, chunks=-(-out.numel() // _SIZE))
    return out, d_gate, d_up


def rotated(x: Tensor, cosines: Tensor, sines: Tensor, sign: float = 1.0) -> Tensor:
    """x bf16 (tokens, heads, H), H a multiple of 32, rotated by angles fp32 (tokens, H); sign -1 rotates it back."""
    out = torch.empty_like(x)
    arguments = Rotate(x, out, cosines, sines, x.shape[1], x.shape[2] // 2, bits(sign))
    run(_ROTATE, arguments, chunks=len(x))
    return out


def softmax_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits bf16 (n, V) become their gradients times a total each; the losses and the totals fp32 (n,)."""
    totals, own = empty(len(logits)), empty(len(logits))
    arguments = SoftmaxGradient(logits, targets.contiguous(), totals, own, logits.shape[1])
    run(_SOFTMAX, arguments, chunks=len(logits))
    return totals.log() - own, totals


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for a kernel's numbers, whatever torch's default dtype and device are."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def run(kernel: Kernel, arguments: Sequence[Tensor | int | None], *, chunks: int) -> None:
    """Call one kernel, where its tensors have memory."""
    if any(map(is_shape, arguments)):
        return
    call(kernel, arguments, chunks=chunks)
