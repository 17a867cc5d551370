"""A quantized weight matrix: what each one can do, whatever its format and its device."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self
from weakref import ref

import torch
from torch import Tensor

from llamita.kernels.bits import as_bytes
from llamita.kernels.cpu.packed_layout import Packed
from llamita.kernels.cuda.planes import Planes

Move = Callable[[Tensor], Tensor]  # as nn.Module._apply gets it; it changes the device of bytes, and nothing else


class QuantizedMatrix(ABC):
    """A quantized matrix (N, K). It is immutable: `moved` returns another one."""

    def __init__(self, format_name: str, shape: tuple[int, int]) -> None:
        self.format_name = format_name
        self.shape = shape
        self._last_move: ref[QuantizedMatrix] | None = None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of its tensors."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of its tensors."""

    @abstractmethod
    def kernel_view(self) -> Packed | Planes | None:
        """The packed weights that our kernels read; None: torch computes the product."""

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiply x (..., K) by the matrix and add bias (N,): (..., N) in x's dtype."""

    @abstractmethod
    def rows(self, index: Tensor) -> Tensor:
        """Look up rows by index (...): fp32 (..., K)."""

    @abstractmethod
    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights (N, K), computed in fp32."""

    @abstractmethod
    def raw(self) -> Tensor:
        """The bytes of a GGUF file, uint8 (N, bytes). Raises UnsupportedError for a format that GGUF lacks."""

    @abstractmethod
    def stored_tensors(self) -> tuple[Tensor, ...]:
        """What it stores, the same on every device: the bytes of a GGUF file, or codes and scales."""

    @abstractmethod
    def part(self, start: int, stop: int) -> Self:
        """A matrix of the rows from `start` to `stop`, in memory of its own."""

    @abstractmethod
    def joined(self, parts: Sequence[tuple[Tensor, ...]]) -> Self:
        """The matrix of which this is a part, from what all parts store."""

    def moved(self, move: Move) -> "QuantizedMatrix":
        """The matrix on the device that `move` names, in that device's layout; dtypes stay.

        Returns the matrix itself if it is there already, and the same copy to each of the layers that share it.
        """
        device = move(torch.empty(0, dtype=torch.uint8, device=self.device)).device
        if device == self.device:
            return self
        copy = None if self._last_move is None else self._last_move()
        if copy is None or copy.device != device:
            copy = self._copied(move)
            self._last_move = ref(copy)
        return copy

    @abstractmethod
    def _copied(self, move: Move) -> "QuantizedMatrix":
        """A copy on another device."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave the weak reference out: it cannot be pickled, and a copy has made no move yet."""
        return vars(self) | {"_last_move": None}


def move_bytes(tensor: Tensor, move: Move) -> Tensor:
    """Move a tensor as bytes, so that `move` cannot change its dtype."""
    return move(as_bytes(tensor)).view(tensor.dtype)
