"""Trade time for memory: layers that keep only their input and run again in the backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llamita.model import plan


class Recomputed(plan.StandIn):
    """A layer's forward that keeps only its input for the backward pass (arXiv:1604.06174).

    Outside training it changes nothing.
    """

    plan = "recompute"

    def __init__(self, layer: nn.Module, *, use_reentrant: bool) -> None:
        super().__init__(layer)
        self.use_reentrant = use_reentrant

    def __call__(self, *args: Any) -> Any:
        """Run the layer's own forward, recomputing it later where there will be a backward pass."""
        if not (self.module.training and torch.is_grad_enabled()):
            return self.plain(*args)
        return checkpoint(self.plain, *args, use_reentrant=self.use_reentrant)


def enable(
    model: nn.Module, layers: Sequence[nn.Module], *, every_n_layers: int = 1, use_reentrant: bool = False
) -> None:
    """Recompute every n-th of a model's layers.

    Raises UnsupportedError for a model that another plan holds, as `llamita.model.plan.PAIRS` says.
    """
    if every_n_layers < 1:
        raise ValueError(f"every_n_layers is {every_n_layers}: it must be at least 1")
    stand_ins = [Recomputed(layer, use_reentrant=use_reentrant) for layer in layers[::every_n_layers]]
    plan.apply(model, "recompute", stand_ins, also=layers)
