"""The weights of a model's modules, as the kernels read them."""

import torch
from torch import Tensor, nn

from llamita.kernels.cpu.packed_layout import Packed
from llamita.model.stored import StoredWeight

CPU = torch.device("cpu")


def packed_of(module: nn.Module) -> Packed | None:
    """The packed matrix that a quantized layer has on the CPU, or None for a plain one."""
    view = module.kernel_view() if isinstance(module, StoredWeight) else None
    return view if isinstance(view, Packed) else None


def matrix_of(module: nn.Module) -> Tensor | None:
    """The memory of a layer's matrix, all of which every step reads."""
    packed = packed_of(module)
    if packed is not None:
        return packed.stream
    return module.weight.detach() if isinstance(module, nn.Linear) else None
