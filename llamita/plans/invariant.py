"""Batch-invariant mode: the results of a row do not depend on the other rows and tokens of a pass.

A row of a batch equals the row alone, a token on a cache equals the token in a whole pass, a prompt in chunks the
prompt at once, a padded row the bare one: bit for bit, hidden states and logits, on one machine with one number of
threads. What depends on the shape elsewhere is done here in one shape: matrix products 16 rows at a time, activations
in whole vectors, attention by the backend "fixed". Norms, rotation and residual sums do not depend on it.
Gradients are not invariant: those of weights are sums over the batch.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError
from llamita.model import plan

BACKEND = "fixed"
ROWS = 16  # of a product. Fewer are rounded by their place among them, more make a decode step slower
VECTOR = (
    64  # elements; torch's loops are unrolled over at most this many, then continue one by one with other functions
)
CHUNK = 16_384  # elements, too few for torch to share among threads, which would cut vectors


M = TypeVar("M", bound=nn.Module)


class Attending(Protocol):
    """What the mode asks of a model: its config, and another attention backend."""

    config: LlamaConfig

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Attend by another backend."""
        ...


def invariant(model: M) -> M:
    """Put a finished model into batch-invariant mode; returns the model, changed in place.

    Do it last: modules swapped in afterwards are not invariant. Weights and their names stay. Attention dropout is
    refused when it would be drawn. SinkCache and QuantizedCache keep other keys when a text is cut into other passes,
    and drafts that branch lie at other places than the text they become: with these, cached and uncached do differ.
    Raises UnsupportedError for rotary types whose frequencies depend on the longest row of the batch, and for a model
    whose forward is a plan's (compiled, fused), as such kernels round by the shape.
    """
    attending = cast("Attending", model)
    kind = attending.config.rope_parameters.rope_type
    if attending.config.rope_parameters.depends_on_length:
        raise UnsupportedError(
            f"the batch-invariant mode does not know the rotary type {kind}, whose frequencies depend on the longest "
            "row of a batch: run without it"
        )
    modules = list(model.modules())
    plan.check(model, "invariant", modules)
    plan.remove(model, "invariant")
    before = attending.config.attn_implementation
    plan.apply(model, "invariant", [RowPaddedLinear(one, before) for one in modules if is_linear(one)], also=modules)
    attending.set_attn_implementation(BACKEND)
    for module in modules:
        function = vars(module).get("act_fn")
        if function is not None and not isinstance(function, VectorPaddedActivation):
            vars(module)["act_fn"] = VectorPaddedActivation(function)
    return model


def variant(model: M) -> M:
    """Undo the batch-invariant mode; returns the model, with the attention backend that it had before."""
    plan.remove(model, "invariant")
    return model


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix product: nn.Linear, or what surgery put in its place."""
    return hasattr(module, "in_features")


class RowPaddedLinear(plan.StandIn):
    """Replaces the forward of a matrix product; it always multiplies the same number of rows.

    Libraries choose the order of a sum by the number of rows; with one shape the order is always the same.
    """

    plan = "invariant"

    def __init__(self, module: nn.Module, backend: str = BACKEND) -> None:
        super().__init__(module)
        self.backend = backend  # that the model attended by before

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., K) -> (..., N)."""
        flat = x.reshape(-1, x.shape[-1])
        count = len(flat)
        padded = F.pad(flat, (0, 0, 0, -count % ROWS)).contiguous()
        parts = [self.plain(part) for part in padded.split(ROWS)]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out[:count].view(*x.shape[:-1], out.shape[-1])

    def undo(self, model: nn.Module) -> None:
        """Give the model its backend and its activations back."""
        attending = cast("Attending", model)
        if attending.config.attn_implementation == BACKEND:
            attending.set_attn_implementation(self.backend)
        for module in model.modules():
            function = vars(module).get("act_fn")
            if isinstance(function, VectorPaddedActivation):
                vars(module)["act_fn"] = function.function


class VectorPaddedActivation:
    """An elementwise function that computes every element by the same instructions.

    torch takes most elements in vectors and those left over one by one, by functions that round differently: the last
    of a tensor, and the last of each thread's share.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        """The function of every element: x, of any shape, to the same."""
        flat = x.reshape(-1)
        parts = F.pad(flat, (0, -len(flat) % VECTOR)).split(CHUNK)
        return torch.cat([self.function(part) for part in parts])[: len(flat)].view(x.shape)
