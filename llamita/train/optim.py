"""Optimizers as a table. Weight decay is on matrices only: norms and biases keep their size."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llamita.errors import UnsupportedError
from llamita.train.adafactor import Adafactor
from llamita.train.adam8bit import BLOCK, AdamW8bit, is_cut
from llamita.train.muon import Muon

BETAS = (0.9, 0.95)
ADAMW_SHARE = 0.25  # of Muon's learning rate, for what is no matrix of a layer
Build = Callable[[nn.Module, float, float], list[Optimizer]]


class Lion(Optimizer):
    """Lion (arXiv:2302.06675): every weight moves by the rate, in the direction of the momentum's sign."""

    def __init__(self, groups: Any, *, lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient; a closure is not called."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    momentum = self.state[weight].setdefault("exp_avg", torch.zeros_like(weight))
                    self._move(weight, weight.grad, momentum, group)

    def _move(self, weight: Tensor, gradient: Tensor, momentum: Tensor, group: dict[str, Any]) -> None:
        fast, slow = group["betas"]
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(momentum.lerp(gradient, 1 - fast).sign_(), alpha=-group["lr"])
        momentum.lerp_(gradient, 1 - slow)


def trained(model: nn.Module) -> list[Tensor]:
    """The weights that are not frozen."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def moved_by(optimizer: Optimizer) -> list[Tensor]:
    """What an optimizer moves, weights or copies of them, in the order of their numbers in its state."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _groups(weights: Sequence[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay, the rest without; no empty group."""
    groups = (
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def _adamw(model: nn.Module, lr: float, weight_decay: float) -> list[Optimizer]:
    return [torch.optim.AdamW(_groups(trained(model), weight_decay), lr=lr, betas=BETAS, fused=True)]


def _adamw8bit(model: nn.Module, lr: float, weight_decay: float) -> list[Optimizer]:
    return [AdamW8bit(_groups(trained(model), weight_decay), lr=lr, betas=BETAS)]


def _muon(model: nn.Module, lr: float, weight_decay: float) -> list[Optimizer]:
    """Muon for the matrices of the layers; AdamW for embedding, head and norms."""
    matrices = [w for name, w in model.named_parameters() if w.requires_grad and w.ndim == 2 and ".layers." in name]
    inside = {id(weight) for weight in matrices}
    rest = [weight for weight in trained(model) if id(weight) not in inside]
    # An adapter may have matrices of layers alone, or none of them.
    found: list[Optimizer] = [Muon(matrices, lr=lr, weight_decay=weight_decay)] if matrices else []
    if rest:
        found.append(torch.optim.AdamW(_groups(rest, weight_decay), lr=lr * ADAMW_SHARE, betas=BETAS, fused=True))
    return found


def _lion(model: nn.Module, lr: float, weight_decay: float) -> list[Optimizer]:
    return [Lion(_groups(trained(model), weight_decay), lr=lr)]


def _adafactor(model: nn.Module, lr: float, weight_decay: float) -> list[Optimizer]:
    """The second moments of a matrix as a row and a column: the least memory (arXiv:1804.04235)."""
    return [Adafactor(_groups(trained(model), weight_decay), lr=lr)]


OPTIMIZERS: Mapping[str, Build] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "muon": _muon,
    "lion": _lion,
    "adafactor": _adafactor,
}
RATES: Mapping[str, float] = {
    "adamw": 2e-3,
    "adamw8bit": 2e-3,
    "muon": 2e-2,
    "lion": 2e-4,
    "adafactor": 1e-2,
}  # where the recipe gives none


def check_sharded(name: str, model: nn.Module) -> None:
    """Raise UnsupportedError for a sharded model with a weight that an optimizer cannot move in shards."""
    if name != "adamw8bit":
        return
    others = ", ".join(other for other in OPTIMIZERS if other != name)
    for own, weight in model.named_parameters():
        if weight.requires_grad and is_cut(weight):
            raise UnsupportedError(
                f"adamw8bit has a scale for {BLOCK} numbers, and the processes' parts of {own} {tuple(weight.shape)} "
                f"do not end where such blocks do: use one of {others}"
            )


def check_exact(name: str, size: int) -> None:
    """Raise UnsupportedError for an optimizer whose bits depend on the number of ranks."""
    if name == "adafactor" and size > 1:
        raise UnsupportedError(
            f"adafactor adds squares of columns over {size} processes, in an order that their number decides: leave "
            "--exact-scaling out, or use another --optimizer"
        )


def build(name: str, model: nn.Module, *, lr: float, weight_decay: float, is_exact: bool = False) -> list[Optimizer]:
    """The optimizers of a model; each group remembers its full rate as `initial_lr`.

    is_exact: a weight moves by the same bits in whichever shard it is. AdamW's fused kernel rounds the last few of a
    shard, which fill no vector, in another way.
    """
    optimizers = OPTIMIZERS[name](model, lr, weight_decay)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
            if is_exact and "fused" in group:
                group |= {"fused": False, "foreach": True}
    return optimizers


def keep_own(optimizers: list[Optimizer], names: Mapping[int, str], own: Mapping[str, Tensor]) -> list[list[int]]:
    """Let optimizers of a whole model move the weights of one of its stages; their groups stay, some without weights.

    names: of the whole model's weights, by their ids. own: the stage's weights by name. Returns for each optimizer the
    numbers that its weights have among those of the whole model. The optimizers have taken no step yet.
    """
    numbers = []
    for optimizer in optimizers:
        order = [names[id(weight)] for weight in moved_by(optimizer)]
        numbers.append([number for number, name in enumerate(order) if name in own])
        for group in optimizer.param_groups:
            found = [names[id(weight)] for weight in group["params"]]
            group["params"] = [own[name] for name in found if name in own]
    return numbers


def step(optimizers: Sequence[Optimizer]) -> None:
    """Move the weights by their gradients, which are freed."""
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def set_rate(optimizers: list[Optimizer], share: float) -> float:
    """Set every group to a share of its full rate; returns the rate of the first group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
    return optimizers[0].param_groups[0]["lr"]
