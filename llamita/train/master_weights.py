"""Weights of few bits with fp32 masters, and optimizers whose state is on the CPU: one optimizer around another."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llamita.train.optim import moved_by


class MasterWeights(Optimizer):
    """An optimizer of fp32 copies of the weights, elsewhere if need be; the weights are the copies, rounded.

    Without the copies, an update of less than half a unit in a bf16 weight's last place would be lost. Its state has
    the copies, as `master`, so a checkpoint holds them.
    """

    def __init__(self, inner: Optimizer, weights: list[Tensor]) -> None:
        """`weights`: the model's, in the order of the inner optimizer's own."""
        self.inner, self.weights = inner, weights
        self.masters = moved_by(inner)
        self._show_inner()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the masters by the weights' gradients, then round them into the weights; a closure is not called."""
        pairs = list(zip(self.weights, self.masters, strict=True))
        for weight, master in pairs:
            master.grad = None if weight.grad is None else weight.grad.to(master)
        self.inner.step()
        for weight, master in pairs:
            if master.grad is not None:
                weight.copy_(master)
                master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, with the masters."""
        found = self.inner.state_dict()
        states = {index: {**found["state"].get(index, {}), "master": one} for index, one in enumerate(self.masters)}
        return {**found, "state": states}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; the weights become the masters, rounded."""
        states = {index: dict(state) for index, state in state_dict["state"].items()}
        for index, (weight, master) in enumerate(zip(self.weights, self.masters, strict=True)):
            master.copy_(states[index].pop("master"))
            weight.copy_(master)
        states = {index: state for index, state in states.items() if state}
        self.inner.load_state_dict({**state_dict, "state": states})
        self._show_inner()

    def _show_inner(self) -> None:
        """Show the inner optimizer's groups and states as one's own; it makes others when it loads."""
        self.param_groups, self.state = self.inner.param_groups, self.inner.state


def with_masters(
    model: nn.Module, build: Callable[[nn.Module], list[Optimizer]], *, device: torch.device
) -> list[Optimizer]:
    """Optimizers of fp32 copies of a model's weights on a device, each around what `build` makes of such a copy."""
    copies: dict[int, Any] = {id(buffer): buffer.clone() for buffer in model.buffers()}
    of_master: dict[int, Tensor] = {}
    for weight in model.parameters():
        master = nn.Parameter(weight.detach().to(device, torch.float32, copy=True), weight.requires_grad)
        copies[id(weight)], of_master[id(master)] = master, weight
    twin = copy.deepcopy(model, copies)  # with its names and ties
    return [MasterWeights(one, [of_master[id(master)] for master in moved_by(one)]) for one in build(twin)]
