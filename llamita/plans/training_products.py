"""The products of a training step in bf16 by our kernels, with what makes their input, and with adapters.

Equals `llamita.plans.training` up to the rounding of bf16. Nothing is kept but what makes the input, and of adapters
the r columns between their matrices. Weights in fp32, or in blocks, are rounded where a product reads them.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, ClassVar, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llamita.attention.autocast import compute_dtype
from llamita.kernels.cpu import training as kernels
from llamita.kernels.cpu.training import COLUMNS, READ, Lines, Right
from llamita.model.factors import Factors

Own = Sequence[Tensor]
HALVES = torch.bfloat16
ROWS = 16  # what the ranks of adapters are filled up to a multiple of


class Source(Protocol):
    """What makes the input of products from tensors of its own."""

    count: ClassVar[int]  # of these tensors
    dtype: ClassVar[torch.dtype]  # of the gradient that it takes

    def make(self, own: Own) -> Tensor:
        """The input bf16 (n, K)."""
        ...

    def back(self, d_input: Tensor, own: Own) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The input again, and from its gradient (n, K) those of the tensors."""
        ...


class Given:
    """The input itself (..., K)."""

    count: ClassVar[int] = 1
    dtype: ClassVar[torch.dtype] = HALVES

    def make(self, own: Own) -> Tensor:
        """As it is."""
        return flat(own[0]).to(HALVES)

    def back(self, d_input: Tensor, own: Own) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As it is."""
        return self.make(own), (d_input.to(own[0].dtype).view(own[0].shape),)


class Normed:
    """RMSNorm of x (..., D) and scale (D,)."""

    count: ClassVar[int] = 2
    dtype: ClassVar[torch.dtype] = torch.float32

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def make(self, own: Own) -> Tensor:
        """Normalize."""
        return kernels.norm(flat(own[0]), own[1], self.eps)[0]

    def back(self, d_input: Tensor, own: Own) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normalize again, and differentiate."""
        x, scale = flat(own[0]), own[1]
        normed, rstd = kernels.norm(x, scale, self.eps)
        d_x, d_scale = kernels.norm_gradients(x, scale, rstd, d_input)
        return normed, (d_x.view(own[0].shape), d_scale)


