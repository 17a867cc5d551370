"""The outputs of a model's modules, and the first of them in which two models differ."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def outputs_of(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The output of every module that returns a tensor, by name, in the order in which they finish."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, Tensor):
                outputs[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def first_difference(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> tuple[str | None, float]:
    """The first module, in the order of `some`, whose outputs differ, and by how much; (None, 0) if none does."""
    differing = ((name, gap) for name in some if name in others and (gap := largest(some[name], others[name])) > 0)
    return next(differing, (None, 0.0))


def largest(a: Tensor | None, b: Tensor | None) -> float:
    """The largest absolute difference: 0 for the same numbers and NaN in the same places; infinite at a NaN in one."""
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    a, b = a.detach().double(), b.detach().double()
    same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=float("inf")).max()) if a.numel() else 0.0
