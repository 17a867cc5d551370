"""Trade time for memory: layers that keep less, and compute the rest again in the backward pass."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from llamita.model import plan

# What "selective" keeps: products and attention, which are dear; it recomputes all else.
KEPT = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
)  # fmt: skip


def selected(context: SelectiveCheckpointContext, operation: Any, *args: Any, **named: Any) -> CheckpointPolicy:
    """Keep the results of products and attention."""
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


# What is kept of a layer -> the contexts of torch.utils.checkpoint
POLICIES: dict[str, Callable[[], Any]] = {
    "full": noop_context_fn,  # its input alone
    "selective": partial(create_selective_checkpoint_contexts, selected),
}


class Recomputed(plan.StandIn):
    """A layer's forward that keeps little for the backward pass (arXiv:1604.06174).

    Outside training it changes nothing.
    """

    plan = "recompute"

    def __init__(self, layer: nn.Module, *, use_reentrant: bool, policy: str = "full") -> None:
        super().__init__(layer)
        self.use_reentrant, self.policy = use_reentrant, policy

    def __call__(self, *args: Any) -> Any:
        """Run the layer's own forward, recomputing it later where there will be a backward pass."""
        if not (self.module.training and torch.is_grad_enabled()):
            return self.plain(*args)
        return checkpoint(self.plain, *args, use_reentrant=self.use_reentrant, context_fn=POLICIES[self.policy])


def enable(
    model: nn.Module,
    layers: Sequence[nn.Module],
    *,
    every_n_layers: int = 1,
    use_reentrant: bool = False,
    policy: str = "full",
) -> None:
    """Recompute every n-th of a model's layers, by a policy of POLICIES. The bits stay those of the plain run.

    Raises UnsupportedError for a model that another plan holds, as `llamita.model.plan.PAIRS` says.
    """
    if every_n_layers < 1:
        raise ValueError(f"every_n_layers is {every_n_layers}: it must be at least 1")
    stand_ins = [Recomputed(one, use_reentrant=use_reentrant, policy=policy) for one in layers[::every_n_layers]]
    plan.apply(model, "recompute", stand_ins, also=layers)