class Gated:
    """silu(gate) * up of both (..., F), bf16."""

    count: ClassVar[int] = 2
    dtype: ClassVar[torch.dtype] = HALVES

    def make(self, own: Own) -> Tensor:
        """Multiply."""
        return kernels.gate(*map(flat, own))

    def back(self, d_input: Tensor, own: Own) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Multiply again, and differentiate."""
        product, *found = kernels.gate_gradients(flat(own[0]), flat(own[1]), d_input)
        return product, tuple(one.view(own[0].shape) for one in found)


def is_known(x: Tensor, factors: Sequence[Factors]) -> bool:
    """Whether our kernels know products of x (..., K) in bf16 with these matrices."""
    if compute_dtype(x) != HALVES or x.dtype not in READ or not kernels.is_known(x) or not kernels.has_products():
        return False
    return all(map(_is_known, factors))


def _is_known(factors: Factors) -> bool:
    read = [one for one in (factors.weight, *(factors.pair or ())) if one is not None]
    return all(map(kernels.reads, read)) and not any(side % COLUMNS for side in factors.shape)


def products(source: Source, factors: Sequence[Factors], *own: Tensor) -> tuple[Tensor, ...]:
    """The products (..., N) of what a source makes of its tensors (..., K) with some matrices."""
    trained = [one for factor in factors for one in (factor.weight, *(factor.pair or (None, None)))]
    found: Any = Products.apply(source, tuple(factors), *own, *trained)
    return found


class Products(torch.autograd.Function):
    """Products that share their input."""

    @staticmethod
    def forward(ctx: Any, source: Source, factors: tuple[Factors, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        """tensors: the source's own, then of each product W, A and B, which its factors have too."""
        own = tensors[: source.count]
        x = source.make(own)
        lines, columns = kernels.rows_of(x), _adapter_columns(factors)
        middle, middles = None, None
        if downs := [_padded(one.pair[0]) for one in factors if one.pair is not None]:
            middle = kernels.products((lines, Right(_joined(downs, 0), True)), dtype=HALVES)
            middles = _lines(middle)
        outs = [
            _product(*one, x, lines, middles).view(*own[0].shape[:-1], -1) for one in zip(factors, columns, strict=True)
        ]
        ctx.source, ctx.factors = source, factors
        ctx.save_for_backward(*own, middle)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of all tensors."""
        count, factors = ctx.source.count, ctx.factors
        *own, middle = ctx.saved_tensors  # once: recompute gives each tensor one time
        found = [flat(one).to(HALVES) for one in d_outs]
        lines, d_middle = [kernels.rows_of(one) for one in found], None
        if middle is not None:
            parts = [
                kernels.products((one, Right(_scaled(of, ROWS))), dtype=HALVES)
                for one, of in zip(lines, factors, strict=True)
                if of.pair is not None
            ]
            d_middle = _joined(parts, 1)
        d_own: tuple[Tensor | None, ...] = (None,) * count
        if any(ctx.needs_input_grad[2 : 2 + count]):
            d_input = kernels.products(*_terms(factors, lines, d_middle), dtype=ctx.source.dtype)
            x, d_own = ctx.source.back(d_input, own)
        else:
            x = ctx.source.make(own)
        wanted = ctx.needs_input_grad[2 + count :: 3]
        return None, None, *d_own, *_gradients(factors, x, found, wanted, middle, d_middle)


def _adapter_columns(factors: Sequence[Factors]) -> list[slice]:
    """Of each product, the columns of its adapter among those of all: as many as its rank, a multiple of ROWS, or 0."""
    ranks = [0 if one.pair is None else -(-len(one.pair[0]) // ROWS) * ROWS for one in factors]
    ends = list(accumulate(ranks))
    return [slice(end - rank, end) for end, rank in zip(ends, ranks, strict=True)]


def _terms(
    factors: Sequence[Factors], lines: Sequence[Lines], d_middle: Tensor | None
) -> Iterator[tuple[Lines, Right]]:
    """The products whose sum is the gradient of the input, from those of the results and of what is between A and B."""
    middles = None if d_middle is None else _lines(d_middle)
    for one, own, columns in zip(factors, lines, _adapter_columns(factors), strict=True):
        weight = one.weight
        if weight is None:
            assert one.matrix is not None
            weight = one.matrix.dequantize(HALVES)
        yield own, Right(weight)
        if one.pair is not None and middles is not None:
            yield middles.part(columns), Right(_padded(one.pair[0]))


def _gradients(
    factors: Sequence[Factors], x: Tensor, d_outs: Sequence[Tensor], wanted: Sequence[bool], middle: Tensor | None,
    d_middle: Tensor | None,
) -> Iterator[Tensor | None]:  # fmt: skip
    """The gradients of W, A and B of each product, from its input and the gradient bf16 (n, N) of its result."""
    d_downs = None if d_middle is None else _transposed_product(d_middle, x)
    for one, d_out, is_wanted, columns in zip(factors, d_outs, wanted, _adapter_columns(factors), strict=True):
        weight = one.weight
        yield _transposed_product(d_out, x).to(weight.dtype) if is_wanted and weight is not None else None
        if one.pair is None or middle is None or d_downs is None:
            yield from (None, None)
            continue
        down, up = one.pair
        rank = len(down)
        yield d_downs[columns][:rank].to(down.dtype)
        d_up = _transposed_product(middle[:, columns].contiguous(), d_out)[:rank]
        yield d_up.t().mul(one.scaling).to(up.dtype)


def flat(x: Tensor) -> Tensor:
    """(..., K) as (n, K), contiguous."""
    return x.flatten(0, -2).contiguous()


def _product(factors: Factors, columns: slice, x: Tensor, lines: Lines, middles: Lines | None) -> Tensor:
    """x (n, K), which is also given as lines, times W, and its columns of `middles` times B: bf16 (n, N)."""
    terms, out = list[tuple[Lines, Right]](), None
    if factors.weight is not None:
        terms.append((lines, Right(factors.weight, True)))
    else:
        assert factors.matrix is not None
        out = factors.matrix.linear(x)
    if factors.pair is not None and middles is not None:
        terms.append((middles.part(columns), Right(_scaled(factors, COLUMNS), True)))
    return kernels.products(*terms, dtype=HALVES, out=out) if terms else cast("Tensor", out)


def _transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """left (n, N) turned, times right (n, K): fp32 (N, K)."""
    return kernels.products((kernels.columns_of(left), Right(right)), dtype=torch.float32)


def _lines(x: Tensor) -> Lines:
    """The rows of x (n, R), with columns of 0 to a multiple of COLUMNS."""
    return kernels.rows_of(F.pad(x, (0, -x.shape[1] % COLUMNS)))


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _padded(down: Tensor) -> Tensor:
    """A (r, K) with rows of 0, to a multiple of ROWS."""
    missing = -len(down) % ROWS
    return F.pad(down.detach(), (0, 0, 0, missing)) if missing else down.detach()


def _scaled(factors: Factors, multiple: int) -> Tensor:
    """B (N, r) times the scaling, in bf16, with columns of 0 to a multiple."""
    assert factors.pair is not None
    up = (factors.pair[1].detach() * factors.scaling).to(HALVES)
    return F.pad(up, (0, -up.shape[1] % multiple))
