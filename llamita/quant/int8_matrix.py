"""Matrices of int8 with one scale a row, multiplied by torch's integer product."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from llamita.errors import UnsupportedError
from llamita.quant.matrix import Move, QuantizedMatrix, move_bytes

INT8 = "int8"  # the name of this format; it is no block format


class Int8Rows(QuantizedMatrix):
    """A matrix of int8 with one fp32 scale a row."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__(INT8, (codes.shape[0], codes.shape[1]))
        self._codes = codes  # int8 (N, K)
        self._scale = scale  # fp32 (N,)

    @classmethod
    def from_weight(cls, weight: Tensor) -> Self:
        """Quantize weights (N, K): the largest weight of each row becomes 127."""
        return cls(*_quantize_rows(weight))

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return self._codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self._codes.nbytes + self._scale.nbytes

    def kernel_view(self) -> None:
        """None: torch computes the product."""

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Round each token of x (..., K) to 8 bits, multiply, add bias (N,): (..., N) in x's dtype."""
        xq, xs = _quantize_rows(x.reshape(-1, x.shape[-1]))
        out = _integer_product(xq, self._codes) * xs[:, None]
        out *= self._scale
        if bias is not None:
            out += bias.float()
        return out.to(x.dtype).view(*x.shape[:-1], self.shape[0])

    def rows(self, index: Tensor) -> Tensor:
        """Look up rows by index (...): fp32 (..., K)."""
        return self._codes[index].float() * self._scale[index, None]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights (N, K), computed in fp32."""
        return (self._codes.float() * self._scale[:, None]).to(dtype)

    def raw(self) -> Tensor:
        """Raise UnsupportedError: GGUF has no such format."""
        raise UnsupportedError("GGUF has no format for int8 with one scale a row: quantize to q8_0 instead")

    def stored_tensors(self) -> tuple[Tensor, ...]:
        """Codes, int8 (N, K), and the scale of each row, fp32 (N, 1)."""
        return self._codes, self._scale

    def part(self, start: int, stop: int) -> Self:
        """A matrix of the rows from `start` to `stop`."""
        return type(self)(self._codes[start:stop].clone(), self._scale[start:stop].clone())

    def joined(self, parts: Sequence[tuple[Tensor, ...]]) -> Self:
        """The matrix of which this is a part, from codes and scales of all parts."""
        codes, scales = zip(*parts, strict=True)
        return type(self)(torch.cat(codes), torch.cat(scales))

    def _copied(self, move: Move) -> "Int8Rows":
        return Int8Rows(move_bytes(self._codes, move), move_bytes(self._scale, move))


def _integer_product(x: Tensor, codes: Tensor) -> Tensor:
    """Multiply int8 x (M, K) by codes (N, K): fp32 (M, N)."""
    if x.device.type == "cuda" and (x.shape[0] <= 16 or codes.shape[0] % 8 or codes.shape[1] % 8):
        return x.float() @ codes.float().t()  # cuBLAS has no integer product of these sizes
    return torch._int_mm(x, codes.t()).float()  # pyright: ignore[reportPrivateImportUsage]


def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize x (N, K) to int8 (N, K) with fp32 scales (N,): the largest number of each row becomes 127."""
    x = x.float()
    most = x.abs().amax(-1)
    inverse = torch.where(most > 0, most.new_tensor(127.0) / most, 0)
    return (x * inverse[:, None]).round().to(torch.int8), most / 127
