"""What the model knows of modules whose weight is no parameter: that there is a matrix, and of which shape."""

from typing import Protocol

from torch import nn


class StoredMatrix(Protocol):
    """A weight (N, K) in a form of its own; tied modules share one."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...


class StoredWeight(nn.Module):
    """A layer or an embedding whose weight is a stored matrix. Quantized modules are such."""

    def stored(self) -> StoredMatrix:
        """The matrix."""
        raise NotImplementedError

    def kernel_view(self) -> object | None:
        """What the kernels of its device read, whose class says which kernels; None where there are none for it."""
        return None
