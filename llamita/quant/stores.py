"""Where the codes of a matrix lie: in the order that a device's kernels read them, chosen by one table."""

from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.kernels import plain_product
from llamita.kernels.block_format import BlockFormat
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu import linear, packed_layout, repack
from llamita.kernels.cpu.runtime import program
from llamita.kernels.cuda import operations, planes
from llamita.kernels.quantized_blocks import QuantizedBlocks


class Store(Protocol):
    """QuantizedBlocks (N, K) ready to be multiplied with on one device."""

    @classmethod
    def of(cls, codes: QuantizedBlocks, form: str) -> Self:
        """The codes of a block format, put in order."""
        ...

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        ...

    def codes(self) -> QuantizedBlocks:
        """The codes that were put in."""
        ...

    def kernel_view(self) -> packed_layout.Packed | planes.Planes | None:
        """What kernels of ours read, or None where the reference does the work."""
        ...

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., K) times the matrix, plus bias (N,): (..., N) in x's dtype."""
        ...

    def rows(self, index: Tensor) -> Tensor:
        """The rows that index (...) names: fp32 (..., K)."""
        ...


class PlainStore:
    """Blocks as they are, multiplied by the reference: for devices and formats without kernels of ours."""

    def __init__(self, codes: QuantizedBlocks) -> None:
        self._codes = codes

    @classmethod
    def of(cls, codes: QuantizedBlocks, form: str) -> Self:
        """The codes of a block format."""
        return cls(codes)

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self._codes.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(part.nbytes for part in vars(self._codes).values() if isinstance(part, Tensor))

    def codes(self) -> QuantizedBlocks:
        """The codes that were put in."""
        return self._codes

    def kernel_view(self) -> None:
        """What kernels of ours read: nothing."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., K), rounded to 8 bits in groups of 32, times the matrix, plus bias (N,): (..., N) in x's dtype."""
        return plain_product.linear(x, self._codes, bias)

    def rows(self, index: Tensor) -> Tensor:
        """The rows that index (...) names: fp32 (..., K)."""
        return plain_product.rows(self._codes, index)


class CpuStore:
    """A stream of sixteen rows at a time, for the kernels in Numba."""

    def __init__(self, stream: packed_layout.Packed) -> None:
        self.packed = stream

    @classmethod
    def of(cls, codes: QuantizedBlocks, form: str) -> Self:
        """The codes of a block format, packed."""
        return cls(packed_layout.pack(codes, form))

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.packed.stream.device

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return self.packed.nbytes

    def codes(self) -> QuantizedBlocks:
        """The codes that were put in."""
        return packed_layout.unpack(self.packed)

    def kernel_view(self) -> packed_layout.Packed:
        """What kernels of ours read."""
        return self.packed

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., K), rounded to 8 bits in groups of 32, times the matrix, plus bias (N,): (..., N) in x's dtype."""
        return linear.linear(x, self.packed, bias)

    def rows(self, index: Tensor) -> Tensor:
        """The rows that index (...) names: fp32 (..., K)."""
        return packed_layout.rows(self.packed, index)


class GpuStore:
    """Words that a GPU's threads load four of at a time, for the kernels in Triton; activations are not rounded."""

    def __init__(self, words: planes.Planes) -> None:
        self.planes = words

    @classmethod
    def of(cls, codes: QuantizedBlocks, form: str) -> Self:
        """The codes of a block format, packed."""
        return cls(planes.pack(codes))

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.planes.words.device

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return self.planes.nbytes

    def codes(self) -> QuantizedBlocks:
        """The codes that were put in."""
        return planes.unpack(self.planes)

    def kernel_view(self) -> planes.Planes:
        """What kernels of ours read."""
        return self.planes

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., K) times the matrix, plus bias (N,): (..., N) in x's dtype; unpacked first for many rows."""
        flat, parts = x.reshape(-1, x.shape[-1]), self.planes.tensors
        bits, zero = self.planes.bits, self.planes.zero
        if flat.shape[0] <= operations.MOST_ROWS:
            out = operations.few_rows_blocks(flat, *parts, bias, bits, zero)
        else:
            bias = None if bias is None else bias.to(x.dtype)
            out = F.linear(flat, operations.dequantize(*parts, bits, zero, x.dtype), bias)
        return out.view(*x.shape[:-1], -1)

    def rows(self, index: Tensor) -> Tensor:
        """The rows that index (...) names: fp32 (..., K)."""
        words, high, scale, minimum, sub_scale, sub_minimum = (
            None if part is None else part[index.reshape(-1)] for part in self.planes.tensors
        )
        assert words is not None
        assert scale is not None
        chosen = planes.Planes(
            words, high, scale, minimum, sub_scale, sub_minimum, bits=self.planes.bits, zero=self.planes.zero
        )
        return planes.unpack(chosen).dequantize().view(*index.shape, -1)


STORES: dict[str, type[PlainStore] | type[CpuStore] | type[GpuStore]] = {"cpu": CpuStore, "cuda": GpuStore}


def store(codes: QuantizedBlocks, form: str) -> Store:
    """The codes of a block format, as their device's kernels want them."""
    return _kind(codes.codes.device, form).of(codes, form)


def store_of_raw(raw: Tensor, form: BlockFormat, order: Tensor | None = None) -> Store:
    """The bytes of a GGUF file, uint8 (N, bytes), as their device's kernels want them.

    order: int64 (N,), the row of bytes that is to be each row of the matrix; None leaves them as they are.
    Raises UsageError for bytes of another format.
    """
    form.check(raw)
    if _kind(raw.device, form.name) is CpuStore:
        return CpuStore(repack.repack(raw, form.name, order))
    return store(form.codes(raw if order is None else raw[order]), form.name)


def _kind(device: torch.device, form: str) -> type[PlainStore] | type[CpuStore] | type[GpuStore]:
    """How codes are stored on a device; plainly where there are no kernels to read them."""
    kind = STORES.get(device.type, PlainStore)
    if kind is GpuStore and not planes.has_kernels(FORMATS[form].layout):
        return PlainStore
    return PlainStore if kind is CpuStore and program.unsupported_reason() is not None else kind
