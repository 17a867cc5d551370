"""Linear cross-entropy: the loss of a head's logits, of which only a chunk is ever in memory.

Equals `llamita.model.loss.cross_entropy` of the head's logits. Each chunk's gradients are computed with its loss, so
the backward pass computes no logits again (as in Liger's FusedLinearCrossEntropy and torch's F.linear_cross_entropy).
"""

from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from llamita.errors import UsageError
from llamita.kernels.cpu import training as kernels
from llamita.kernels.cpu.training import COLUMNS, Right
from llamita.model.layers import at_least_fp32
from llamita.model.loss import IGNORED
from llamita.model.plan import has_hooks
from llamita.model.stored import StoredWeight

_LINEAR = nn.Linear.forward  # which may be replaced


def chunked_cross_entropy(
    hidden_states: Tensor, head: nn.Module, targets: Tensor, *, chunk: int, num_items: Tensor | int | None = None,
    z_loss: float = 0.0,
) -> Tensor:  # fmt: skip
    """Cross-entropy of `head(hidden_states)` without ever holding the logits of more than `chunk` tokens.

    hidden_states (..., D), head D -> V, targets (...). The loss is in fp32, or in fp64 where the hidden states are.
    Sums run in another order than in the loss of all logits: 1e-6 relative in fp32, 1e-12 in fp64; with bf16 logits the
    head's gradient is rounded to bf16 once a chunk. A head that is neither a plain nn.Linear nor a stored matrix
    computes its logits twice. z_loss: how many times the square of each token's log Z, the logarithm of its softmax's
    denominator, is added (PaLM, arXiv:2204.02311). Raises UsageError in a second backward pass of the same loss.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}: it must be at least 1 token")
    rows, targets = hidden_states.flatten(0, -2), targets.reshape(-1).to(hidden_states.device)
    if is_plain(head):
        weight = head.get_parameter("weight")
        total: Any = Summed.apply(rows, weight, targets, chunk, torch.is_grad_enabled(), None, z_loss)
    elif is_stored(head):
        matrix = cast("StoredWeight[Any]", head).matrix
        total = Summed.apply(rows, None, targets, chunk, torch.is_grad_enabled(), matrix, z_loss)
    elif len(rows) <= chunk:
        total = _summed(head, rows, targets, z_loss)
    else:
        parts = zip(rows.split(chunk), targets.split(chunk), strict=True)
        total = torch.stack([checkpoint(_summed, head, *part, z_loss, use_reentrant=False) for part in parts]).sum()
    return total / ((targets != IGNORED).sum() if num_items is None else num_items)


def is_plain(head: nn.Module) -> bool:
    """Whether a head is a product with one whole matrix and nothing else: no bias, adapter, hook, plan or shard."""
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    if hasattr(head.weight, "__tensor_flatten__"):  # a shard (DTensor), or another tensor made of tensors
        return False
    return not has_hooks(head) and nn.Linear.forward is _LINEAR


def is_stored(head: nn.Module) -> bool:
    """Whether a head is a product with a matrix in a format of its own and nothing else."""
    return isinstance(head, StoredWeight) and getattr(head, "bias", None) is None and not has_hooks(head)


def _summed(head: nn.Module, rows: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    logits = at_least_fp32(head(rows))
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    if z_loss:
        loss = loss + z_loss * torch.where(targets != IGNORED, logits.logsumexp(-1).square(), 0.0).sum()
    return loss


class Summed(torch.autograd.Function):
    """The summed loss () of rows (n, D), a head (V, D) and targets (n,), with the gradients of both."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor | None, targets: Tensor, chunk: int, has_backward: bool, matrix: Any,
        z_loss: float,
    ) -> Tensor:  # fmt: skip
        """The loss; `has_backward` says whether gradients are wanted. Products run in autocast's dtype, if it is on.

        matrix: the head as a stored matrix, where there is no weight.
        """
        device = rows.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
        wants_rows, wants_weight = (wanted and has_backward for wanted in ctx.needs_input_grad[:2])
        d_rows = torch.empty_like(rows) if wants_rows else None
        d_weight = None
        if wants_weight and weight is not None:
            d_weight = torch.zeros_like(weight, dtype=_sum_dtype(dtype))
        total = torch.zeros((), dtype=_sum_dtype(dtype), device=rows.device)
        with torch.autocast(device, enabled=False):
            head = _head_of(rows, weight, matrix, dtype, z_loss)
            for first in range(0, len(rows), chunk):
                part = slice(first, first + chunk)
                logits = head.logits(rows[part])
                loss, d_logits, scale = head.softmax(logits, targets[part])
                total += loss
                if d_rows is not None:
                    d_rows[part] = head.d_rows(d_logits) * scale
                if d_weight is not None:
                    head.add_gradient(d_weight, d_logits, rows[part] * scale)
                del logits, d_logits  # before the next chunk's are there
        ctx.gradients = (d_rows, None if d_weight is None else d_weight.to(cast("Tensor", weight).dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients that forward computed, times that of the loss ()."""
        if ctx.gradients is None:
            raise UsageError("the chunked loss has one backward pass: compute the loss again for another")
        (scale,), (d_rows, d_weight) = gradients, ctx.gradients
        ctx.gradients = None
        found = [None if one is None else one.mul_(scale) for one in (d_rows, d_weight)]
        return *found, None, None, None, None, None


class _Head:
    """The products of a head (V, D), in a dtype."""

    def __init__(self, weight: Tensor | None, matrix: Any, dtype: torch.dtype, z_loss: float) -> None:
        self.stored, self.dtype, self.own, self.z_loss = matrix, dtype, weight, z_loss

    @cached_property
    def weight(self) -> Tensor:
        """In the dtype of products; of a stored one only the gradient of rows needs it."""
        return self.stored.dequantize(self.dtype) if self.own is None else self.own.to(self.dtype)

    def logits(self, rows: Tensor) -> Tensor:
        """Rows (n, D) -> (n, V)."""
        if self.stored is not None:
            return self.stored.linear(rows).to(self.dtype)
        return rows.to(self.dtype) @ self.weight.t()

    def softmax(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `_chunk`."""
        return _chunk(logits, targets, self.z_loss)

    def d_rows(self, d_logits: Tensor) -> Tensor:
        """The gradient (n, D) of rows from that of logits (n, V)."""
        return d_logits @ self.weight

    def add_gradient(self, total: Tensor, d_logits: Tensor, rows: Tensor) -> None:
        """Add the gradient of the weight (V, D), which may be in a wider dtype."""
        if total.dtype == self.dtype:
            total.addmm_(d_logits.t(), rows.to(self.dtype))
        else:
            total += d_logits.t() @ rows.to(self.dtype)


class _KernelHead(_Head):
    """The same in bf16 by our kernels, which read a weight in fp32 or bf16 as it is, and keep no logits in fp32."""

    @cached_property
    def weight(self) -> Tensor:
        """As it is; a stored one in bf16."""
        return self.stored.dequantize(self.dtype) if self.own is None else self.own.detach()

    def logits(self, rows: Tensor) -> Tensor:
        """Rows (n, D) -> (n, V)."""
        if self.stored is not None:
            return super().logits(rows)
        return kernels.products((kernels.rows_of(rows), Right(self.weight, True)), dtype=self.dtype)

    def softmax(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `_chunk`; the gradient takes the logits' place."""
        is_learned = targets != IGNORED
        if not self.z_loss:
            losses, totals = kernels.softmax_gradient(logits, targets)
            return torch.where(is_learned, losses, 0.0).sum(), logits, (is_learned / totals)[:, None]
        index = torch.where(is_learned, targets, 0)[:, None]
        own = logits.gather(1, index)[:, 0].float()
        losses, totals = kernels.softmax_gradient(logits, targets)
        logarithms = losses + own
        factor = 1 + 2 * self.z_loss * logarithms
        logits.scatter_add_(1, index, (totals - totals / factor)[:, None].to(logits.dtype))  # it is multiplied later
        losses = losses + self.z_loss * logarithms.square()
        return torch.where(is_learned, losses, 0.0).sum(), logits, (is_learned * factor / totals)[:, None]

    def d_rows(self, d_logits: Tensor) -> Tensor:
        """The gradient (n, D) of rows from that of logits (n, V)."""
        return kernels.products((kernels.rows_of(d_logits), Right(self.weight)), dtype=torch.float32)

    def add_gradient(self, total: Tensor, d_logits: Tensor, rows: Tensor) -> None:
        """Add the gradient of the weight (V, D)."""
        kernels.products((kernels.columns_of(d_logits), Right(rows.to(self.dtype))), dtype=total.dtype, out=total)


def _head_of(rows: Tensor, weight: Tensor | None, matrix: Any, dtype: torch.dtype, z_loss: float) -> _Head:
    """The head's products by our kernels where they know them, else by torch."""
    one = matrix if weight is None else weight
    is_known = kernels.is_known(rows) and kernels.has_products() and not any(side % COLUMNS for side in one.shape)
    is_known = is_known and (weight is None or kernels.reads(weight))
    kind = _KernelHead if dtype == torch.bfloat16 and is_known and rows.dtype in kernels.READ else _Head
    return kind(weight, matrix, dtype, z_loss)


def _chunk(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """The summed loss of a chunk's logits, and its gradient to them as (n, V) times (n, 1).

    The softmax's denominators are left to the factor, which costs a pass over (n, D) rather than (n, V).
    """
    dtype, logits = logits.dtype, at_least_fp32(logits)
    is_learned = (targets != IGNORED)[:, None]
    index = torch.where(is_learned, targets[:, None], 0)
    most = logits.amax(-1, keepdim=True)
    logits -= most
    of_target = logits.gather(1, index)
    exp = logits.exp_()
    total = exp.sum(-1, keepdim=True)
    losses = total.log() - of_target
    if z_loss:
        logarithms = total.log() + most
        losses += z_loss * logarithms.square()
        exp *= 1 + 2 * z_loss * logarithms
    exp.scatter_add_(1, index, -total)
    return torch.where(is_learned, losses, 0.0).sum(), exp.to(dtype), is_learned / total


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
