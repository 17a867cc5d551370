"""The products of a training step in bf16 by our kernels, with what makes their input, and with adapters.

Equals `llamita.plans.training` up to the rounding of bf16. Nothing is kept but what makes the input, and of adapters
the r columns between their matrices. Weights in fp32, or in blocks, are rounded where a product reads them.
"""

from collections.abc import Sequence
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
        lines, outs, middles = kernels.rows_of(x), list[Tensor](), list[Tensor]()
        for one in factors:
            middle = None
            if one.pair is not None:
                middle = kernels.products((lines, Right(_padded(one.pair[0]), True)), dtype=HALVES)
                middles.append(middle)
            outs.append(_product(one, x, lines, middle).view(*own[0].shape[:-1], -1))
        ctx.source, ctx.factors = source, factors
        ctx.save_for_backward(*own, *middles)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of all tensors."""
        count, factors = ctx.source.count, ctx.factors
        saved = ctx.saved_tensors  # once: recompute gives each tensor one time
        own, middles = saved[:count], list(saved[count:])
        pulls = [_Pull(one, flat(d_out).to(HALVES), middles) for one, d_out in zip(factors, d_outs, strict=True)]
        d_own: tuple[Tensor | None, ...] = (None,) * count
        if any(ctx.needs_input_grad[2 : 2 + count]):
            terms = [term for pull in pulls for term in pull.terms()]
            x, d_own = ctx.source.back(kernels.products(*terms, dtype=ctx.source.dtype), own)
        else:
            x = ctx.source.make(own)
        wanted = ctx.needs_input_grad[2 + count :]
        d_matrices = [one for i, pull in enumerate(pulls) for one in pull.gradients(x, wanted[3 * i : 3 * i + 3])]
        return None, None, *d_own, *d_matrices


class _Pull:
    """The backward pass of a product, from the gradient bf16 (n, N) of its result."""

    def __init__(self, factors: Factors, d_out: Tensor, middles: list[Tensor]) -> None:
        self.factors, self.d_out, self.lines = factors, d_out, kernels.rows_of(d_out)
        self.middle = None if factors.pair is None else middles.pop(0)
        self.d_middle: Tensor | None = None
        if factors.pair is not None:
            self.d_middle = kernels.products((self.lines, Right(_scaled(factors))), dtype=HALVES)

    def terms(self) -> list[tuple[Lines, Right]]:
        """The products whose sum is the gradient of the input."""
        weight, matrix = self.factors.weight, self.factors.matrix
        if weight is None:
            assert matrix is not None
            weight = matrix.dequantize(HALVES)
        found = [(self.lines, Right(weight))]
        if self.factors.pair is not None and self.d_middle is not None:
            found.append((kernels.rows_of(self.d_middle), Right(_padded(self.factors.pair[0]))))
        return found

    def gradients(self, x: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """The gradients of W, A and B, from the input."""
        weight = self.factors.weight
        d_weight = d_down = d_up = None
        if wanted[0] and weight is not None:
            d_weight = _transposed_product(self.d_out, x).to(weight.dtype)
        if self.factors.pair is not None and self.middle is not None and self.d_middle is not None:
            down, up = self.factors.pair
            rank = len(down)
            d_down = _transposed_product(self.d_middle, x)[:rank].to(down.dtype)
            d_up = _transposed_product(self.middle, self.d_out)[:rank].t().mul(self.factors.scaling).to(up.dtype)
        return d_weight, d_down, d_up


def flat(x: Tensor) -> Tensor:
    """(..., K) as (n, K), contiguous."""
    return x.flatten(0, -2).contiguous()


def _product(factors: Factors, x: Tensor, lines: Lines, middle: Tensor | None) -> Tensor:
    """x (n, K), which is also given as lines, times W, and `middle` (n, r) times B: bf16 (n, N)."""
    terms, out = list[tuple[Lines, Right]](), None
    if factors.weight is not None:
        terms.append((lines, Right(factors.weight, True)))
    else:
        assert factors.matrix is not None
        out = factors.matrix.linear(x)
    if middle is not None:
        terms.append((kernels.rows_of(middle), Right(_scaled(factors), True)))
    return kernels.products(*terms, dtype=HALVES, out=out) if terms else cast("Tensor", out)


def _transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """left (n, N) turned, times right (n, K): fp32 (N, K)."""
    return kernels.products((kernels.columns_of(left), Right(right)), dtype=torch.float32)


def _padded(down: Tensor) -> Tensor:
    """A (r, K) with rows of 0, to a multiple of COLUMNS."""
    return F.pad(down.detach(), (0, 0, 0, -len(down) % COLUMNS))


def _scaled(factors: Factors) -> Tensor:
    """B (N, r) times the scaling, with columns of 0, to a multiple of COLUMNS."""
    assert factors.pair is not None
    up = factors.pair[1].detach()
    return F.pad(up * factors.scaling, (0, -up.shape[1] % COLUMNS))
