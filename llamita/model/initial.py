"""What weights are before training: transformers' rule for Llama, one parameter at a time."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def initialize(module: nn.Module, name: str, parameter: Tensor, *, std: float) -> None:
    """Fill one parameter of a module in place: weights normal(0, std), norms 1, biases and the padding row 0."""
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
