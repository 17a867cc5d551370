"""Adafactor (arXiv:1804.04235): torch's own arithmetic, for matrices that are sharded too."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, Placement, Replicate

from llamita.parallel.shard import align_gradient, local, whole
from llamita.parallel.slices import own_part

FACTORS = ("row_var", "col_var")


class Adafactor(torch.optim.Adafactor):
    """The second moments of a matrix as a row and a column; plain weights move by the same bits as torch's.

    Of a sharded matrix each rank moves its part. The ranks add what they know of the means of rows and columns, and
    each keeps both whole, so that a checkpoint does not depend on the ranks.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient; a closure is not called."""
        if not any(isinstance(weight, DTensor) for group in self.param_groups for weight in group["params"]):
            super().step()
            return
        for group in self.param_groups:
            self._move([weight for weight in group["params"] if weight.grad is not None], group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; a factor with the shape of its weight has come in shards."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state.update({name: whole(state[name]) for name in FACTORS if name in state})

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[weight] or self._begin(weight) for weight in weights]
        known = added(weights, [_squares(weight, align_gradient(weight)) for weight in weights])
        for weight, state, squares in zip(weights, states, known, strict=True):
            _remember(weight, state, squares, group)
        pairs = list(zip(weights, states, strict=True))
        norms = added(weights, [_update(*pair).square().sum()[None] for pair in pairs])
        for (weight, state), squares, norm in zip(pairs, known, norms, strict=True):
            root, rate = weight.numel() ** 0.5, min(group["lr"], state["step"].item() ** -0.5)
            rate *= max(group["eps"][1], squares[-1].sqrt().item() / root)
            local(weight).mul_(1 - group["lr"] * group["weight_decay"])
            # The update again, rather than that of every weight in memory at once.
            local(weight).add_(_update(weight, state), alpha=-rate / max(1.0, norm.sqrt().item() / root))

    def _begin(self, weight: Tensor) -> dict[str, Tensor]:
        state = self.state[weight]
        state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
        if weight.ndim == 1:
            state["variance"] = torch.zeros_like(weight)
        else:
            pairs = zip(FACTORS, _shapes(weight), strict=True)
            state.update({name: local(weight).new_zeros(shape) for name, shape in pairs})
        return state


def added(weights: Sequence[Tensor], own: Sequence[Tensor]) -> list[Tensor]:
    """The sums over all ranks of what each knows (n,) of its parts of weights; one message for all placed alike."""
    found, alike = list(own), dict[Any, list[int]]()
    for number, weight in enumerate(weights):
        alike.setdefault(_layout(weight), []).append(number)
    for (mesh, placements), numbers in alike.items():
        flat = torch.cat([own[number] for number in numbers])
        for dim, placement in enumerate(placements):
            if hasattr(placement, "dim"):
                distributed.all_reduce(flat, group=mesh.get_group(dim))
        for number, part in zip(numbers, flat.split([len(own[number]) for number in numbers]), strict=True):
            found[number] = part
    return found


def _layout(weight: Tensor) -> tuple[Any, tuple[Placement, ...]]:
    return (weight.device_mesh, weight.placements) if isinstance(weight, DTensor) else (None, ())


def _squares(weight: Tensor, gradient: Tensor) -> Tensor:
    """What this rank adds to the sums of squares of the gradient's rows (R,) and columns (C,), and of the weight ()."""
    size = local(weight).square().sum()[None]
    if weight.ndim == 1:
        return size
    sums = [gradient.new_zeros(shape) for shape in _shapes(weight)]
    for dim, total in enumerate(sums):
        _part(total, weight, dim).copy_(gradient.square().sum(1 - dim, keepdim=True))
    return torch.cat((*(total.flatten() for total in sums), size))


def _remember(weight: Tensor, state: dict[str, Tensor], squares: Tensor, group: dict[str, Any]) -> None:
    """Move the means of squares towards those of this step; squares: of the whole weight, as `_squares` has them."""
    state["step"] += 1
    share = state["step"].item() ** group["beta2_decay"]
    if weight.ndim == 1:
        local(state["variance"]).lerp_(local(cast("Tensor", weight.grad)).square(), share)
        return
    for name, sums, count in zip(FACTORS, squares[:-1].split(list(weight.shape)), reversed(weight.shape), strict=True):
        state[name].lerp_((sums / count).view_as(state[name]), share)


def _update(weight: Tensor, state: dict[str, Tensor]) -> Tensor:
    """This rank's part of the gradient divided by the root of its second moments."""
    least, gradient = torch.finfo(weight.dtype).eps, local(cast("Tensor", weight.grad))
    if weight.ndim == 1:
        square = local(state["variance"]).clone()
    else:
        row, column = (_part(state[name], weight, dim) for dim, name in enumerate(FACTORS))
        square = (row @ column).div_(state["row_var"].mean().clamp_(min=least))
    return square.clamp_(min=least * least).rsqrt_().mul_(gradient)


def _shapes(weight: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of the mean of each row, and of each column."""
    rows, columns = weight.shape
    return (rows, 1), (1, columns)


def _part(total: Tensor, weight: Tensor, dim: int) -> Tensor:
    """Of what there is for each row (dim 0) or column (dim 1) of a weight, that of this rank's part, as a view."""
    mesh, placements = _layout(weight)
    its = [one if getattr(one, "dim", None) == dim else Replicate() for one in placements]
    return total if mesh is None else own_part(total, mesh, its)
