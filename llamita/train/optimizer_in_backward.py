"""Optimizer in backward: each weight moves as soon as its gradient is there, which is then freed (arXiv:2306.09782)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from llamita.errors import NotFiniteError
from llamita.parallel.gradients import Gradients
from llamita.train.master_weights import MasterWeights
from llamita.train.optim import moved_by


class GradientsInBackward(Gradients):
    """Gradients of which only one is in memory: the optimizer takes it inside the backward pass.

    The bits are those of the plain run. There is one micro-batch a step and no clipping, as both need all gradients at
    once. A gradient that is not finite moves no weight, but those after it in the model have moved by then.
    """

    def __init__(self, weights: Sequence[Tensor], optimizers: Sequence[Optimizer]) -> None:
        super().__init__(weights)
        self._owners = {id(weight): one for one in optimizers for weight in weights_of(one)}
        self._squares = 0.0

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass and the optimizers."""
        self._squares = 0.0
        trained = [weight for weight in self.weights if weight.requires_grad]
        handles = [weight.register_post_accumulate_grad_hook(self._step) for weight in trained]
        try:
            loss.backward()
        finally:
            for handle in handles:
                handle.remove()

    def clip(self, most: float) -> float:
        """The norm of all gradients; nothing is clipped."""
        return math.sqrt(self._squares)

    def _step(self, weight: Tensor) -> None:
        assert weight.grad is not None
        square = float(torch.linalg.vector_norm(weight.grad)) ** 2
        if not math.isfinite(square):
            raise NotFiniteError(f"a gradient of shape {tuple(weight.shape)} is not finite: resume with a lower --lr")
        self._squares += square
        self._owners[id(weight)].step()  # all other gradients are None, so it moves this weight alone
        weight.grad = None


def weights_of(optimizer: Optimizer) -> list[Tensor]:
    """The model's weights that an optimizer moves, of which it may hold copies."""
    if isinstance(optimizer, MasterWeights):
        return optimizer.weights
    return moved_by(optimizer)
