"""What weights are before training: transformers' rule for Llama, one parameter at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made in here have shapes and no values: they are on the meta device, and nothing is filled.

    To fill an embedding there loads torch's compiler, which takes a second and 85 MB.
    """
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


@torch.no_grad()
def initialize(module: nn.Module, name: str, parameter: Tensor, *, std: float) -> None:
    """Fill one parameter of a module in place: weights normal(0, std), norms 1, biases and the padding row 0."""
    if parameter.is_meta:
        return
    if name == "bias":
        parameter.zero_()
    elif isinstance(module, nn.Linear | nn.Embedding):
        parameter.normal_(0.0, std)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            parameter[module.padding_idx].zero_()
    else:
        parameter.fill_(1.0)


def initialize_tree(root: nn.Module, *, std: float) -> None:
    """Fill the parameters of all modules below `root` that were not filled before."""
    for module in root.modules():
        if not getattr(module, "_is_initialized", False):
            for name, parameter in module.named_parameters(recurse=False):
                initialize(module, name, parameter, std=std)
            module._is_initialized = True  # type: ignore[assignment]
