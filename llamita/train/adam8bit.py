"""AdamW with states of 8 bits (arXiv:2110.02861): in blocks of 256, each with its scale, by torchao's rules.

torchao's own optimizer runs each weight's step through torch.compile, which takes seconds for each shape and, on a CPU,
a C++ compiler; fake tensors cannot go through it either. This one has its codes and scales, bit for bit.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from llamita.parallel.shard import align_gradient, local, sharded_as

BLOCK = 256  # numbers with one scale
SMALLEST = 4096  # numbers of a weight whose states are quantized
CHUNK = 2**20  # numbers in fp32 at once
MOMENTS = ("exp_avg", "exp_avg_sq")


def dynamic_values(*, is_signed: bool) -> tuple[float, ...]:
    """The 256 numbers from -1 or 0 to 1 that a code means, in order: seven decades, each finer than the one below."""
    found = [0.0, 1.0]
    for decade in range(7):
        count = 2 ** (decade if is_signed else decade + 1) + 1
        edges = torch.linspace(0.1, 1, count, dtype=torch.float32, device="cpu")
        middles = 10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2.0)
        found += middles.tolist() + ((-middles).tolist() if is_signed else [])
    return tuple(sorted(found))


# Made at import: in a step they could be fake.
VALUES: Mapping[str, tuple[float, ...]] = {
    "exp_avg": dynamic_values(is_signed=True),
    "exp_avg_sq": dynamic_values(is_signed=False),
}


def quantized(numbers: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The codes (n,) uint8 of fp32 numbers (n,), and the scales (n / 256,): the largest magnitude of each block."""
    blocks = numbers.view(-1, BLOCK)
    scales = blocks.abs().amax(-1).clip(1e-12)
    scaled = (blocks / scales[:, None]).view(-1)
    below = (torch.searchsorted(values, scaled, right=True, out_int32=True) - 1).clip_(0)
    above = (below + 1).clip_(max=len(values) - 1)
    low = values[below]
    codes = torch.where(scaled - low >= (values[above] - low) * 0.5, above, below)
    return codes.to(torch.uint8), scales


def dequantized(codes: Tensor, scales: Tensor, values: Tensor) -> Tensor:
    """The fp32 numbers (n,) of codes (n,) and scales (n / 256,)."""
    return (values[codes.int()].view(-1, BLOCK) * scales[:, None]).view(-1)


class AdamW8bit(Optimizer):
    """AdamW whose two moments take a byte and 1/64 for each number; those of small weights are fp32.

    A weight is small with fewer than 4096 numbers, or with a number that blocks of 256 do not fill. At most 2**20
    numbers are in fp32 at once. Shards move by the bits of the whole weight, where no block is `is_cut`.
    """

    def __init__(self, groups: Any, *, lr: float, betas: tuple[float, float], eps: float = 1e-8) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient; a closure is not called."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, self.state[weight] or self._begin(weight), group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; torch's own would turn codes into numbers of the weights' dtype."""
        super().load_state_dict({**state_dict, "state": {}})
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for index, state in state_dict["state"].items():
            weight = weights[int(index)]
            self.state[weight] = {
                name: tensor.clone() if name == "step" else tensor.to(weight.device, copy=True)
                for name, tensor in state.items()
            }
            for name in self.state[weight].keys() & {f"{name}.scales" for name in MOMENTS}:
                scales = no_scales(weight)
                self.state[weight][name] = sharded_as(scales, self.state[weight][name].view(scales.shape))

    def _begin(self, weight: Tensor) -> dict[str, Tensor]:
        state = self.state[weight]
        state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
        for name in MOMENTS:
            if _is_small(weight):
                state[name] = torch.zeros_like(weight, dtype=torch.float32)
            else:
                state[f"{name}.codes"] = torch.zeros_like(weight, dtype=torch.uint8)
                state[f"{name}.scales"] = no_scales(weight)
        return state

    def _step(self, weight: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        state["step"] += 1
        numbers, gradient = local(weight).view(-1), align_gradient(weight).reshape(-1)
        values = {name: torch.tensor(VALUES[name], dtype=torch.float32, device=weight.device) for name in MOMENTS}
        for start in range(0, len(numbers), CHUNK):
            part = slice(start, start + CHUNK)
            blocks = slice(start // BLOCK, (start + CHUNK) // BLOCK)
            slopes = gradient[part].float()
            moments = []
            for name, beta, new in zip(MOMENTS, group["betas"], (slopes, slopes.square()), strict=True):
                if name in state:
                    moments.append(local(state[name]).view(-1)[part].lerp_(new, 1 - beta))
                    continue
                codes, scales = (local(state[f"{name}.{one}"]).view(-1) for one in ("codes", "scales"))
                codes, scales = codes[part], scales[blocks]
                moments.append(dequantized(codes, scales, values[name]).lerp_(new, 1 - beta))
                for old, now in zip((codes, scales), quantized(moments[-1], values[name]), strict=True):
                    old.copy_(now)
            mean, square = moments
            _move(numbers[part], mean, square, state["step"], group)


def no_scales(weight: Tensor) -> Tensor:
    """The scales of a weight's blocks, 0; those of a sharded weight (..., C) are sharded as it is.

    They lie one after another, or (..., C / 256) where blocks fill rows, so that any cut between rows is one of them.
    """
    shape, columns = torch.Size([weight.numel() // BLOCK]), weight.shape[-1]
    if isinstance(weight, DTensor) and columns % BLOCK == 0:
        shape = torch.Size([*weight.shape[:-1], columns // BLOCK])
    return sharded_as(weight, torch.zeros(shape, dtype=torch.float32, device=local(weight).device))


def is_cut(weight: Tensor) -> bool:
    """Whether a shard of a weight ends within a block."""
    if _is_small(weight) or not isinstance(weight, DTensor):
        return False
    rows, columns = weight.shape[0], weight.shape[-1]
    pairs = zip(weight.placements, weight.device_mesh.shape, strict=True)
    cuts = [(cast("Shard", placement).dim, size) for placement, size in pairs if hasattr(placement, "dim")]
    if len(cuts) == 1 and cuts[0][0] == 0 and rows % cuts[0][1] == 0:  # as many numbers on each rank
        return weight.numel() // cuts[0][1] % BLOCK > 0
    for dim, size in cuts:
        columns = -(-columns // size) if dim == weight.ndim - 1 else columns
    return columns % BLOCK > 0


def _is_small(weight: Tensor) -> bool:
    return weight.numel() < SMALLEST or weight.numel() % BLOCK > 0


def _move(numbers: Tensor, mean: Tensor, square: Tensor, step: Tensor, group: dict[str, Any]) -> None:
    """Move a part of a weight by its moments before they were quantized."""
    first, second = (1 - beta**step for beta in group["betas"])
    divisor = square.sqrt().div_(second.sqrt()).add_(group["eps"])
    numbers.mul_(1 - group["lr"] * group["weight_decay"])
    numbers.sub_((mean / first).div_(divisor).mul_(group["lr"]))
