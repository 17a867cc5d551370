"""Offload activations: what layers save for the backward pass waits in the CPU's memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from llamita.model import plan

SMALLEST = 1 << 12  # numbers; less is not worth a copy
Packed = tuple[torch.device, Tensor] | Tensor


class Offloaded(plan.StandIn):
    """A layer's forward whose saved tensors are copied to the CPU, and back when the backward pass asks for them.

    Weights stay where they are. The bits are those of the plain run.
    """

    plan = "offload"

    def __call__(self, *args: Any) -> Any:
        """Run the forward of the plan before, or the layer's own."""
        if not torch.is_grad_enabled():
            return self.plain(*args)
        weights = {weight.untyped_storage().data_ptr() for weight in self.module.parameters()}

        def pack(tensor: Tensor) -> Packed:
            if tensor.numel() < SMALLEST or tensor.untyped_storage().data_ptr() in weights:
                return tensor
            return tensor.device, moved(tensor, torch.device("cpu"))

        with saved_tensors_hooks(pack, unpack):
            return self.plain(*args)


def unpack(packed: Packed) -> Tensor:
    """A saved tensor where it was."""
    return packed if isinstance(packed, Tensor) else moved(packed[1], packed[0])


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on a device."""
    return tensor.to(device, copy=True)


def enable(model: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Offload what the layers save. Raises UnsupportedError where another plan holds the model."""
    plan.apply(model, "offload", [Offloaded(layer) for layer in layers])
