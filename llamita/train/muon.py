"""Muon (https://kellerjordan.github.io/posts/muon): torch's own arithmetic, for matrices that are sharded too."""

import math
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from llamita.parallel.shard import sharded_as, whole

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
TINY = 1e-7


class Muon(Optimizer):
    """Every matrix moves along its momentum, made orthogonal; plain ones move by the same bits as torch.optim.Muon's.

    Sharded matrices are made orthogonal whole, each by one of the ranks, as the products of shards would be rounded in
    another way. So the result does not depend on the ranks, and each has its share of the work.
    """

    def __init__(self, matrices: Any, *, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient; a closure is not called."""
        for group in self.param_groups:
            moved = [weight for weight in group["params"] if weight.grad is not None]
            updates = orthogonal([self._update(weight) for weight in moved])
            for weight, update in zip(moved, updates, strict=True):
                rows, columns = weight.shape
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))

    def _update(self, weight: Tensor) -> Tensor:
        """The direction before it is made orthogonal: Nesterov's momentum."""
        assert weight.grad is not None
        momentum = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight.grad))
        momentum.lerp_(weight.grad, 1 - MOMENTUM)
        return weight.grad.lerp(momentum, MOMENTUM)


def orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    """Each matrix (R, C) with all singular values near 1, in bf16.

    Those sharded by rows are shared out among their ranks; of other shards every rank computes the whole.
    """
    shared = {number: _Shared(matrix, number) for number, matrix in enumerate(matrices) if _is_by_rows(matrix)}
    for one in shared.values():  # all are under way before the first is waited for
        one.gather()
    for one in shared.values():
        one.compute()
    return [
        shared[number].result() if number in shared else sharded_as(matrix, newton_schulz(whole(matrix)))
        for number, matrix in enumerate(matrices)
    ]


def _is_by_rows(matrix: Tensor) -> bool:
    return isinstance(matrix, DTensor) and matrix.placements == (Shard(0),)


def newton_schulz(matrix: Tensor) -> Tensor:
    """A matrix (R, C) in bf16 near to U V^T, where U S V^T is the given one."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=TINY)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class _Shared:
    """A sharded matrix on its way: to the rank that computes, and back in shards."""

    def __init__(self, matrix: Tensor, number: int) -> None:
        assert isinstance(matrix, DTensor)
        self.matrix, self.group = matrix, matrix.device_mesh.get_group()
        size = distributed.get_world_size(self.group)
        self.owner = distributed.get_global_rank(self.group, number % size)
        self.is_own = self.owner == distributed.get_rank()
        own = matrix.to_local()
        rows = -(-matrix.shape[0] // size)  # of each shard but the last ones, which have fewer
        self.part = own.new_zeros(rows, matrix.shape[1])
        self.part[: len(own)] = own
        self.parts = [torch.empty_like(self.part) for _ in range(size)] if self.is_own else None
        self.work: Any = None

    def gather(self) -> None:
        """Send the shards to the owner."""
        self.work = distributed.gather(self.part, self.parts, dst=self.owner, group=self.group, async_op=True)

    def compute(self) -> None:
        """Compute, on the owner, and send the shards of the result."""
        self.work.wait()
        parts = None
        if self.parts is not None:
            found = newton_schulz(torch.cat(self.parts)[: self.matrix.shape[0]])
            padded = found.new_zeros(len(self.parts) * len(self.part), found.shape[1])
            padded[: len(found)] = found
            parts = list(padded.split(len(self.part)))
        self.part = torch.empty_like(self.part, dtype=torch.bfloat16)
        self.work = distributed.scatter(self.part, parts, src=self.owner, group=self.group, async_op=True)

    def result(self) -> DTensor:
        """The shard of this rank, as the matrix is sharded."""
        self.work.wait()
        own = self.part[: len(self.matrix.to_local())]
        matrix = self.matrix
        return DTensor.from_local(
            own, matrix.device_mesh, matrix.placements, shape=matrix.shape, stride=matrix.stride(), run_check=False
        )
