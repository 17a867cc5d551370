"""Work memory, which all passes of a model share."""

from math import prod

import torch
from torch import Tensor

from llamita.plans.cpu.weights import CPU


class Workspace:
    """Tensors by name, which grow to the largest size that was asked for, and are shared by all passes of a model.

    New memory for each pass would cost more than some products: the system fills every page with zeros when it is first
    touched.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor of this name; its content is undefined."""
        size = prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = empty(size, dtype=torch.uint8)
        return buffer[:size].view(dtype).view(shape)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for kernels, whatever torch's default dtype and device are, in and out of inference mode."""
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype, device=CPU)


def numbers(*values: int) -> Tensor:
    """Numbers for kernels: int64."""
    with torch.inference_mode(False):  # they are changed in place, also by passes outside of it
        return torch.tensor(values, dtype=torch.int64, device=CPU)
