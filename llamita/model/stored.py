"""What the model knows of modules that surgery puts in: weights that are no parameters, and settings."""

from collections.abc import Sequence
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn


class StoredMatrix(Protocol):
    """A weight (N, K) that is stored in a format of its own; tied modules share one."""

    shape: tuple[int, int]

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiply x (..., K) by the matrix and add bias (N,): (..., N) in x's dtype."""
        ...

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights (N, K), computed in fp32."""
        ...

    def kernel_view(self) -> object | None:
        """What the kernels of its device read; its class says which kernels. None: no kernel reads it."""
        ...

    def stored_tensors(self) -> tuple[Tensor, ...]:
        """What it stores, the same on every device."""
        ...

    def part(self, start: int, stop: int) -> Self:
        """A matrix of the rows from `start` to `stop`."""
        ...

    def joined(self, parts: Sequence[tuple[Tensor, ...]]) -> Self:
        """The matrix of which this is a part, from what all parts store."""
        ...


M = TypeVar("M", bound=StoredMatrix)


class StoredWeight(nn.Module, Generic[M]):
    """A layer or an embedding whose weight is a stored matrix, as in every quantized module."""

    def __init__(self, matrix: M) -> None:
        super().__init__()
        self.matrix = matrix

    def kernel_view(self) -> object | None:
        """What the kernels of the matrix's device read, or None."""
        return self.matrix.kernel_view()


class WithSettings(nn.Module):
    """A module whose result depends on more than its weights, as that of one with adapters does."""

    def settings(self) -> str:
        """All of it, as text for the fingerprint."""
        raise NotImplementedError
