"""Trade time for memory: layers that keep only their input and run again in the backward pass."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llamita.errors import UnsupportedError


class Recomputed:
    """A layer's forward that keeps only its input for the backward pass (arXiv:1604.06174).

    Put in a layer's `forward` attribute; taken out, the layer is what it was. Outside training it changes nothing.
    """

    def __init__(self, layer: nn.Module, *, use_reentrant: bool) -> None:
        self.layer = layer
        self.use_reentrant = use_reentrant

    def __call__(self, *args: Any) -> Any:
        """Run the layer's own forward, recomputing it later where there will be a backward pass."""
        forward = partial(type(self.layer).forward, self.layer)
        if not (self.layer.training and torch.is_grad_enabled()):
            return forward(*args)
        return checkpoint(forward, *args, use_reentrant=self.use_reentrant)


def enable(layers: nn.ModuleList, *, every_n_layers: int = 1, use_reentrant: bool = False) -> None:
    """Recompute every n-th of the layers."""
    if every_n_layers < 1:
        raise ValueError(f"every_n_layers is {every_n_layers}: it must be at least 1")
    disable(layers)
    if any("forward" in vars(layer) for layer in layers):
        raise UnsupportedError("a layer's forward is another plan's already: take that back, or leave recompute off")
    for layer in list(layers)[::every_n_layers]:
        layer.forward = Recomputed(layer, use_reentrant=use_reentrant)


def disable(layers: nn.ModuleList) -> None:
    """Let every layer keep its activations again."""
    for layer in layers:
        if is_recomputed(layer):
            del layer.forward


def is_recomputed(layer: nn.Module) -> bool:
    """Whether this layer runs again in the backward pass."""
    return isinstance(vars(layer).get("forward"), Recomputed)
