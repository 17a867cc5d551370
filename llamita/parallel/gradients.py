"""How the gradients of micro-batches become one: as torch adds them, or in a tree that no number of ranks changes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from llamita.errors import UsageError
from llamita.parallel.ranks import DataRanks
from llamita.parallel.shard import local, whole


class Gradients:
    """Gradients that autograd adds to those that are there, in the order of the backward passes."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = list(weights)

    def accumulate(
        self,
        root: nn.Module,
        compute: Callable[..., Tensor],
        parts: Sequence[Any],
        around: Callable[[int], AbstractContextManager[object]],
    ) -> list[float]:
        """Add the gradients of the losses that `compute(model, part)` gives of micro-batches; returns these losses.

        root: the model's pass. around: the context of a micro-batch's pass, by its number.
        """
        losses = list[float]()
        for number, part in enumerate(parts):
            with around(number):
                loss = root(compute, part)
            self.backward(loss)
            self.add()
            losses.append(loss.item())
        return losses

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of a micro-batch's loss ()."""
        loss.backward()

    def add(self) -> None:
        """Take the gradient of a micro-batch, after its backward pass."""

    def finish(self) -> None:
        """Leave the sum of all micro-batches in `.grad`."""

    def clip(self, most: float) -> float:
        """Scale the sum down to a norm of at most `most`; returns the norm of before, of all ranks together."""
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients))
        scale_down(gradients, norm, most)
        return float(norm)


class TreeGradients(Gradients):
    """Gradients added in a binary tree whose leaves are the micro-batches of the global batch, in their order.

    The tree depends on the number of micro-batches alone. Each rank has every `size`-th leaf, and `TreeReduceScatter`
    adds those of a turn, so a power of two of ranks meets at inner nodes of the tree. Of each level of the tree that is
    still open, one gradient is in memory: at most log2(turns) + 1 in all.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__(weights)
        self._open: list[tuple[int, list[Tensor | None]]] = []  # (height, sum) of subtrees, the highest first

    def add(self) -> None:
        """Take the gradient of a turn, and add subtrees of the same height."""
        self._open.append((0, [weight.grad for weight in self.weights]))
        for weight in self.weights:
            weight.grad = None
        while len(self._open) > 1 and self._open[-1][0] == self._open[-2][0]:
            self._join()

    def finish(self) -> None:
        """Add what is open, the smallest subtrees first."""
        while len(self._open) > 1:
            self._join()
        _, total = self._open.pop()
        for weight, gradient in zip(self.weights, total, strict=True):
            weight.grad = gradient

    def clip(self, most: float) -> float:
        """Scale the sum down, by a norm whose order of additions does not depend on the shards either."""
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        total = sum(
            (_sum_of_squares(gradient) for gradient in gradients), torch.zeros((), dtype=torch.float32, device="cpu")
        )
        norm = total.sqrt()
        scale_down(gradients, norm, most)
        return float(norm)

    def _join(self) -> None:
        (height, left), (_, right) = self._open[-2:]
        self._open[-2:] = [(height + 1, [_added(*pair) for pair in zip(left, right, strict=True)])]


class TreeReduceScatter:
    """The collective of FSDP2 that sums gradients over ranks and leaves each its part, here in the tree's order.

    Every rank gets its part from every other one, and adds them in pairs. As many bytes are sent as by a plain one.
    """

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The buffer that FSDP2 puts gradients into."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        """Add the parts: input (ranks * n,), output (n,)."""
        received = torch.empty_like(input_tensor)
        distributed.all_to_all_single(received, input_tensor, group=group)
        output_tensor.copy_(_halved(received.view(group.size(), -1)))


def scale_down(gradients: Sequence[Tensor], norm: Tensor, most: float) -> None:
    """Scale gradients of a norm () down to at most `most`, as torch's clip_grad_norm_ does; each rank scales its parts.

    By DTensors each process would first plan, for half a second, that no number is sent.
    """
    share = (most / (norm + 1e-6)).clamp(max=1.0)
    for gradient in map(local, gradients):
        gradient.mul_(share.to(gradient.device))


def check_tree(ranks: DataRanks, *, rows: int, micro_rows: int) -> None:
    """Raise UsageError where the micro-batches of a step are no tree that these ranks can share."""
    size = ranks.size
    if size & (size - 1):
        raise UsageError(f"--exact-scaling needs a power of two of processes, and there are {size}: start 1, 2, 4, ...")
    if rows % (micro_rows * size):
        raise UsageError(
            f"--exact-scaling needs micro-batches of one size, as many for each process: {rows} rows a step are no "
            f"multiple of {size} processes x {micro_rows} rows: set --micro-rows to a divisor of {max(1, rows // size)}"
        )


def _added(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left.add_(right)


def _sum_of_squares(gradient: Tensor) -> Tensor:
    """The sum () of a gradient's squares: each row by itself, then the rows, always by halves."""
    own = local(gradient)
    rows = _halved(own.square().reshape(own.shape[0], gradient.shape[1:].numel()).T)  # (rows of this rank,)
    if isinstance(gradient, DTensor):
        size = torch.Size(gradient.shape[:1])
        rows = DTensor.from_local(
            rows, gradient.device_mesh, gradient.placements, shape=size, stride=(1,)
        ).full_tensor()
    return _halved(rows)


def _halved(parts: Tensor) -> Tensor:
    """The sum of parts (n, ...) as (...): neighbours are added, then their sums, and so on; shapes decide nothing else.

    Elementwise additions alone: what a reduction of torch adds first may depend on the sizes and on the threads.
    """
    while len(parts) > 1:
        pairs = parts[: len(parts) // 2 * 2]
        parts = torch.cat([pairs[0::2] + pairs[1::2], parts[len(pairs) :]])
    return parts[0]
