"""A weight matrix of few bits: what it can do, whichever way it is stored."""

from collections.abc import Callable
from typing import Protocol, Self

import torch
from torch import Tensor

from llamita.errors import UnsupportedError
from llamita.kernels.bits import as_bytes
from llamita.kernels.block_format import BlockFormat
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu.packed_layout import Packed
from llamita.kernels.cuda.planes import Planes
from llamita.kernels.quantized_blocks import QuantizedBlocks
from llamita.quant.stores import Store, store, store_of_raw

Move = Callable[[Tensor], Tensor]


class Matrix(Protocol):
    """A matrix (N, K) that is multiplied without ever being unpacked whole."""

    name: str

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        ...

    def kernel_view(self) -> Packed | Planes | None:
        """What the kernels of its device read, or None where there are none for it."""
        ...

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., K) times the matrix, plus bias (N,): (..., N) in x's dtype."""
        ...

    def rows(self, index: Tensor) -> Tensor:
        """The rows that index (...) names: (..., K) in fp32."""
        ...

    def dequantize(self) -> Tensor:
        """The weights (N, K) in fp32."""
        ...

    def raw(self) -> Tensor:
        """The bytes that a GGUF file holds, uint8 (N, bytes); raises UnsupportedError where it knows no such format."""
        ...

    def move(self, move: Move) -> None:
        """Put the tensors elsewhere; `move` may change the device of bytes, nothing else."""
        ...


class BlockMatrix:
    """A matrix in one of GGML's block formats, stored as the kernels of its device want it."""

    def __init__(self, form: BlockFormat, store: Store, shape: tuple[int, int]) -> None:
        self.form = form
        self.name = form.name
        self.shape = shape
        self.store = store

    @classmethod
    def from_codes(cls, form: BlockFormat, codes: QuantizedBlocks) -> Self:
        """From codes on any device."""
        return cls(form, store(codes, form.name), codes.shape)

    @classmethod
    def from_raw(cls, name: str, raw: Tensor, order: Tensor | None = None) -> Self:
        """From the bytes of a GGUF file, uint8 (N, bytes), its rows taken in an order int64 (N,) where one is given.

        Raises UsageError for bytes of another format.
        """
        form = FORMATS[name]
        shape = (raw.shape[0], raw.shape[1] // form.nbytes * form.block)
        return cls(form, store_of_raw(raw, form, order), shape)

    @classmethod
    def from_weight(cls, name: str, weight: Tensor) -> Self:
        """From weights (N, K), by the format's own search."""
        return cls.from_raw(name, FORMATS[name].quantize(weight))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return self.store.nbytes

    def kernel_view(self) -> Packed | Planes | None:
        """What the kernels of its device read, or None where there are none for it."""
        return self.store.kernel_view()

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., K) times the matrix, plus bias (N,): (..., N) in x's dtype."""
        return self.store.linear(x, bias)

    def rows(self, index: Tensor) -> Tensor:
        """The rows that index (...) names: (..., K) in fp32."""
        return self.store.rows(index)

    def dequantize(self) -> Tensor:
        """The weights (N, K) in fp32."""
        return self.store.codes().dequantize()

    def raw(self) -> Tensor:
        """The bytes that a GGUF file holds, uint8 (N, bytes)."""
        return self.form.raw(self.store.codes())

    def move(self, move: Move) -> None:
        """Put the tensors elsewhere, in the order that is wanted there; their dtypes stay."""
        if move(torch.empty(0, dtype=torch.uint8, device=self.store.device)).device == self.store.device:
            return
        codes = self.store.codes()
        for part, tensor in vars(codes).items():
            if isinstance(tensor, Tensor):
                setattr(codes, part, moved(tensor, move))
        self.store = store(codes, self.name)


class RowMatrix:
    """A matrix of int8 with one fp32 scale a row, multiplied by torch's own integer product."""

    name = "int8"

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.shape = (codes.shape[0], codes.shape[1])
        self._codes = codes  # int8 (N, K)
        self._scale = scale  # fp32 (N,)

    @classmethod
    def from_weight(cls, weight: Tensor) -> Self:
        """From weights (N, K): the largest of each row becomes 127."""
        codes, scale = _by_rows(weight)
        return cls(codes, scale)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return self._codes.nbytes + self._scale.nbytes

    def kernel_view(self) -> None:
        """Torch's own product reads it."""

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., K), each token rounded to 8 bits, times the matrix, plus bias (N,): (..., N) in x's dtype."""
        xq, xs = _by_rows(x.reshape(-1, x.shape[-1]))
        out = _integer_product(xq, self._codes) * xs[:, None]
        out *= self._scale
        if bias is not None:
            out += bias.float()
        return out.to(x.dtype).view(*x.shape[:-1], -1)

    def rows(self, index: Tensor) -> Tensor:
        """The rows that index (...) names: (..., K) in fp32."""
        return self._codes[index].float() * self._scale[index, None]

    def dequantize(self) -> Tensor:
        """The weights (N, K) in fp32."""
        return self._codes.float() * self._scale[:, None]

    def raw(self) -> Tensor:
        """Refuse: GGUF has no such format."""
        raise UnsupportedError("GGUF has no format for int8 with a scale a row: quantize to q8_0 instead")

    def move(self, move: Move) -> None:
        """Put the tensors elsewhere; their dtypes stay."""
        self._codes, self._scale = moved(self._codes, move), moved(self._scale, move)


def _integer_product(x: Tensor, codes: Tensor) -> Tensor:
    """int8 x (M, K) times codes (N, K): fp32 (M, N)."""
    if x.device.type == "cuda" and (x.shape[0] <= 16 or codes.shape[0] % 8 or codes.shape[1] % 8):
        return x.float() @ codes.float().t()  # cuBLAS has no such product
    return torch._int_mm(x, codes.t()).float()  # pyright: ignore[reportPrivateImportUsage]


def _by_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, K) as int8 (N, K) and fp32 scales (N,), so that the largest of a row becomes 127."""
    x = x.float()
    most = x.abs().amax(-1)
    inverse = torch.where(most > 0, most.new_tensor(127.0) / most, 0)
    return (x * inverse[:, None]).round().to(torch.int8), most / 127


def moved(tensor: Tensor, move: Move) -> Tensor:
    """The tensor as `move` puts it elsewhere, seen as bytes meanwhile, so that it cannot change the dtype."""
    return move(as_bytes(tensor)).view(tensor.dtype)


def matrix(name: str, weight: Tensor) -> Matrix:
    """Weights (N, K) quantized to a block format or to int8."""
    return RowMatrix.from_weight(weight) if name == RowMatrix.name else BlockMatrix.from_weight(name, weight)
