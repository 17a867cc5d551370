"""GGML's block formats: a table from their names to how weights become bytes and back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.kernels.codes import Codes
from llamita.quant import blocks32, blocks256

CHUNK = 2**18  # weights quantized at a time: the searches' working tensors of 1 MB stay in the cache


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """One format: `nbytes` bytes for every `block` weights of a row, as GGUF files hold them under `ggml_type`."""

    name: str
    ggml_type: int
    block: int
    nbytes: int
    fit: Callable[[Tensor], Codes]
    read: Callable[[Tensor], Codes]
    write: Callable[[Codes], Tensor]

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, scales included."""
        return 8 * self.nbytes / self.block

    def quantize(self, weight: Tensor) -> Tensor:
        """Weights (N, K) of any float dtype as bytes uint8 (N, K / block * nbytes), those that llama.cpp writes.

        Raises UsageError where K is no multiple of `block`.
        """
        if weight.ndim != 2 or weight.shape[1] % self.block:
            raise UsageError(
                f"{self.name} packs rows of a multiple of {self.block} weights, not {tuple(weight.shape)}: "
                "choose another format for this layer"
            )
        with torch.no_grad():
            chunks = weight.contiguous().split(max(1, CHUNK // weight.shape[1]))
            return torch.cat([self.write(self.fit(chunk)) for chunk in chunks])

    def dequantize(self, raw: Tensor) -> Tensor:
        """Bytes (N, bytes) as weights fp32 (N, K)."""
        return self.codes(raw).dequantize()

    def codes(self, raw: Tensor) -> Codes:
        """Bytes uint8 (N, bytes) taken apart."""
        if raw.dtype != torch.uint8 or raw.ndim != 2 or raw.shape[1] % self.nbytes:
            raise UsageError(
                f"{self.name} needs rows of a multiple of {self.nbytes} bytes, not {raw.dtype} {tuple(raw.shape)}: "
                "these are bytes of another format"
            )
        return self.read(raw)

    def raw(self, codes: Codes) -> Tensor:
        """The inverse of `codes`."""
        return self.write(codes)


FORMATS: dict[str, BlockFormat] = {
    each.name: each
    for each in (
        BlockFormat(
            name="q8_0",
            ggml_type=8,
            block=32,
            nbytes=34,
            fit=blocks32.fit_q8_0,
            read=blocks32.read_q8_0,
            write=blocks32.write_q8_0,
        ),
        BlockFormat(
            name="q4_0",
            ggml_type=2,
            block=32,
            nbytes=18,
            fit=blocks32.fit_q4_0,
            read=blocks32.read_q4_0,
            write=blocks32.write_q4_0,
        ),
        BlockFormat(
            name="q4_1",
            ggml_type=3,
            block=32,
            nbytes=20,
            fit=blocks32.fit_q4_1,
            read=blocks32.read_q4_1,
            write=blocks32.write_q4_1,
        ),
        BlockFormat(
            name="q4_k",
            ggml_type=12,
            block=256,
            nbytes=144,
            fit=blocks256.fit_q4_k,
            read=blocks256.read_q4_k,
            write=blocks256.write_q4_k,
        ),
        BlockFormat(
            name="q5_k",
            ggml_type=13,
            block=256,
            nbytes=176,
            fit=blocks256.fit_q5_k,
            read=blocks256.read_q5_k,
            write=blocks256.write_q5_k,
        ),
        BlockFormat(
            name="q6_k",
            ggml_type=14,
            block=256,
            nbytes=210,
            fit=blocks256.fit_q6_k,
            read=blocks256.read_q6_k,
            write=blocks256.write_q6_k,
        ),
    )
}
